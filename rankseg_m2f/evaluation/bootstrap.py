"""Whether two runs differ: a paired bootstrap over the images both were judged on.

Shapes: N images, U units (images, or videos whose clips are drawn together), R resamples, S runs.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankseg_m2f.evaluation.errors import ErrorEvaluator
from rankseg_m2f.evaluation.labels import MultiLabelEvaluator
from rankseg_m2f.evaluation.matches import MatchJudge
from rankseg_m2f.evaluation.panoptic import PanopticEvaluator
from rankseg_m2f.evaluation.semantic import SemanticEvaluator
from rankseg_m2f.evaluation.streaming import Statistics, StreamingEvaluator
from rankseg_m2f.evaluation.vspw import VideoSemanticEvaluator

KINDS = {
    evaluator.kind: evaluator
    for evaluator in (
        PanopticEvaluator,
        SemanticEvaluator,
        MatchJudge,
        MultiLabelEvaluator,
        ErrorEvaluator,
    )
}
# Shares of errors: less is better. The others are settings and no metrics.
_LOWER = {"missed", "misclassified", "mask"}
_NO_METRIC = {"kappa", "clip_frames"}
# Resamples judged at a time, to bound memory.
_CHUNK = 100
_COVERED = (2.5, 97.5)
# The upper end for Student's t of 1, 2, ... degrees of freedom, and for the normal distribution.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL = 1.960


@dataclass
class SavedTruth:
    """What evaluators ask a `GroundTruth` for when they summarise."""

    label_names: list[str]
    thing_ids: set[int]
    has_maps: bool

    @property
    def num_labels(self) -> int:
        """K."""
        return len(self.label_names)


@dataclass
class SavedStatistics:
    """One file `per_image_{kind}_{dataset}.npz`.

    Attributes:
        path: the file.
        evaluator: of the kind that wrote it.
        arrays: its content.
    """

    path: Path
    evaluator: StreamingEvaluator | MatchJudge
    arrays: Statistics

    @classmethod
    def read(cls, path: Path) -> "SavedStatistics":
        """From a file.

        Raises:
            ValueError: no such statistics, or of an older version.
        """
        kind, _, dataset = path.stem.removeprefix("per_image_").partition("_")
        if kind not in KINDS:
            raise ValueError(f"{path}: {kind!r} is none of {', '.join(KINDS)}")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
        except (ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is broken, evaluate again: {error}") from error
        if "units" not in arrays:
            raise ValueError(f"{path} is of an older version: evaluate again with --eval-only")
        truth = SavedTruth(
            arrays["label_names"].tolist(),
            set(arrays["thing_ids"].tolist()),
            bool(arrays["has_maps"]),
        )
        judge = VideoSemanticEvaluator if "vc_sum" in arrays else KINDS[kind]
        return cls(path, judge(dataset, truth=truth), arrays)

    def metrics(self) -> dict[str, float]:
        """As the run gave them; without those of single labels."""
        results = self.evaluator.summarise(self.arrays)
        return {k: v for k, v in results.items() if "-" not in k and k not in _NO_METRIC}

    def resampled(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Metric -> (R,) float64, from (R, U) int64 counts of units in their sorted order."""
        _, unit_of_image = np.unique(self.arrays["units"], return_inverse=True)
        counts = counts[:, unit_of_image]
        parts = [
            self.evaluator.resampled(self.arrays, counts[i : i + _CHUNK])
            for i in range(0, len(counts), _CHUNK)
        ]
        return {k: np.concatenate([part[k] for part in parts]) for k in self.metrics()}


@dataclass
class Comparison:
    """Two sides in one metric.

    Attributes:
        metric: its name as "task/metric".
        values: of the runs of each side, in percent.
        difference: mean of the first side minus that of the second.
        error: standard deviation of the difference over resamples, widened as in `compare`.
        interval: that 95 % of the resampled differences are in.
    """

    metric: str
    values: tuple[list[float], list[float]]
    difference: float
    error: float
    interval: tuple[float, float]

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves out 0."""
        low, high = self.interval
        return low > 0 or high < 0

    def verdict(self, names: tuple[str, str] = ("A", "B")) -> str:
        """The result in words."""
        low, high = self.interval
        if not self.distinguishable:
            return (
                f"difference not distinguishable from noise, 95 % interval [{low:.2f}, {high:.2f}]"
            )
        less_wanted = self.metric.split("/")[1] in _LOWER
        better = names[(self.difference < 0) != less_wanted]
        if self.difference < 0:
            low, high = -high, -low
        return (
            f"{better} is better by {abs(self.difference):.2f} ± {self.error:.2f}, "
            f"95 % interval [{low:.2f}, {high:.2f}]"
        )


def compare(
    first: Sequence[SavedStatistics],
    second: Sequence[SavedStatistics],
    resamples: int = 1000,
    seed: int = 0,
) -> list[Comparison]:
    """Compare the runs of two sides, all of one kind and dataset, in every metric.

    Each resample draws U units with replacement, the same for all runs. With several runs on a
    side, it also draws as many runs of it, independently of the other side, so the interval holds
    for other seeds too. Of few runs such draws deviate too little: they are widened by
    sqrt(S / (S - 1)), and by what Student's t is wider than the normal distribution.

    Args:
        resamples: R.
        seed: of the draws.

    Raises:
        ValueError: the runs were not judged on the same images or labels.
    """
    _check_alike([*first, *second])
    units = len(np.unique(first[0].arrays["units"]))
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(units, np.full(units, 1 / units), size=resamples)
    values, drawn = [], []
    tails = _tails(sum(len(side) - 1 for side in (first, second)))
    for side in (first, second):
        values.append([run.metrics() for run in side])
        judged = [run.resampled(counts) for run in side]
        runs = rng.integers(len(side), size=(resamples, len(side)))
        drawn.append(
            {k: _mean_of_runs(np.stack([j[k] for j in judged]), runs, tails) for k in judged[0]}
        )
    found = []
    for metric in values[0][0]:
        ours, theirs = ([run[metric] for run in side] for side in values)
        differences = drawn[0][metric] - drawn[1][metric]
        # A metric of labels that a resample may have none of is NaN there.
        differences = differences[~np.isnan(differences)]
        if len(differences) > 1 and not np.isnan([*ours, *theirs]).any():
            found.append(
                Comparison(
                    f"{first[0].evaluator.task}/{metric}",
                    (ours, theirs),
                    float(np.mean(ours) - np.mean(theirs)),
                    float(differences.std(ddof=1)),
                    tuple(np.percentile(differences, _COVERED).tolist()),
                )
            )
    return found


def _tails(freedom: int) -> float:
    """How much wider than the normal one Student's distribution is at the interval's ends."""
    if freedom < 1:
        return 1.0
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1] / _NORMAL
    return 1 + (_NORMAL**2 + 1) / (4 * freedom)


def _mean_of_runs(metric: np.ndarray, runs: np.ndarray, tails: float) -> np.ndarray:
    """(R,) means of a side from (S, R) values and (R, S) numbers of the runs drawn."""
    mean = metric.mean(0)
    if len(metric) == 1:
        return mean
    drawn = np.take_along_axis(metric, runs.T, axis=0).mean(0)
    return mean + (drawn - mean) * tails * np.sqrt(len(metric) / (len(metric) - 1))


def _check_alike(runs: Sequence[SavedStatistics]) -> None:
    first = runs[0]
    # Runs of machines with the dataset in different places have the same keys; the matches of
    # Average Precision have ids alone.
    images = "keys" if all("keys" in run.arrays for run in runs) else "file_names"
    for run in runs[1:]:
        for field, what in ((images, "images"), ("label_names", "labels")):
            ours, theirs = (set(x.arrays[field].tolist()) for x in (first, run))
            if ours != theirs:
                example = min(ours ^ theirs)
                raise ValueError(
                    f"{run.path} and {first.path} are not of the same {what}: {len(theirs)} and "
                    f"{len(ours)}, of which {len(ours & theirs)} in common; {example} is in one"
                )
