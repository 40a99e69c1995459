"""Whether two runs differ: a paired bootstrap over the images both were judged on.

Shapes: N images, U units (images, or videos whose clips are drawn together), R resamples, S runs.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from rankseg_m2f.errors import UserError
from rankseg_m2f.evaluation.error_analysis import ErrorEvaluator
from rankseg_m2f.evaluation.matches import MaskApFromMatches
from rankseg_m2f.evaluation.multi_label import MultiLabelEvaluator
from rankseg_m2f.evaluation.panoptic import PanopticEvaluator
from rankseg_m2f.evaluation.semantic import SemanticEvaluator
from rankseg_m2f.evaluation.streaming import Statistics, StreamingEvaluator
from rankseg_m2f.evaluation.vspw import VideoSemanticEvaluator

KINDS = {
    evaluator.kind: evaluator
    for evaluator in (
        PanopticEvaluator,
        SemanticEvaluator,
        MaskApFromMatches,
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
    evaluator: StreamingEvaluator | MaskApFromMatches
    arrays: Statistics
    _drawn: dict[tuple[int, int], dict[str, np.ndarray]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, path: Path) -> "SavedStatistics":
        """From a file.

        Raises:
            UserError: no such statistics, or of an older version.
        """
        kind, _, dataset = path.stem.removeprefix("per_image_").partition("_")
        if kind not in KINDS:
            raise UserError(f"{path}: {kind!r} must be one of {', '.join(KINDS)}")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
        except (ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is broken, evaluate again: {error}") from error
        if "units" not in arrays:
            raise UserError(f"{path} is of an older version: evaluate again with --eval-only")
        truth = SavedTruth(
            arrays["label_names"].tolist(),
            set(arrays["thing_ids"].tolist()),
            bool(arrays["has_maps"]),
        )
        judge = VideoSemanticEvaluator if "vc_sum" in arrays else KINDS[kind]
        return cls(path, judge(dataset, truth=truth), arrays)

    @cached_property
    def num_units(self) -> int:
        """U."""
        return len(np.unique(self.arrays["units"]))

    @cached_property
    def metrics(self) -> dict[str, float]:
        """As the run gave them; without those of single labels."""
        results = self.evaluator.summarise(self.arrays)
        return {k: v for k, v in results.items() if "-" not in k and k not in _NO_METRIC}

    def resampled(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Metric -> (R,) float64, from (R, U) int64 counts of units in their sorted order."""
        _, unit_of_image = np.unique(self.arrays["units"], return_inverse=True)
        parts = [
            self.evaluator.resampled(self.arrays, counts[i : i + _CHUNK, unit_of_image])
            for i in range(0, len(counts), _CHUNK)
        ]
        return {k: np.concatenate([part[k] for part in parts]) for k in self.metrics}

    def drawn(self, resamples: int, seed: int) -> dict[str, np.ndarray]:
        """Metric -> (R,) float64 of U units drawn R times, the same for all runs of as many.

        Kept until others are asked for, since a run is compared with many.
        """
        if (resamples, seed) not in self._drawn:
            self._drawn = {
                (resamples, seed): self.resampled(_counts(self.num_units, resamples, seed))
            }
        return self._drawn[resamples, seed]


@lru_cache(maxsize=1)
def _counts(units: int, resamples: int, seed: int) -> np.ndarray:
    """(R, U) int64."""
    even = np.full(units, 1 / units)
    return np.random.default_rng(seed).multinomial(units, even, size=resamples)


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
    same_models: bool = False,
) -> list[Comparison]:
    """Compare the runs of two sides, all of one kind and dataset, in every metric.

    Each resample draws U units with replacement, the same for all runs. With several runs on a
    side, it also draws as many runs of it, so the interval holds for other seeds too. Of few runs
    such draws deviate too little: they are widened by sqrt(S / (S - 1)), and by what Student's t
    is wider than the normal distribution, with the degrees of freedom of Welch and Satterthwaite.

    Args:
        resamples: R.
        seed: of the draws.
        same_models: the n-th runs of both sides are one trained model, judged in two ways; they
            are drawn together. Otherwise each side's runs are drawn for themselves.

    Raises:
        UserError: the runs were not judged on the same images or labels, or with `same_models`
            one side has more runs.
    """
    _check_alike([*first, *second])
    if same_models and len(first) != len(second):
        raise UserError(f"{len(first)} and {len(second)} runs cannot be of the same models")
    rng = np.random.default_rng(seed)
    # (R, S) numbers of runs, for each group that is drawn for itself.
    picks = [
        rng.integers(len(side), size=(resamples, len(side)))
        for side in ([first] if same_models else [first, second])
    ]
    found = []
    for metric in first[0].metrics:
        values = tuple([run.metrics[metric] for run in side] for side in (first, second))
        drawn = [np.stack([r.drawn(resamples, seed)[metric] for r in s]) for s in (first, second)]
        sides = [(np.array(values[i]), drawn[i]) for i in (0, 1)]
        if same_models:
            sides = [(sides[0][0] - sides[1][0], sides[0][1] - sides[1][1])]
        differences = _resampled_difference(*zip(*sides, strict=True), picks)
        # A metric of labels that a resample may have none of is NaN there.
        differences = differences[~np.isnan(differences)]
        if len(differences) > 1 and not np.isnan(np.concatenate(values)).any():
            found.append(
                Comparison(
                    f"{first[0].evaluator.task}/{metric}",
                    values,
                    float(np.mean(values[0]) - np.mean(values[1])),
                    float(differences.std(ddof=1)),
                    tuple(np.percentile(differences, _COVERED).tolist()),
                )
            )
    return found


def _resampled_difference(
    values: Sequence[np.ndarray], drawn: Sequence[np.ndarray], picks: Sequence[np.ndarray]
) -> np.ndarray:
    """(R,) from groups of runs: one of differences, or two of which the second is taken off.

    Args:
        values: (S,) of each group's runs on all images.
        drawn: (S, R) of its runs in each resample.
        picks: (R, S) numbers of the runs that each resample draws.
    """
    tails = _tails(_freedom(values))
    means = [_mean_of_runs(d, p, tails) for d, p in zip(drawn, picks, strict=True)]
    return means[0] if len(means) == 1 else means[0] - means[1]


def _freedom(groups: Sequence[np.ndarray]) -> float:
    """Welch's and Satterthwaite's degrees of freedom of means (S,); infinite without spread."""
    spreads = [(np.var(g, ddof=1) / len(g), len(g) - 1) for g in groups if len(g) > 1]
    total = sum(variance for variance, _ in spreads)
    return total**2 / sum(v**2 / n for v, n in spreads) if total else np.inf


def _tails(freedom: float) -> float:
    """How much wider than the normal one Student's distribution is at the interval's ends."""
    if freedom > len(_STUDENT):
        square = _NORMAL**2
        first, second = (square + 1) / 4, (5 * square**2 + 16 * square + 3) / 96
        return 1 + first / freedom + second / freedom**2
    # Close to exponential in 1 / freedom between two whole numbers.
    known = 1 / np.arange(len(_STUDENT), 0, -1)
    return float(np.exp(np.interp(1 / freedom, known, np.log(_STUDENT[::-1])))) / _NORMAL


def _mean_of_runs(metric: np.ndarray, runs: np.ndarray, tails: float) -> np.ndarray:
    """(R,) means of a group from (S, R) values and (R, S) numbers of the runs drawn."""
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
        for name, what in ((images, "images"), ("label_names", "labels")):
            ours, theirs = (set(x.arrays[name].tolist()) for x in (first, run))
            if ours != theirs:
                example = min(ours ^ theirs)
                raise UserError(
                    f"{run.path} and {first.path} are not of the same {what}: {len(theirs)} and "
                    f"{len(ours)}, of which {len(ours & theirs)} in common; {example} is in one"
                )
