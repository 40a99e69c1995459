"""Paths and settings all tests share."""

import sys
from pathlib import Path

import pytest
import torch

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


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A folder for $DETECTRON2_DATASETS with a few small scenes.

    One for all tests: a process can register the datasets below a single folder.
    """
    from make_scenes import make_scenes
    from make_video_scenes import make_video_scenes

    root = tmp_path_factory.mktemp("data")
    make_scenes(root / "scenes", train=24, val=6, size=48, jobs=1)
    make_video_scenes(root / "video_scenes", train=8, val=5, frames=4, size=48, jobs=1)
    return root


@pytest.fixture(autouse=True)
def _seeded():
    """Tests draw the same numbers in any order."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def own_catalogs():
    """Puts the catalogs back as they were before a file that registers known names."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    catalogs = DatasetCatalog.data, MetadataCatalog.data
    before = [dict(catalog) for catalog in catalogs]
    yield
    for catalog, content in zip(catalogs, before, strict=True):
        catalog.clear()
        catalog.update(content)
