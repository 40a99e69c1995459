"""The moving average of weights, the best model, and early stopping."""

import copy
import json
import math

import pytest
import torch
from conftest import ROOT
from torch import nn

from rankseg_m2f.engine import trainer as trainer_module
from rankseg_m2f.engine.best_model import build_best_model
from rankseg_m2f.engine.ema import WeightAverage
from rankseg_m2f.engine.main import load_config
from rankseg_m2f.engine.trainer import Trainer
from rankseg_m2f.errors import UserError
from rankseg_m2f.weights.file import read_weights

CLASSIFIER = ROOT / "configs" / "scenes" / "labels" / "classifier.yaml"
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RANKSEG.HIDDEN_DIM": "32",
    "INPUT.IMAGE_SIZE": "32",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "6",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "SOLVER.EMA_DECAY": "0.75",
    "TEST.EARLY_STOPPING.METRIC": "",
    "TEST.EARLY_STOPPING.PATIENCE": "0",
    "DATASETS.TEST": "()",
}


class Linear(nn.Linear):
    """Weights that are set by hand; a counter and a running mean beside them."""

    def __init__(self):
        super().__init__(1, 1, bias=False)
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("count", torch.tensor(0))

    def set(self, weight, mean, count):
        with torch.no_grad():
            self.weight.fill_(weight), self.mean.fill_(mean), self.count.fill_(count)

    def values(self):
        return self.weight.item(), self.mean.item(), self.count.item()


def test_the_average_is_what_a_pencil_says():
    model = Linear()
    model.set(8, 0, 0)
    average = WeightAverage(model, 0.75)
    for weight, mean, count in ((4, 16, 1), (0, 32, 2)):
        model.set(weight, mean, count)
        average.update()
    # 8 -> 6 + 1 = 7 -> 5.25 + 0; 0 -> 0 + 4 -> 3 + 8; what is no float is the model's.
    assert model.values() == (0, 32, 2)
    with average.applied():
        assert model.values() == (5.25, 11, 2)
        with average.applied():
            assert model.values() == (5.25, 11, 2)
        assert average.weights["weight"].item() == 0
    assert model.values() == (0, 32, 2) and average.weights["weight"].item() == 0
    with pytest.raises(RuntimeError), average.applied():
        raise RuntimeError
    assert model.values() == (0, 32, 2)
    average.restart()
    with average.applied():
        assert model.values() == (0, 32, 2)


def test_a_resumed_average_goes_on_exactly():
    whole, half = Linear(), Linear()
    averages = WeightAverage(whole, 0.9), WeightAverage(half, 0.9)
    half.load_state_dict(whole.state_dict()), averages[1].restart()
    resumed = Linear()
    for step in range(6):
        if step == 3:
            with averages[1].applied():
                saved = copy.deepcopy((half.state_dict(), averages[1].weights))
            resumed.load_state_dict(saved[0])
            averages = averages[0], WeightAverage(resumed, 0.9)
            averages[1].resume(saved[1])
            half = resumed
        for model, average in zip((whole, half), averages, strict=True):
            model.set(math.sin(step), math.cos(step), step)
            average.update()
    with averages[0].applied(), averages[1].applied():
        assert whole.values() == resumed.values()
    with pytest.raises(ValueError, match=r"another model's \(count|another model's \(other"):
        averages[0].resume({**averages[0].weights, "other": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"EMA_DECAY=1.0 is not in \[0, 1\)"):
        WeightAverage(whole, 1.0)


@pytest.fixture
def start(scenes, monkeypatch):
    """Makes a trainer of the small classifier that writes to a folder."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))

    def make(folder, *overrides, resume=False):
        settings = [word for pair in SMALL.items() for word in pair]
        cfg = load_config(str(CLASSIFIER), [*settings, "OUTPUT_DIR", str(folder), *overrides])
        folder.mkdir(exist_ok=True)
        torch.manual_seed(5)
        trainer = Trainer(cfg, seed=1)
        trainer.resume_or_load(resume)
        return trainer

    return make


def last(folder):
    return read_weights(folder / "model_final.pth")


def test_resuming_a_run_with_an_average_changes_nothing(start, tmp_path):
    trainer = start(tmp_path / "whole")
    trainer.train()
    whole = last(tmp_path / "whole")
    # Cut off behind the checkpoint of the fourth step.
    (tmp_path / "cut").mkdir()
    name = "model_0000003.pth"
    (tmp_path / "cut" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    (tmp_path / "cut" / "last_checkpoint").write_text(name)
    start(tmp_path / "cut", resume=True).train()
    resumed = last(tmp_path / "cut")
    for name, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][name]), name
        if value.is_floating_point():
            assert torch.equal(
                whole["trainer"]["weights"][name], resumed["trainer"]["weights"][name]
            )
    # The model saved is the average, the one that goes on training is not.
    model = trainer.checkpointer.model.state_dict()
    assert torch.equal(model["ml_head.fc.W"], whole["trainer"]["weights"]["ml_head.fc.W"])
    assert not torch.equal(model["ml_head.fc.W"], whole["model"]["ml_head.fc.W"])
    with pytest.raises(ValueError, match=r"moving average: give the SOLVER\.EMA_DECAY"):
        start(tmp_path / "cut", "SOLVER.EMA_DECAY", "0.0", resume=True)
    # As a start for another run it is what was evaluated.
    weights = ("MODEL.WEIGHTS", str(tmp_path / "whole" / "model_final.pth"))
    tuned = start(tmp_path / "tuned", *weights)
    assert tuned.start_iter == 0
    with tuned.averaged():
        assert torch.equal(
            tuned.checkpointer.model.state_dict()["ml_head.fc.W"], whole["model"]["ml_head.fc.W"]
        )


def test_an_average_can_begin_in_a_resumed_run(start, tmp_path):
    start(tmp_path, "SOLVER.EMA_DECAY", "0.0", "SOLVER.MAX_ITER", "2").train()
    plain = last(tmp_path)
    assert "weights" not in plain["trainer"]
    trainer = start(tmp_path, resume=True)
    with trainer.averaged():
        for name, value in trainer.checkpointer.model.state_dict().items():
            assert torch.equal(value, plain["model"][name]), name


STOPPING = (
    *("TEST.EARLY_STOPPING.METRIC", "labels/mAP", "TEST.EARLY_STOPPING.PATIENCE", "2"),
    *("TEST.EVAL_PERIOD", "1", "SOLVER.MAX_ITER", "9", "DATASETS.TEST", "('scenes_panoptic_val',)"),
)
# By number of the step: the best is the third; the sixth would be better.
METRICS = [10.0, 30.0, float("nan"), 40.0, 40.0, 20.0, 50.0, 60.0, 70.0]


@pytest.fixture
def scripted(monkeypatch):
    """Evaluation gives METRICS of the step it is asked at; the steps at which it was."""
    steps = []

    def evaluate(cfg, model, tests):
        steps.append(len(steps))
        return {"labels": {"mAP": METRICS[steps[-1]]}}

    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    return steps


def test_training_stops_after_patience_and_keeps_the_best(start, tmp_path, scripted):
    start(tmp_path, *STOPPING).train()
    assert scripted == [0, 1, 2, 3, 4, 5]
    best, final = read_weights(tmp_path / "model_best.pth"), last(tmp_path)
    assert best["iteration"] == 3 and final["iteration"] == 5
    assert final["trainer"]["hooks"]["BestModel"] == {"best": 40.0, "stale": 2}
    logged = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert logged[-1]["labels/mAP"] == 20.0
    # A run that has ended is not taken up again.
    trainer = start(tmp_path, *STOPPING, resume=True)
    trainer.train()
    assert scripted == [0, 1, 2, 3, 4, 5] and trainer.iter == 6


def test_a_resumed_run_stops_where_the_whole_one_does(start, tmp_path, scripted):
    start(tmp_path, *STOPPING, "SOLVER.CHECKPOINT_PERIOD", "1").train()
    whole = last(tmp_path)
    for step in (2, 4):
        # As if killed behind the checkpoint of this step, which knows of its evaluation.
        name = f"model_{step:07d}.pth"
        folder = tmp_path / str(step)
        folder.mkdir()
        (folder / name).write_bytes((tmp_path / name).read_bytes())
        (folder / "last_checkpoint").write_text(name)
        del scripted[step + 1 :]
        start(folder, *STOPPING, resume=True).train()
        assert scripted == [0, 1, 2, 3, 4, 5]
        resumed = last(folder)
        assert resumed["iteration"] == 5
        assert torch.equal(whole["model"]["ml_head.fc.W"], resumed["model"]["ml_head.fc.W"])
        assert (folder / "model_best.pth").exists() == (step < 3)


def test_an_unknown_metric_loses_no_training(start, tmp_path, monkeypatch):
    results = {"labels": {"mAP": 1.0, "AP-sky": 2.0, "AP-yes/no": 3.0}}
    monkeypatch.setattr(trainer_module, "evaluate", lambda cfg, model, tests: results)
    period = ("TEST.EVAL_PERIOD", "2", "SOLVER.MAX_ITER", "3")
    # Metrics of single labels are known when they have been measured.
    wrong = (*STOPPING, *period, "TEST.EARLY_STOPPING.METRIC", "labels/AP-sea")
    with pytest.raises(UserError, match=r"METRIC='labels/AP-sea' must be one of labels/mAP$"):
        start(tmp_path, *wrong).train()
    assert read_weights(tmp_path / "model_0000001.pth")["iteration"] == 1
    trainer = start(tmp_path, *STOPPING, *period, resume=True)
    assert trainer.start_iter == 2
    # The last evaluation comes after the last checkpoint.
    with pytest.raises(UserError, match="must be one of"):
        start(tmp_path, *wrong, resume=True).train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_the_best_is_kept_without_stopping_too(start, tmp_path, scripted):
    start(tmp_path, *STOPPING, "TEST.EARLY_STOPPING.PATIENCE", "0").train()
    assert len(scripted) == 9  # the last one after training
    assert last(tmp_path)["iteration"] == 8
    assert read_weights(tmp_path / "model_best.pth")["iteration"] == 9


def test_processes_follow_the_first(start, tmp_path, scripted, monkeypatch):
    hook = start(tmp_path, *STOPPING).best_model
    others = {"labels/mAP": 33.0}
    monkeypatch.setattr(
        "rankseg_m2f.engine.best_model.comm.all_gather", lambda mine: [others, mine]
    )
    monkeypatch.setattr(hook.trainer.checkpointer, "save", lambda *a, **k: None)
    hook.trainer.iter = 0
    hook.judge({})
    assert hook.best == 33.0


def test_keys_that_do_not_fit_are_named(start, tmp_path, scripted):
    for odd, words in {
        ("TEST.EARLY_STOPPING.METRIC", ""): "PATIENCE needs a METRIC",
        ("DATASETS.TEST", "()"): "'labels/mAP' is never measured",
        ("TEST.EVAL_PERIOD", "0"): "'labels/mAP' is never measured",
    }.items():
        with pytest.raises(ValueError, match=words):
            start(tmp_path, *STOPPING, *odd)
    for metric in ("labels/MAP", "mAP", "sem_seg/VC8", "scenes_panoptic_val/labels/mAP"):
        trainer = start(tmp_path, *STOPPING, "TEST.EARLY_STOPPING.METRIC", metric)
        with pytest.raises(UserError, match=rf"METRIC='{metric}' must be one of .*labels/mAP"):
            trainer.train()
    assert build_best_model(start(tmp_path).cfg) is None
