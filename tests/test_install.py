"""What is installed works without a checkout beside it."""

import json
import os
import subprocess
import sys

from conftest import ROOT

from rankseg_m2f.config.lookup import CONFIGS

CODE = """
import json, rankseg_m2f
from pathlib import Path
from rankseg_m2f.config.lookup import find_config
from rankseg_m2f.data.categories import read_categories
from rankseg_m2f.data.datasets.official import register_official
ours = find_config("configs/ade20k/panoptic/mask2former-R50-rankseg.yaml")
official = find_config("configs/ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml")
files = [str(ours), str(official)]
counts = [len(read_categories("ade20k_150")), len(register_official(Path("absent")))]
print(json.dumps([rankseg_m2f.__file__, *files, *counts]))
"""


def python(folder, *words):
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_configs_and_tables_are_installed(tmp_path):
    built = {"build", "rankseg_m2f.egg-info"}
    before = built & {path.name for path in ROOT.iterdir()}
    command = [sys.executable, ROOT / "setup.py", "-q", "build_py", "--build-lib", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert built & {path.name for path in ROOT.iterdir()} == before
    installed = tmp_path / "rankseg_m2f"
    names = {p.relative_to(CONFIGS) for p in CONFIGS.rglob("*.*")}
    assert {
        p.relative_to(installed / "configs") for p in installed.rglob("configs/**/*.*")
    } == names
    data = ("py.typed", "data/categories/ade20k_150.json", "ops/csrc/ms_deform_attn.cpp")
    assert all((installed / name).is_file() for name in data)
    *files, labels, datasets = json.loads(python(tmp_path, "-c", CODE))
    assert all(file.startswith(str(installed)) for file in files)
    assert (labels, datasets) == (150, 45)
