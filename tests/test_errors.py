"""A user's mistake ends a program in one sentence; a bug of ours keeps its traceback."""

import argparse
import logging
import os
import traceback
from functools import partial

import pytest
import torch
from programs import BUGS, DEMO, SMALL, VIDEO, folder_dataset, photo, run
from torch.utils.data import DataLoader, Dataset

from rankseg_m2f.errors import (
    BUG,
    DEBUG,
    ExistingFileError,
    MissingFileError,
    MissingPackageError,
    ProcessEndedError,
    UserError,
    add_debug_flag,
    errors_for_parent,
    one_line_errors,
    require_one_of,
    user_sentence,
)
from rankseg_m2f.images import AnnotationError, ImageReadError
from rankseg_m2f.weights.safe_pickle import UnsafeCheckpointError


@pytest.mark.parametrize(
    "error, text",
    [
        (UserError("a is 3, not 4"), "a is 3, not 4"),
        (UserError("two\n  lines"), "two lines"),
        (MissingFileError("a does not exist"), "a does not exist"),
        (ExistingFileError("a is there"), "a is there"),
        (MissingPackageError("pip install a"), "pip install a"),
        (ImageReadError("a.png: empty file"), "a.png: empty file"),
        (
            UnsafeCheckpointError("a.pkl", "os.system"),
            "a.pkl holds os.system, which could run code",
        ),
        (FileNotFoundError(2, "No such file", "a"), "a: No such file"),
        (PermissionError(13, "Permission denied", "b"), "b: Permission denied"),
        (MemoryError(), "out of memory (no memory left): lower SOLVER.IMS_PER_BATCH"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory (CUDA out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "out of memory (Default"),
        (
            RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
            "DataLoader worker (pid",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_mistakes_of_users_are_sentences(error, text):
    with pytest.raises(SystemExit) as ended, one_line_errors("tool"):
        raise error
    assert ended.value.code.startswith(f"tool: {text}") and ended.value.__cause__ is error
    assert "\n" not in ended.value.code


@pytest.mark.parametrize(
    "error",
    [
        KeyError("res6"),
        ValueError("a"),
        TypeError("a"),
        AssertionError("a"),
        RuntimeError("a"),
        # Of no file.
        OSError("a"),
        ConnectionResetError(104, "reset"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bugs_keep_their_traceback(error):
    # Several doors may stand one in the other.
    with pytest.raises(type(error)) as raised, one_line_errors("outer"), one_line_errors("inner"):
        raise error
    assert raised.value is error and not hasattr(error, "code")
    shown = "".join(traceback.format_exception(error))
    assert "Traceback" in shown and shown.count(BUG) == 1 and shown.endswith(f"{BUG}\n")
    assert user_sentence(error) is None


def test_an_interrupt_is_neither():
    with pytest.raises(KeyboardInterrupt) as raised, one_line_errors("tool"):
        raise KeyboardInterrupt
    assert not getattr(raised.value, "__notes__", [])


class Failing(Dataset):
    """Its only sample raises."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise KeyError("a cause")
        except KeyError as cause:
            raise self.error from cause


@pytest.mark.parametrize(
    "error, text",
    [
        (ImageReadError("a.png: broken image (b: c)"), "a.png: broken image (b: c)"),
        (AnnotationError("a.json: two\nproblem: lines"), "a.json: two problem: lines"),
        (MissingFileError("a does not exist"), "a does not exist"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "a.png: No such file"),
        (FileNotFoundError(2, "No such file or directory", "it's"), "it's: No such file"),
        (MemoryError("no room"), "out of memory (no room)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_of_another_process_the_sentence_is_kept(error, text):
    with pytest.raises(SystemExit) as ended, one_line_errors("tool"):
        next(iter(DataLoader(Failing(error), num_workers=1)))
    assert ended.value.code.startswith(f"tool: {text}") and "Traceback" not in ended.value.code


def test_a_bug_in_another_process_is_a_bug():
    with pytest.raises(KeyError, match="res6") as raised, one_line_errors("tool"):
        next(iter(DataLoader(Failing(KeyError("res6")), num_workers=1)))
    assert raised.value.__notes__ == [BUG]


def test_a_process_hands_its_sentence_to_its_parent():
    with pytest.raises(ProcessEndedError) as raised, errors_for_parent():
        raise UserError("a.png: broken\nimage")
    # As torch.multiprocessing shows it.
    shown = "".join(traceback.format_exception(raised.value))
    text = f"\n\n-- Process 1 terminated with the following error:\n{shown}"
    assert user_sentence(torch.multiprocessing.ProcessRaisedException(text, 1, 7)) == (
        "a.png: broken image"
    )
    with pytest.raises(KeyError), errors_for_parent():
        raise KeyError("res6")


def test_debugging_shows_the_traceback_of_a_mistake(monkeypatch, capsys):
    monkeypatch.setenv(DEBUG, "0")
    parser = argparse.ArgumentParser()
    add_debug_flag(parser)
    for flags, shown in (([], 0), (["--debug"], 1)):
        assert parser.parse_args(flags).debug == bool(flags)
        with pytest.raises(SystemExit, match=r"^tool: a$"), one_line_errors("tool"):
            raise UserError("a")
        assert capsys.readouterr().err.count("Traceback") == shown
    assert os.environ[DEBUG] == "1"


def test_choices_are_named():
    require_one_of("A.B", "x", ("x", "y"))
    with pytest.raises(UserError, match=r"^A\.B='z' must be one of x, y$"):
        require_one_of("A.B", "z", ("x", "y"))


def test_what_ends_training_is_shown_once():
    from rankseg_m2f.engine.main import _is_said_here_alone

    def record(name, error):
        info = (type(error), error, None) if error else None
        return logging.LogRecord(name, logging.ERROR, "", 0, "a", (), info)

    assert not _is_said_here_alone(record("detectron2.engine.train_loop", KeyError("a")))
    assert _is_said_here_alone(record("detectron2.engine.train_loop", None))
    assert _is_said_here_alone(record("detectron2.engine.hooks", KeyError("a")))


TWO = ["--num-gpus", "2", "--dist-url", "auto"]
slow = partial(pytest.param, marks=pytest.mark.slow)
TOOL = "tools/export_huggingface.py"


@pytest.mark.parametrize(
    "bug, script, flags, workers",
    [
        ("building", "train_net.py", [], 0),
        slow("building", "train_net.py", ["--eval-only"], 0),
        slow("building", "train_net_video.py", [], 0),
        ("building", "train_net.py", TWO, 0),
        ("building", "demo/demo.py", [], 0),
        slow("building", "demo/demo_video.py", [], 0),
        ("building", "tools/analyze_model.py", [], 0),
        slow("training", "train_net.py", [], 0),
        ("loading", "train_net.py", [], 1),
    ],
)
def test_a_planted_bug_shows_its_traceback(tmp_path, bug, script, flags, workers):
    words = ["--config-file", VIDEO if "video" in script else DEMO]
    overrides = [*SMALL, "DATALOADER.NUM_WORKERS", workers, "OUTPUT_DIR", tmp_path / "out"]
    if script.startswith("demo"):
        picture = photo(tmp_path / "a.png")
        words += ["--input", picture, "--output", tmp_path / "drawn/", "--opts", *overrides]
    elif script.startswith("tools"):
        words += [*overrides, "MODEL.WEIGHTS", photo(tmp_path / "a.png")]
    elif "video" in script:
        words += [*flags, *overrides, "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    else:
        words += [*flags, *overrides, *folder_dataset(tmp_path / "own")]
    code, text, last = run(tmp_path, script, *words, bug=bug)
    assert code == 1 and last == BUG and text.count(BUG) == 1, text[-2000:]
    assert "Traceback" in text and "KeyError: 'res6'" in text and BUGS[bug][:30] in text


def mistakes(tmp_path):
    """Name -> (script, words, what the sentence says) of what users do."""
    good, bad = folder_dataset(tmp_path / "good"), folder_dataset(tmp_path / "bad", label=7)
    out = ["OUTPUT_DIR", tmp_path / "out"]
    picture = photo(tmp_path / "a.png")

    def training(*overrides, data=good, flags=(), script="train_net.py", config=DEMO):
        return script, ["--config-file", config, *flags, *SMALL, *data, *out, *overrides]

    def demo(*overrides, flags=(), script="demo/demo.py", config=DEMO):
        where = ["--input", picture, "--output", tmp_path / "drawn"]
        return script, ["--config-file", config, *flags, *where, "--opts", *SMALL, *overrides]

    return {
        "feature": (*training("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res6']"), "IN_FEATURES='res6'"),
        "label": (*training(data=bad), "labels/00"),
        "label in a worker": (*training("DATALOADER.NUM_WORKERS", 1, data=bad), "labels/00"),
        "label in two processes": (*training(data=bad, flags=TWO), "labels/00"),
        "weights in two processes": (
            *training("MODEL.WEIGHTS", "gone.pth", flags=TWO),
            "gone.pth: check MODEL.WEIGHTS",
        ),
        "weights of a photo": (*training("MODEL.WEIGHTS", picture), "a.png has no known format"),
        "evaluation": (*training("MODEL.WEIGHTS", picture, flags=["--eval-only"]), "a.png has no"),
        "classes": (*training("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 7), "NUM_CLASSES is 7"),
        "learning rate": (*training("SOLVER.BASE_LR", "1e30"), "loss is not finite"),
        "video": (
            *training("DATASETS.TRAIN", "('ytvis',)", script="train_net_video.py", config=VIDEO),
            "'ytvis'",
        ),
        "demo": (*demo("MODEL.WEIGHTS", "gone.pth"), "gone.pth"),
        "demo of videos": (
            *demo("MODEL.WEIGHTS", picture, script="demo/demo_video.py", config=VIDEO),
            "a.png has no known format",
        ),
        "tool": (TOOL, ["--config-file", "gone.yaml", "--output", tmp_path / "f"], "gone.yaml"),
        "shape": (
            "tools/analyze_model.py",
            ["--config-file", DEMO, "MODEL.MASK_FORMER.NHEADS", 7],
            "NHEADS=7",
        ),
    }


# In the order of `mistakes`; those that say little beside the others are slow.
NAMES_OF_MISTAKES = (
    "feature",
    "label",
    "label in a worker",
    "label in two processes",
    "weights in two processes",
    "weights of a photo",
    "evaluation",
    "classes",
    "learning rate",
    "video",
    "demo",
    "demo of videos",
    "tool",
    "shape",
)
SLOW = {"label", "weights in two processes", "classes", "demo of videos", "shape"}


@pytest.mark.parametrize("name", [slow(n) if n in SLOW else n for n in NAMES_OF_MISTAKES])
def test_a_planted_mistake_is_a_sentence(tmp_path, name):
    script, words, said = mistakes(tmp_path)[name]
    code, text, last = run(tmp_path, script, *words)
    assert code == 1 and "Traceback" not in text and BUG not in text, text[-2000:]
    program = (
        script if script.startswith("train") else script.rpartition("/")[2].removesuffix(".py")
    )
    assert last.startswith(f"{program}: ") and said in last and text.count(last) == 1


@pytest.mark.parametrize("flag", [True, slow(False)])
def test_debugging_reaches_processes(tmp_path, flag):
    script, words, said = mistakes(tmp_path)["label in two processes"]
    environment = {} if flag else {DEBUG: "1"}
    words = ["--debug", *words] if flag else words
    code, text, last = run(tmp_path, script, *words, **environment)
    assert code == 1 and said in last and "AnnotationError: " in text and "Traceback" in text


def test_every_mistake_is_tried(tmp_path):
    assert tuple(mistakes(tmp_path)) == NAMES_OF_MISTAKES
