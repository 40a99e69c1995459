"""docs/custom_project.py: a project of one file is trained, resumed and evaluated by Detectron2's
methods, and by flags alone."""

import json
import shlex
import subprocess
import sys

from conftest import ROOT

SCRIPT = ROOT / "docs" / "custom_project.py"
SMALL = [
    *("SOLVER.IMS_PER_BATCH", "2", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64"),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "8"),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1", "MODEL.DEVICE", "cpu"),
    *("DATALOADER.NUM_WORKERS", "0", "SEED", "1"),
]


def run(tmp_path, *arguments: str) -> None:
    """The command of the file's own docstring, with settings for a short run behind it."""
    usage = SCRIPT.read_text(encoding="utf-8").partition("\n\n")[2].partition("\n\n")[0]
    command = shlex.split(usage.replace("\\\n", " "))
    assert command[:2] == ["python", "docs/custom_project.py"]
    flags = [a for a in arguments if a.startswith("--")]
    settings = [a for a in arguments if not a.startswith("--")]
    command = [sys.executable, *command[1:4], *flags, *command[4:], *SMALL, *settings]
    subprocess.run([*command, "OUTPUT_DIR", str(tmp_path)], cwd=ROOT, check=True)


def test_a_project_of_one_file_trains_and_evaluates(tmp_path):
    run(tmp_path, "SOLVER.MAX_ITER", "40", "SOLVER.CHECKPOINT_PERIOD", "20")
    results = tmp_path / "inference" / "discs_val" / "results.json"
    trained = json.loads(results.read_text(encoding="utf-8"))["discs"]["accuracy"]
    # 76 % of the pixels are ground.
    assert trained > 85
    weights = str(tmp_path / "model_final.pth")
    run(tmp_path / "again", "--eval-only", "MODEL.WEIGHTS", weights)
    results = tmp_path / "again" / "inference" / "discs_val" / "results.json"
    assert json.loads(results.read_text(encoding="utf-8"))["discs"]["accuracy"] == trained
