"""Paths and settings all tests share."""

import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# Scripts that are not part of the package (datasets/, demo/, tools/) are imported from the root.
for path in (str(ROOT), str(TESTS)):
    if path not in sys.path:
        sys.path.insert(0, path)


@pytest.fixture(autouse=True)
def _seeded():
    """Tests draw the same numbers in any order."""
    torch.manual_seed(0)
