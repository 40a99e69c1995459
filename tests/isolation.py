"""What keeps tests apart from the user's machine and from each other.

`clean_environment` is called before anything reads a variable; the context managers put back what
a test, or a file of tests, has changed.
"""

import functools
import logging
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

# Variables that change what our code, Detectron2, PyTorch, Hugging Face or Matplotlib do.
_PREFIXES = (
    "RANKSEG_M2F_",
    "DETECTRON2_",
    "FVCORE_",
    "D2_",
    "HF_",
    "HUGGINGFACE_",
    "TRANSFORMERS_",
)
_PREFIXES += ("TORCHELASTIC_", "GIT_")
_NAMES = {"TORCH_HOME", "MPLBACKEND", "RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE"}
_NAMES |= {"LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
# Where libraries keep downloads: below the root of a test run nothing has been downloaded.
CACHES = {"FVCORE_CACHE": "fvcore", "TORCH_HOME": "torch", "HF_HOME": "huggingface"}


def usable_cores() -> int:
    """Those this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def clean_environment(folder: Path) -> None:
    """Take the user's settings out of the environment, which subprocesses inherit.

    Args:
        folder: empty; downloads and data would be looked for below it.
    """
    for name in list(os.environ):
        if name in _NAMES or name.startswith(_PREFIXES):
            del os.environ[name]
    os.environ["DETECTRON2_DATASETS"] = str(folder / "datasets")
    os.environ |= {"HF_HUB_OFFLINE": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    os.environ |= {name: str(folder / below) for name, below in CACHES.items()}
    # Before torch is imported: processes side by side share the cores.
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if processes > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))


def shuffled(tests: Sequence, seed: int) -> list:
    """In another order; files stay together, since their tests share what is slow to make.

    Args:
        tests: with their file as `path`.
    """
    generator = random.Random(seed)
    files = {}
    for test in tests:
        files.setdefault(test.path, []).append(test)
    groups = list(files.values())
    generator.shuffle(groups)
    return [test for group in groups for test in generator.sample(group, len(group))]


@contextmanager
def own_place() -> Iterator[Path]:
    """An empty folder to be in, with an empty $DETECTRON2_DATASETS; then all as it was."""
    environment, folder = dict(os.environ), os.getcwd()
    # A process that a test left behind may still write there.
    with tempfile.TemporaryDirectory(prefix="rankseg_test_", ignore_cleanup_errors=True) as name:
        datasets, here = Path(name, "datasets"), Path(name, "here")
        datasets.mkdir()
        here.mkdir()
        os.environ["DETECTRON2_DATASETS"] = str(datasets)
        os.chdir(here)
        try:
            yield here
        finally:
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)


@contextmanager
def own_catalogs() -> Iterator[None]:
    """Datasets and metadata registered, removed or changed in the block are as before it."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    loaders = dict(DatasetCatalog.data)
    metadata = {name: (known, dict(vars(known))) for name, known in MetadataCatalog.data.items()}
    try:
        yield
    finally:
        DatasetCatalog.data.clear()
        DatasetCatalog.data.update(loaders)
        MetadataCatalog.data.clear()
        for name, (known, attributes) in metadata.items():
            vars(known).clear()
            vars(known).update(attributes)
            MetadataCatalog.data[name] = known


@contextmanager
def own_loggers() -> Iterator[None]:
    """Handlers, levels and propagation set in the block are as before it.

    Detectron2's `setup_logger` cuts a logger off from its parents, and so from what pytest
    captures, and remembers for which it has been called.
    """
    from detectron2.utils.logger import setup_logger

    states = {logger: _logger_state(logger) for logger in _loggers()}
    try:
        yield
    finally:
        for logger in _loggers():
            handlers, level, propagate, disabled = states.get(logger, ([], 0, True, False))
            for handler in [h for h in logger.handlers if h not in handlers]:
                handler.close()
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate, logger.disabled = propagate, disabled
        setup_logger.cache_clear()


def _loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]


def _logger_state(logger: logging.Logger) -> tuple:
    return list(logger.handlers), logger.level, logger.propagate, logger.disabled


@contextmanager
def own_interpreter() -> Iterator[None]:
    """Arguments, import path and settings of PyTorch changed in the block are as before it."""
    import torch

    before = list(sys.argv), list(sys.path)
    threads, dtype, gradients = (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    )
    try:
        yield
    finally:
        sys.argv[:], sys.path[:] = before
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)


def seed_everything() -> None:
    """Tests draw the same numbers in any order."""
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@contextmanager
def entered(*managers: Callable) -> Iterator[None]:
    """All of some context managers."""
    with ExitStack() as stack:
        for manager in managers:
            stack.enter_context(manager())
        yield


own_file = functools.partial(entered, own_catalogs, own_loggers, own_interpreter)
own_test = functools.partial(entered, own_place, own_catalogs, own_loggers, own_interpreter)
