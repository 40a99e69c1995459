"""Annotation files, images, lists and definitions spoilt at random end in results or a sentence.

Each mutant is registered, checked, loaded, mapped for training and evaluated, in a process that may
grow by 2 GiB and takes 20 s at most; what ends it wrongly is told as `mutant INDEX of seed SEED`:
run it again with `python tests/kinds/fuzz_watch.py SEED INDEX 1`.
"""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, TESTS

sys.path.append(str(TESTS / "kinds"))

import fuzz_watch
import fuzz_worker
from fuzz_mutants import mutant
from kinds_doors import Walk

SHORT, LONG, COMMANDS = (1, 96), (2, 2_400), (3, 12)
_CONFIGS = {
    False: ("train_net.py", "configs/scenes/panoptic/demo-rankseg.yaml"),
    True: ("train_net_video.py", "configs/video_scenes/instance/demo-rankseg.yaml"),
}
# Two iterations of a model of seconds, and its evaluation.
_SMALL = {
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "2",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": "64",
    "INPUT.CROP.SIZE": "(48,48)",
    "INPUT.MIN_SIZE_TRAIN": "(48,)",
    "INPUT.MIN_SIZE_TEST": "48",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": "8",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": "1",
    "MODEL.DEVICE": "cpu",
    "MODEL.RANKSEG.TOPK": "2",
    "TEST.EVAL_PERIOD": "0",
    "DATALOADER.NUM_WORKERS": "0",
}


def _assert_sound(seed: int, count: int) -> None:
    lines = fuzz_watch.fuzz(seed, count)
    assert len(lines) == count
    report = fuzz_watch.describe(seed, lines)
    assert not [line for line in lines if line["outcome"] == "wrong"], report
    outcomes = {line["outcome"] for line in lines}
    # Mutants of which none is refused, or all are, would test nothing.
    assert outcomes == {"results", "refused"}, report


def test_some_mutants():
    _assert_sound(*SHORT)


@pytest.mark.slow
def test_many_mutants():
    _assert_sound(*LONG)


def test_a_mutant_is_the_same_again(tmp_path):
    said, files = [], []
    for folder in ("first", "second"):
        made, how = mutant(5, 7, tmp_path / folder)
        said.append(how)
        paths = sorted(p for p in made.root.rglob("*") if p.is_file())
        files.append({p.relative_to(made.root): p.read_bytes() for p in paths})
    assert said[0] == said[1]
    assert files[0] == files[1]


def test_a_bug_is_told_from_a_refusal(monkeypatch):
    def broken(*_):
        raise KeyError("res6")

    monkeypatch.setattr(fuzz_worker, "walk", broken)
    *_, last = fuzz_worker.lines_of(1, 0)
    assert last["outcome"] == "wrong"
    assert "KeyError: 'res6'" in last["why"]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (Walk(refusals={"load": "it is broken"}), "names no file"),
        (Walk(refusals={"load": "/data/x.json:\nit is broken"}), "one line"),
        (Walk(refusals={"load": ""}), "one line"),
        (Walk(refusals={"map": "/data/x.png is broken"}), "the check finds nothing"),
        (Walk(problems=["it is broken"]), "problems name no file"),
    ],
)
def test_what_names_no_file_is_wrong(found, why, tmp_path):
    assert why in fuzz_worker.unsound(found, "/data")


def test_a_sentence_that_names_a_file_is_right():
    sentence = "/data/x.png is broken"
    assert fuzz_worker.unsound(Walk([sentence], refusals={"map": sentence}), "/data") is None


def test_a_process_that_dies_is_told_with_its_mutant(monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, os, sys\n"
        "first, last, path = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]\n"
        "for index in range(first, last):\n"
        "    with open(path, 'a') as file:\n"
        "        for outcome in ('begun', 'results'):\n"
        "            file.write(json.dumps({'index': index, 'outcome': outcome}) + chr(10))\n"
        "            file.flush()\n"
        "            if index == 2 and outcome == 'begun':\n"
        "                os.abort()\n"
    )
    monkeypatch.setattr(fuzz_watch, "WORKER", worker)
    lines = fuzz_watch.fuzz(seed=0, count=5)
    assert [line["outcome"] for line in lines] == ["results"] * 2 + ["wrong"] + ["results"] * 2
    assert "SIGABRT" in lines[2]["why"]


@pytest.mark.slow
@pytest.mark.parametrize("index", range(COMMANDS[1]))
def test_a_mutant_at_the_command_line(index, tmp_path):
    made, how = mutant(COMMANDS[0], index, tmp_path / "data")
    made.classes = type(made).classes
    checked = _run("tools/check_dataset.py", "own", "--definitions", made.root / "data.yaml")
    _assert_one_sentence(checked, made.root, how)
    program, config = _CONFIGS[made.is_video]
    settings = {
        **_SMALL,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": made.classes,
        "DATASETS.DEFINITIONS": f"['{made.root / 'data.yaml'}']",
        "DATASETS.TRAIN": "('own',)",
        "DATASETS.TEST": "('own',)",
        "INPUT.DATASET_MAPPER_NAME": made.mapper,
        "OUTPUT_DIR": tmp_path / "out",
        "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": made.mapper != "mask_former_instance",
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": made.mapper == "mask_former_instance",
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": made.mapper == "mask_former_panoptic",
    }
    options = [text for pair in settings.items() for text in pair]
    trained = _run(program, "--config-file", config, *options)
    _assert_one_sentence(trained, made.root, how)
    if checked.returncode == 0:
        assert trained.returncode == 0, f"{how}: the check finds nothing, but {trained.stdout}"


def _run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=180,
        check=False,
    )


def _assert_one_sentence(done: subprocess.CompletedProcess, root, how: str) -> None:
    """Exit 0, or an exit of its own that a line with a file explains; never a traceback."""
    assert "Traceback" not in done.stdout, f"{how}: {done.stdout[-2000:]}"
    assert done.returncode in (0, 1), f"{how}: exit {done.returncode}: {done.stdout[-500:]}"
    if done.returncode:
        assert str(root) in done.stdout, f"{how}: {done.stdout[-500:]}"
