"""Whole pixel segmentors against the official ones: every output, loss and gradient."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import TESTS
from pixel_golden import Case, compare

GOLDEN = TESTS / "data" / "golden"
# MaskFormer, which has queries, is held against ours in test_maskformer.py.
FOLDERS = [p for p in sorted(GOLDEN.glob("pixel_*")) if "maskformer" not in p.name]
SHARED = TESTS.parents[1] / "shared" / "golden"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_all_outputs_are_the_official_ones(folder):
    rows, missing = compare(Case(folder))
    assert not [row for row in rows if not row.close]
    assert not missing
    names = {row.name for row in rows}
    assert names & {"head_logits", "decoder"} and "seg_logits" in names
    assert names & {"backbone.0", "encoder"}
    with np.load(folder / "inputs.npz") as inputs:
        assert ("slide_image" in inputs) == bool(names & {"slide_logits", "slide_prob"})
    if "rankseg" in folder.name or "q2l" in folder.name:
        wanted = {"img_pred", "topk_index", "train_rank_logits", "train.loss_img", "ml_logits"}
        assert wanted <= names and any(name.startswith("grad.ml") for name in names)


@pytest.mark.shared
@pytest.mark.parametrize("name", [folder.name for folder in FOLDERS])
def test_all_of_the_full_golden_data(name):
    rows, missing = compare(Case(SHARED / name))
    assert not missing and not [row for row in rows if not row.close]


def test_the_folders_are_those_of_the_heads():
    assert len(FOLDERS) == 22


def runner(*folders):
    command = [sys.executable, str(TESTS / "pixel_golden.py"), *map(str, folders)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS.parent)


def test_the_runner_says_what_is_too_far(tmp_path):
    good = GOLDEN / "pixel_segmenter_rankseg"
    bad = tmp_path / "bad"
    shutil.copytree(good, bad)
    outputs = dict(np.load(bad / "outputs.npz"))
    outputs["img_pred"][0, 3] += 1e-4
    np.savez(bad / "outputs.npz", **outputs)
    ran = runner(good, bad)
    assert ran.returncode == 1, ran.stderr
    said_good, said_bad = ran.stdout.split("bad\n")
    assert "head_logits" in said_good and "TOO FAR" not in said_good
    (line,) = (line for line in said_bad.splitlines() if "TOO FAR" in line)
    assert line.split()[:2] == ["img_pred", "1.0e-04"]
    assert runner(good).returncode == 0
