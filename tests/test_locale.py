"""Programs run in any locale, on files and labels of any name."""

import io
import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from datasets_made import quarters, write_dataset

from rankseg_m2f.errors import one_line_errors

DEMO = ROOT / "configs" / "scenes" / "panoptic" / "demo-rankseg.yaml"
SMALL = {
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 1,
    "DATASETS.TEST": (),
    "INPUT.CROP.SIZE": (48, 48),
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
    "MODEL.DEVICE": "cpu",
}
# The second has Python read and write ASCII where no encoding is given. Below a folder of another
# name torch itself cannot be imported then.
LOCALES = {"C": {"LC_ALL": "C"}, "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0"}}
NARROWEST = "ASCII" if f"{ROOT}{sys.executable}".isascii() else "C"


def python(locale: str, *words: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **LOCALES[locale], **environment},
        capture_output=True,
        check=False,
    )


def test_a_dataset_of_any_name_is_checked(tmp_path):
    folder = tmp_path / "Maße \u4e2d"
    arguments = write_dataset(folder, [quarters(16, 20, [0, 1, 2, 9])])["semantic_folder"]
    arguments["classes"] = ["\u5929", "κ", "é", "x"]
    file = folder / "mine.yaml"
    # Without a locale Python can open what the command line names, and what lies beside that.
    paths = {
        k: v.removeprefix(f"{folder}{os.sep}") for k, v in arguments.items() if k.endswith("_root")
    }
    content = {"mine": {"kind": "semantic_folder", **arguments, **paths}}
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    done = python(NARROWEST, ROOT / "tools/check_dataset.py", "mine", "--definitions", file)
    assert done.returncode == 1, done.stderr
    assert b"1 problem" in done.stdout and b"label 9" in done.stdout


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    with one_line_errors("tool"):
        print("recall@κ of größe")
    print("κ", flush=True)  # what follows, too
    assert shown.buffer.getvalue().decode("ascii") == "recall@\\u03ba of gr\\xf6\\xdfe\n\\u03ba\n"


@pytest.mark.parametrize("locale", sorted({"C", NARROWEST}))
def test_a_model_is_trained_and_its_log_is_whole(scenes, tmp_path, locale):
    # TensorBoard writes below names of the locale alone.
    output = tmp_path / ("run" if locale == "ASCII" else "κ Maße \u4e2d")
    words = [word for pair in SMALL.items() for word in pair]
    words = ["--config-file", DEMO, *words, "OUTPUT_DIR", output]
    done = python(locale, ROOT / "train_net.py", *words, DETECTRON2_DATASETS=str(scenes))
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"Logging error" not in done.stderr and b"Traceback" not in done.stderr
    log = (output / "log.txt").read_text(encoding="utf-8")
    assert DEMO.read_text(encoding="utf-8") in log and "κ" in DEMO.read_text(encoding="utf-8")
    assert str(output) in log
    # Each line once: Detectron2's set-up found its handlers made.
    assert log.count("Contents of args.config_file") == log.count("Full config saved") == 1
    assert (output / "model_final.pth").is_file()


def test_doctor_looks_at_folders_of_any_name(tmp_path):
    folder = tmp_path / "Maße \u4e2d"
    folder.mkdir()
    done = python(NARROWEST, "-m", "rankseg_m2f.doctor", DETECTRON2_DATASETS=str(folder))
    assert done.returncode in (0, 1) and b"Traceback" not in done.stderr, done.stderr
    assert str(folder).encode() in done.stdout
