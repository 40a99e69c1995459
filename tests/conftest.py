"""Paths, settings and fixtures all tests share; no test sees what is on the user's machine."""

import sys
import tempfile
from pathlib import Path

import isolation
import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# Scripts that are not part of the package are imported by their own names; Detectron2 installs a
# package called tools, so ours cannot be imported through its folder.
for path in (
    str(TESTS),
    *(str(ROOT / folder) for folder in ("benchmarks", "datasets", "demo", "research", "tools")),
):
    if path not in sys.path:
        sys.path.insert(0, path)

_session = tempfile.TemporaryDirectory(prefix="rankseg_tests_", ignore_cleanup_errors=True)
# Before Detectron2 and torch are imported, which read it.
isolation.clean_environment(Path(_session.name))


def pytest_addoption(parser):
    parser.addoption(
        "--order-seed",
        type=int,
        metavar="N",
        help="shuffle the files of tests, and the tests of each; the same seed, the same order",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    seed = config.getoption("order_seed")
    if seed is not None:
        items[:] = isolation.shuffled(items, seed)


def pytest_terminal_summary(terminalreporter, config):
    seed = config.getoption("order_seed")
    if seed is not None:
        terminalreporter.write_line(f"Order of the tests: --order-seed {seed}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Two processes where there are cores for them, else none beside pytest's own."""
    return 2 if isolation.usable_cores() > 1 else 0


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A folder for $DETECTRON2_DATASETS with a few small scenes of images and videos."""
    from make_scenes import make_scenes
    from make_video_scenes import make_video_scenes

    root = tmp_path_factory.mktemp("data")
    make_scenes(root / "scenes", train=24, val=6, size=48, jobs=1)
    make_video_scenes(root / "video_scenes", train=8, val=5, frames=4, size=48, jobs=1)
    return root


@pytest.fixture(scope="module", autouse=True)
def _own_file():
    """What fixtures of a file change is as before it when its last test is done."""
    with isolation.own_file():
        yield


@pytest.fixture(autouse=True)
def _own_test(_own_file):
    """Each test starts in an empty folder, without datasets, and leaves nothing behind."""
    isolation.seed_everything()
    with isolation.own_test():
        yield
