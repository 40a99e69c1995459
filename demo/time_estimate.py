"""How long training takes on this machine, measured before it begins."""

import itertools
import math
import re
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage

from rankseg_m2f.config import Config
from rankseg_m2f.engine.evaluate import EvaluationSet
from rankseg_m2f.engine.trainer import Trainer

ITERATIONS = 20
# Images or videos.
RECORDS = 6


@dataclass(frozen=True)
class Estimate:
    """What is left of a run, and seconds of its parts on this machine."""

    iterations: int
    per_iteration: float
    evaluations: int
    per_evaluation: float

    @property
    def seconds(self) -> float:
        """Of all that is left."""
        return self.iterations * self.per_iteration + self.evaluations * self.per_evaluation

    def __str__(self) -> str:
        return (
            f"{self.iterations} iterations of {self.per_iteration:.2f} s, "
            f"{self.evaluations} evaluations of {self.per_evaluation:.0f} s"
        )


def announce(cfgs: Sequence[Config]) -> None:
    """Print how long training and evaluating by these configs, one after another, will take."""
    left = [cfg for cfg in cfgs if finished_iterations(cfg) < cfg.SOLVER.MAX_ITER]
    if not left:
        return
    print(f"Measuring {ITERATIONS} iterations and a few images on this machine ...", flush=True)
    estimates = [estimate(cfg) for cfg in left]
    minutes = sum(one.seconds for one in estimates) / 60
    print(
        f"Training and evaluation will take about {minutes:.1f} minutes, more beside other work: "
        f"{'; '.join(map(str, estimates))}. Lines below say when it will be done (eta).",
        flush=True,
    )


def finished_iterations(cfg: Config) -> int:
    """Iterations of the run in OUTPUT_DIR that `run_demo.trained` would go on with."""
    folder = Path(cfg.OUTPUT_DIR)
    if not is_run_of(cfg):
        return 0
    tag = folder / "last_checkpoint"
    name = tag.read_text(encoding="utf-8") if tag.is_file() else ""
    if name.startswith("model_final"):
        return cfg.SOLVER.MAX_ITER
    number = re.search(r"_(\d+)\.", name)
    return int(number[1]) + 1 if number else 0


def is_run_of(cfg: Config) -> bool:
    """Whether the run in OUTPUT_DIR has this config."""
    dumped = Path(cfg.OUTPUT_DIR) / "config.yaml"
    return dumped.is_file() and dumped.read_text(encoding="utf-8") == cfg.dump()


def estimate(cfg: Config) -> Estimate:
    """Measure some iterations, then some records of each test dataset, on a model of its own."""
    done, period = finished_iterations(cfg), cfg.TEST.EVAL_PERIOD
    total = cfg.SOLVER.MAX_ITER
    # The last evaluation comes after training, whatever the period.
    evaluations = math.ceil(total / period) - done // period if period else 1
    with tempfile.TemporaryDirectory() as folder:
        trial = cfg.clone()
        trial.defrost()
        trial.OUTPUT_DIR = folder
        trial.freeze()
        trainer = Trainer(trial, seed=0)
        trainer.load_data()
        per_iteration = typical(iteration_seconds(trainer, min(ITERATIONS, total)))
        per_evaluation = sum(
            typical(record_seconds(trainer, test)) * len(test.loader.dataset)
            for test in trainer.evaluation_sets()
        )
    return Estimate(total - done, per_iteration, evaluations, per_evaluation)


def iteration_seconds(trainer: Trainer, count: int) -> Iterator[float]:
    """Time of each of the first iterations."""
    trainer.model.train()
    with EventStorage() as storage:
        for trainer.iter in range(count):
            start = time.perf_counter()
            trainer.run_step()
            storage.step()
            yield time.perf_counter() - start


def record_seconds(trainer: Trainer, test: EvaluationSet) -> Iterator[float]:
    """Time of the first records, from file to evaluator."""
    trainer.model.eval()
    test.evaluators.reset()
    with torch.no_grad():
        start = time.perf_counter()
        for inputs in itertools.islice(test.loader, RECORDS):
            test.evaluators.process(inputs, trainer.model(inputs))
            yield time.perf_counter() - start
            start = time.perf_counter()


def typical(seconds: Iterable[float]) -> float:
    """The mean without the first quarter, in which processes start and memory is laid out."""
    measured = list(seconds)
    return statistics.fmean(measured[len(measured) // 4 :])
