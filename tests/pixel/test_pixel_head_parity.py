"""Pixel heads against the official ones: every output, loss and gradient."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import TESTS
from pixel_golden import Case, compare

GOLDEN = TESTS / "data" / "golden"
# Those of MaskFormer, which has queries, are held against ours in test_maskformer.py.
FOLDERS = [p for p in sorted(GOLDEN.glob("pixel_*")) if "maskformer" not in p.name]
# Windows need the backbone.
WITHOUT_BACKBONE = {"slide_logits", "slide_prob"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_all_outputs_are_the_official_ones(folder):
    rows, missing = compare(Case(folder))
    assert not [row for row in rows if not row.close]
    assert set(missing) <= WITHOUT_BACKBONE
    names = {row.name for row in rows}
    assert names & {"head_logits", "decoder"} and "seg_logits" in names
    if "rankseg" in folder.name or "q2l" in folder.name:
        wanted = {"img_pred", "topk_index", "train_rank_logits", "train.loss_img", "ml_logits"}
        assert wanted <= names and any(name.startswith("grad.ml") for name in names)


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
