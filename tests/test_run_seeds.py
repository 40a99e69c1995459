"""The multi-seed runner: strict files, all devices busy, failures named, nothing done twice."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_seeds
import yaml
from conftest import ROOT
from experiment import Experiment, check_overrides
from test_engine import DEMO, SETTINGS

# Stands in for train_net.py. MAX_ITER is what it does: 13 fails, 99 hangs unless it is resumed.
SCRIPT = """
import json, os, pathlib, sys, time
values = dict(zip(sys.argv[4::2], sys.argv[5::2]))
evaluates = "MODEL.WEIGHTS" in values
assert sys.argv[1] == "--config-file"
assert sys.argv[3] == ("--eval-only" if evaluates else "--resume")
folder = pathlib.Path(values["OUTPUT_DIR"])
half_done = (folder / "last_checkpoint").exists()
with (folder / "calls").open("a") as file:
    print(os.getpid(), file=file)
(folder / "last_checkpoint").write_text("model_0000001.pth")
if values["SOLVER.MAX_ITER"] == "13":
    sys.exit(7)
while values["SOLVER.MAX_ITER"] == "99" and not half_done:
    time.sleep(0.05)
results = folder / "inference" / "toy" / "results.json"
results.parent.mkdir(parents=True, exist_ok=True)
score = pathlib.Path(values["MODEL.WEIGHTS"]).stat().st_size if evaluates else int(values["SEED"])
score += (10 if values.get("MODEL.RANKSEG.TOPK") == "5" else 0)
metrics = {"mIoU": score, "IoU-sky": 1.0, "fwIoU": None}
results.write_text(json.dumps({"sem_seg": metrics}))
(folder / "model_final.pth").write_text("x" * 50)
print("device", os.environ["CUDA_VISIBLE_DEVICES"], values["MODEL.DEVICE"])
"""


@pytest.fixture
def write(tmp_path):
    """Writes an experiment's file with changes on top."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def write(**changes):
        content = {
            "name": "toy",
            "config": "configs/scenes/panoptic/demo-rankseg.yaml",
            "script": str(script),
            "common": ["SOLVER.MAX_ITER", 5],
            "settings": {"plain": [], "few": ["MODEL.RANKSEG.TOPK", 5]},
            "seeds": [1, 3],
            **changes,
        }
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
        return path

    return write


def arguments(path, *more):
    return [str(path), "--output", str(path.parent / "out"), "--cpu", *more]


def calls(folder: Path) -> list[int]:
    path = folder / "calls"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait_for(condition):
    deadline = time.time() + 60
    while not condition():
        assert time.time() < deadline, "nothing happened"
        time.sleep(0.02)


def test_every_setting_runs_with_every_seed_once(write, tmp_path, capsys):
    path = write()
    assert run_seeds.main(arguments(path, "--jobs", "2")) is None
    shown = capsys.readouterr().out
    assert (
        "0 of 4 runs are finished" in shown and "[4/4] finished" in shown and "min left]" in shown
    )
    out = tmp_path / "out" / "toy"
    result = json.loads((out / "few" / "seed3" / "results.json").read_text())
    assert result["metrics"] == {"toy": {"sem_seg": {"mIoU": 13, "IoU-sky": 1.0, "fwIoU": None}}}
    assert result["seed"] == 3 and result["setting"] == "few" and not result["resumed"]
    assert result["overrides"] == ["SOLVER.MAX_ITER", "5", "MODEL.RANKSEG.TOPK", "5"]
    assert result["config"] == "configs/scenes/panoptic/demo-rankseg.yaml"
    assert result["device"] and result["wall_seconds"] > 0
    assert len(result["revision"].removesuffix("-dirty")) == 40
    assert "device  cpu" in (out / "few" / "seed3" / "run.log").read_text()
    with (out / "results.csv").open() as file:
        rows = {(r["setting"], r["metric"]): r for r in csv.DictReader(file)}
    assert set(rows) == {("plain", "toy/sem_seg/mIoU"), ("few", "toy/sem_seg/mIoU")}
    row = rows["few", "toy/sem_seg/mIoU"]
    assert (float(row["mean"]), float(row["std"]), row["runs"]) == (12, pytest.approx(2**0.5), "2")
    assert run_seeds.main(arguments(write(seeds=[1, 3, 4]))) is None
    assert "4 of 6 runs are finished" in capsys.readouterr().out
    assert [len(calls(out / s / f"seed{i}")) for s in ("plain", "few") for i in (1, 3, 4)] == [
        1
    ] * 6


def test_failures_are_named_and_do_not_stop_the_others(write, tmp_path, capsys):
    path = write(settings={"bad": ["SOLVER.MAX_ITER", 13], "good": []}, seeds=[1])
    assert run_seeds.main(arguments(path)) == "run_seeds: 1 of 2 runs failed"
    assert "FAILED: bad, seed 1: exit code 7; see " in capsys.readouterr().out
    assert (tmp_path / "out" / "toy" / "good" / "seed1" / "results.json").is_file()
    run_seeds.main(arguments(path))
    assert "resumed: bad, seed 1" in capsys.readouterr().out  # tried again, the other not
    assert len(calls(tmp_path / "out" / "toy" / "good" / "seed1")) == 1


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_runner_goes_on_where_it_was(write, tmp_path, capsys, by):
    path = write(settings={"a": [], "slow": ["SOLVER.MAX_ITER", 99], "z": []}, seeds=[1])
    out = tmp_path / "out" / "toy"
    runner = subprocess.Popen(
        [sys.executable, "-W", "ignore", "research/run_seeds.py", *arguments(path)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: calls(out / "slow" / "seed1"))
    runner.send_signal(by)
    assert runner.wait() != 0
    (child,) = calls(out / "slow" / "seed1")
    if by == signal.SIGKILL:
        # Nobody could stop the run, which must not be started beside itself.
        assert run_seeds.main(arguments(path)) == "run_seeds: 1 of 3 runs failed"
        assert "another process works in" in capsys.readouterr().out
        os.kill(child, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{child}").exists())
    assert not Path(f"/proc/{child}").exists()
    assert run_seeds.main(arguments(path)) is None
    assert "resumed: slow, seed 1" in capsys.readouterr().out
    assert json.loads((out / "slow" / "seed1" / "results.json").read_text())["resumed"]
    assert [len(calls(out / s / "seed1")) for s in ("a", "slow", "z")] == [1, 2, 1]


def test_finished_runs_are_judged_again(write, tmp_path, capsys):
    path = write(
        settings={"bad": ["SOLVER.MAX_ITER", 13], "good": []},
        evaluate={n: {"few": ["MODEL.RANKSEG.TOPK", 5]} for n in ("bad", "good")},
    )
    # Runs that failed are not evaluated, and are named once.
    assert run_seeds.main(arguments(path)) == "run_seeds: 2 of 8 runs failed"
    out = tmp_path / "out" / "toy"
    assert not (out / "bad" / "seed1" / "evaluate").exists()
    result = json.loads((out / "good" / "seed3" / "evaluate" / "few" / "results.json").read_text())
    assert result["metrics"]["toy"]["sem_seg"]["mIoU"] == 60  # of model_final.pth, and κ
    assert (result["setting"], result["seed"]) == ("good/few", 3)
    assert result["overrides"] == ["SOLVER.MAX_ITER", "5", "MODEL.RANKSEG.TOPK", "5"]
    with (out / "results.csv").open() as file:
        means = {r["setting"]: (float(r["mean"]), r["runs"]) for r in csv.DictReader(file)}
    assert means == {"good": (2, "2"), "good/few": (60, "2")}
    run_seeds.main(arguments(path))
    assert "4 of 8 runs are finished" in capsys.readouterr().out
    assert len(calls(out / "good" / "seed1" / "evaluate" / "few")) == 1


def test_results_of_other_settings_are_not_taken_for_these(write):
    assert run_seeds.main(arguments(write(settings={"a": []}, seeds=[1]))) is None
    other = write(settings={"a": []}, seeds=[1], common=[])
    with pytest.raises(
        SystemExit, match=r"is of another run \(overrides changed\): choose another"
    ):
        run_seeds.main(arguments(other))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seeds": None}, "'seeds' is unknown or missing"),
        ({"speed": 1}, "'speed' is unknown or missing"),
        ({"name": "a/b"}, "name 'a/b' must be letters"),
        ({"config": "gone.yaml"}, "config 'gone.yaml' is not a file"),
        ({"seeds": [1, 1]}, "seeds must be different numbers"),
        ({"seeds": [True]}, "seeds must be different numbers"),
        ({"seeds": []}, "seeds must be different numbers"),
        ({"settings": {}}, "settings must be a table"),
        ({"settings": {"..": []}}, "settings '..' must be letters"),
        ({"settings": {"a": ["SOLVER.MAX_ITER"]}}, "settings.a must be a list of KEY, value"),
        ({"settings": {"a": "table9"}}, "settings.a: configs/ablations.json has no row 'table9'"),
        ({"evaluate": ["a"]}, "evaluate must be a table of setting"),
        ({"evaluate": {"gone": {"a": []}}}, "evaluate.gone is not one of the settings"),
        ({"evaluate": {"few": {"a/b": []}}}, "evaluate.few 'a/b' must be letters"),
        ({"evaluate": {"few": {"a": ["NO", 1]}}}, "setting 'few/a': unknown config key"),
        ({"common": ["SEED", 3]}, "common sets SEED, which the runner sets"),
        ({"settings": {"a": ["OUTPUT_DIR", "x"]}}, "settings.a sets OUTPUT_DIR"),
        ({"settings": {"a": ["SOLVER.MAX_ITTER", 1]}}, "setting 'a': unknown config key"),
        ({"settings": {"a": ["SOLVER.MAX_ITER", "many"]}}, "setting 'a': "),
    ],
)
def test_mistakes_in_the_file_are_one_line(write, changes, message):
    with pytest.raises(SystemExit, match=f"^run_seeds: .*{re.escape(message)}"):
        run_seeds.main(arguments(write(**changes)))


def test_files_that_are_no_table(tmp_path):
    path = tmp_path / "a.yaml"
    for text in ("[1, 2]", "a: [", "a: !!python/object/apply:os.getcwd []"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"a\.yaml (is not YAML|must be a table)"):
            Experiment.read(path)
    with pytest.raises(SystemExit, match=r"gone\.yaml"):
        run_seeds.main([str(tmp_path / "gone.yaml")])
    with pytest.raises(SystemExit, match="--jobs 0"):
        run_seeds.main(["--jobs", "0", str(example(path))])


def example(path):
    """The example at the top of the module."""
    text = sys.modules["experiment"].__doc__.partition("\n\n")[2]
    path.write_text(text)
    return path


def test_the_example_is_an_experiment(tmp_path):
    experiment = Experiment.read(example(tmp_path / "a.yaml"))
    check_overrides(experiment)
    jobs = list(experiment.jobs(tmp_path))
    assert len(jobs) == 9 and [job.seed for job in jobs[:3]] == [1, 1, 1]
    assert jobs[1].overrides == ("SOLVER.MAX_ITER", "500", "MODEL.RANKSEG.FLAG", "False")
    assert jobs[1].folder == tmp_path / "kappa" / "baseline" / "seed1"
    assert jobs[2].overrides[2:] == (
        "MODEL.RANKSEG.FLAG",
        "True",
        "MODEL.RANKSEG.TEMPERATURE",
        "shared",
    )


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert run_seeds.devices(3) == ["0", "1"] and run_seeds.devices(3, cpu=True) == [""] * 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert run_seeds.devices(1) == ["5", "GPU-7"]
    assert run_seeds.environment("GPU-7", 2)["CUDA_VISIBLE_DEVICES"] == "GPU-7"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run_seeds.environment("", 10**6)["OMP_NUM_THREADS"] == "1"
    # A second runner on the same machine needs the caller to share the cores out.
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run_seeds.environment("", 1)["OMP_NUM_THREADS"] == "3"


def test_a_real_run(write, scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    # One thread: several wait for each other, for seconds, where cores are taken.
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    common = [word for pair in SETTINGS.items() for word in pair]
    common += ["SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "1"]
    path = write(common=common, settings={"demo": []}, seeds=[7], script=None)
    assert Experiment.read(path).config == DEMO
    assert run_seeds.main(arguments(path)) is None
    folder = tmp_path / "out" / "toy" / "demo" / "seed7"
    metrics = json.loads((folder / "results.json").read_text())["metrics"]["scenes_panoptic_val"]
    assert {"panoptic_seg", "sem_seg", "labels"} <= metrics.keys()
    # Killed after its last step and before its result: evaluates again.
    (folder / "results.json").unlink()
    assert run_seeds.main(arguments(path)) is None
    again = json.loads((folder / "results.json").read_text())
    assert again["resumed"] and again["metrics"]["scenes_panoptic_val"] == metrics
