"""No test sees the user's machine or another test, in whatever order they run."""

import itertools
import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import isolation
import numpy as np
import pytest
import torch
from conftest import ROOT, TESTS
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

from rankseg_m2f.files import datasets_root

# Variables a user may have set, each of which would change results.
SOILED = {
    "DETECTRON2_DATASETS": "/somewhere/else",
    "RANKSEG_M2F_MS_DEFORM_ATTN": "abacus",
    "FVCORE_CACHE": "/somewhere/else",
    "HF_HOME": "/somewhere/else",
    "TORCH_HOME": "/somewhere/else",
    "TORCHELASTIC_RUN_ID": "7",
    "LOCAL_RANK": "3",
    "MPLBACKEND": "module://no_such_backend",
    "GIT_DIR": "/somewhere/else",
}


def test_each_test_starts_clean():
    assert list(Path.cwd().iterdir()) == []
    assert datasets_root().is_dir() and list(datasets_root().iterdir()) == []
    assert not set(SOILED) & set(os.environ) - set(isolation.CACHES) - {"DETECTRON2_DATASETS"}
    for name in isolation.CACHES:
        assert not Path(os.environ[name]).exists()
    assert not [name for name in DatasetCatalog.list() if "scenes" in name]
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == pytest.approx(
        (0.8444218515250481, 0.5488135039273248, 0.4962565899)
    )


def test_the_users_variables_reach_no_test():
    test = f"{TESTS / 'test_isolation.py'}::{test_each_test_starts_clean.__name__}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test, "--order-seed", "7"],
        cwd=ROOT,
        env=os.environ | SOILED,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--order-seed 7\n" in done.stdout


def test_what_a_test_changes_is_as_before(capsys):
    logger, builtin = logging.getLogger("rankseg_m2f"), "coco_2017_val"
    before = dict(DatasetCatalog.data), dict(MetadataCatalog.data), dict(os.environ), os.getcwd()
    attributes, arguments = dict(vars(MetadataCatalog.get(builtin))), list(sys.argv)
    for _ in range(2):
        with isolation.own_test():
            DatasetCatalog.register("mine", list)
            DatasetCatalog.remove("coco_2017_train")
            MetadataCatalog.get(builtin).set(mine=1)
            MetadataCatalog.get("new").set(mine=1)
            os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["MINE"] = ""
            os.chdir("/")
            setup_logger(name="rankseg_m2f")
            assert not logger.propagate and len(logger.handlers) == 1
            sys.argv[:] = ["x"]
            torch.set_num_threads(torch.get_num_threads() + 1)
        now = dict(DatasetCatalog.data), dict(MetadataCatalog.data), dict(os.environ), os.getcwd()
        assert now == before
        assert dict(vars(MetadataCatalog.get(builtin))) == attributes and sys.argv == arguments
        assert logger.propagate and not logger.handlers


def test_a_seed_gives_an_order_of_files_and_of_their_tests():
    tests = [SimpleNamespace(path=file, number=n) for file in "abcdef" for n in range(5)]
    orders = [[(t.path, t.number) for t in isolation.shuffled(tests, s)] for s in (1, 1, 2)]
    plain = [(t.path, t.number) for t in tests]
    assert orders[0] == orders[1] and orders[0] != orders[2]
    for order in orders:
        assert order != plain and sorted(order) == plain
        assert len(list(itertools.groupby(order, key=lambda test: test[0]))) == 6
        assert [n for path, n in order if path == "a"] != list(range(5))
