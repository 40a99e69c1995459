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
    *(str(ROOT / folder) for folder in ("benchmarks", "datasets", "demo", "tools")),
):
    if path not in sys.path:
        sys.path.insert(0, path)


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
