"""Programs of ours as a user starts them, with a bug planted in them where a test wants one."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from datasets_made import NAMES, quarters, write_dataset
from PIL import Image

DEMO = "configs/scenes/panoptic/demo-rankseg.yaml"
VIDEO = "configs/video_scenes/instance/demo-rankseg.yaml"
# A model and images so small that a step takes a fraction of a second.
SMALL = [
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0"),
    *("DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu", "MODEL.RANKSEG.TOPK", "2"),
    *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "8"),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1", "INPUT.CROP.SIZE", "(48,48)"),
    *("INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.MIN_SIZE_TEST", "48"),
]
# The function that starts a program, where it is not main.
START = {"train_net.py": "run", "train_net_video.py": "run"}
# What of ours fails -> a line that makes it fail.
BUGS = {
    "building": (
        "import rankseg_m2f.modeling.query.mask_former as m; "
        "m.build_criterion = lambda cfg: {}['res6']"
    ),
    "training": (
        "import rankseg_m2f.modeling.query.mask_former as m; "
        "m.MaskFormer.losses = lambda *a, **k: {}['res6']"
    ),
    "loading": ("import rankseg_m2f.data.mappers as m; m.read_image = lambda *a, **k: {}['res6']"),
}


def folder_dataset(path: Path, label: int = 3) -> list[str]:
    """Overrides for a dataset of two photos whose last quarter has `label`."""
    write_dataset(path, [quarters(48, 48, [0, 1, 2, label])] * 2)
    classes = ", ".join(NAMES)
    (path / "own.yaml").write_text(
        f"own:\n  kind: semantic_folder\n  image_root: images\n  label_root: labels\n"
        f"  classes: [{classes}]\n",
        encoding="utf-8",
    )
    return [
        *("DATASETS.DEFINITIONS", f"['{path / 'own.yaml'}']"),
        *("DATASETS.TRAIN", "('own',)", "DATASETS.TEST", "('own',)"),
        *("INPUT.DATASET_MAPPER_NAME", "mask_former_semantic"),
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"),
        *("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False"),
        *("MODEL.MASK_FORMER.TEST.INSTANCE_ON", "False"),
    ]


def photo(path: Path, size: tuple[int, int] = (50, 30)) -> str:
    Image.new("RGB", size, (90, 120, 40)).save(path)
    return str(path)


def run(tmp_path, script, *words, bug=None, launcher=(), datasets=None, **environment):
    """(exit code, whole output, last line) of a program, with `bug`, a key of BUGS, in it."""
    program = ROOT / script
    if bug is not None:
        # Beside a module of the script's name, so that processes which are spawned run it too.
        program = tmp_path / f"bug_in_{program.name}"
        program.write_text(
            f"import sys\nsys.path.insert(0, {str((ROOT / script).parent)!r})\n{BUGS[bug]}\n"
            f"from {Path(script).stem} import {START.get(script, 'main')} as start\n"
            "if __name__ == '__main__':\n    start()\n",
            encoding="utf-8",
        )
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TORCHELASTIC", "RANK"))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *launcher, str(program), *map(str, words)],
        cwd=ROOT,
        env={
            **inherited,
            "DETECTRON2_DATASETS": str(datasets or tmp_path / "none"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )
    lines = [line for line in done.stdout.replace("\r", "\n").splitlines() if line.strip()]
    return done.returncode, done.stdout, lines[-1].strip() if lines else ""
