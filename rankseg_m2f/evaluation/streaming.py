"""What all our evaluators share: statistics per image or clip, gathered, saved, then summed up.

Metrics are computed from what is saved, so a paired bootstrap can redo them on any resample.

Shapes: N images, K labels, R resamples.
"""

import logging
import os
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from rankseg_m2f.evaluation.ground_truth import GroundTruth
from rankseg_m2f.files import replacing

logger = logging.getLogger(__name__)
Statistics = dict[str, np.ndarray]


@runtime_checkable
class NamesMetrics(Protocol):
    """An evaluator that says beforehand what it will measure.

    Attributes:
        task: key of its results.
        metrics: names in it, but for those of single labels.
    """

    task: str
    metrics: tuple[str, ...]


class StreamingEvaluator(DatasetEvaluator):
    """Keeps a few numbers per image, never a prediction.

    Attributes:
        output_key: entry of the model's output that is evaluated; images without it are skipped.
        task: key of the results.
        kind: part of the file name of the saved statistics.
        fields: of the rows by image and label; metrics depend on their sums over images alone.
    """

    output_key: str
    task: str
    kind: str
    fields: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        output_dir: str | os.PathLike | None = None,
        truth: GroundTruth | None = None,
    ):
        """
        Args:
            name: of the dataset.
            output_dir: where `per_image_{kind}_{name}.npz` is written; None: nowhere.
            truth: the dataset's; None: read from Detectron2's catalog.
        """
        self.name = name
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.truth = GroundTruth.from_dataset(name) if truth is None else truth
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._images: dict[str, Statistics] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in the results of some images or clips; `inputs` need what the truth's key does."""
        for given, output in zip(inputs, outputs, strict=True):
            if self.output_key in output:
                # By key: an image that two processes have seen counts once.
                key = self.truth.key(given)
                self._images[key] = self.statistics(key, output)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Metrics over the images of all processes: {task: {metric: value}}; {} but on rank 0."""
        gathered = comm.gather(self._images, dst=0)
        if not comm.is_main_process():
            return {}
        images = merged(gathered)
        if not images:
            logger.info(
                "%s: no %s has %s, nothing to evaluate",
                self.name,
                self.truth.unit,
                self.output_key,
            )
            return {}
        arrays = self.collect(images)
        if self.output_dir is not None:
            path = self.output_dir / f"per_image_{self.kind}_{self.name}.npz"
            save_statistics(path, {**describe(self.truth, list(images)), **arrays})
        return OrderedDict({self.task: self.summarise(arrays)})

    @abstractmethod
    def statistics(self, key: str, output: dict) -> Statistics:
        """One image's numbers; the key is the truth's."""

    def collect(self, images: dict[str, Statistics]) -> Statistics:
        """All images' numbers, given by key, in the form in which they are saved."""
        return sparse_rows(list(images.values()))

    @abstractmethod
    def summarise(self, arrays: Statistics) -> dict[str, float]:
        """Metrics from `collect`'s result."""

    def resampled(self, arrays: Statistics, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of resamples, by `summarise`; without those of single labels.

        Args:
            arrays: `collect`'s result.
            counts: (R, N) int64, how often each resample has each image.

        Returns:
            Metric -> (R,) float64.
        """
        rows = [self.summarise(resample) for resample in self.resamples(arrays, counts)]
        return {key: np.array([r[key] for r in rows]) for key in rows[0] if "-" not in key}

    def resamples(self, arrays: Statistics, counts: np.ndarray) -> Iterator[Statistics]:
        """What `summarise` takes, of each resample; arguments of `resampled`."""
        shape = (counts.shape[1], self.truth.num_labels)
        sums = {}
        for field in self.fields:
            dense = np.zeros(shape)
            dense[arrays["image"], arrays["label"]] = arrays[field]
            sums[field] = counts @ dense
        for i in range(len(counts)):
            yield {"label": np.arange(shape[1]), **{f: sums[f][i] for f in self.fields}}


def save_statistics(path: Path, arrays: Statistics) -> None:
    """Write an npz, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def describe(truth: GroundTruth, keys: list[str]) -> Statistics:
    """What saved statistics need to be read without the dataset.

    `keys` name images wherever the dataset lies, see `label_scores.record_key`; `units` are what a
    bootstrap may draw independently: images, or all clips of a video.
    """
    return {
        "file_names": np.array(keys),
        "keys": np.array([truth.portable_key(key) for key in keys]),
        "units": np.array([truth.unit_of(key) for key in keys]),
        "label_names": np.array(truth.label_names),
        "thing_ids": np.array(sorted(truth.thing_ids), dtype=np.int64),
        "has_maps": np.array(truth.has_maps),
    }


def sparse_rows(images: list[Statistics]) -> Statistics:
    """Concatenate 1-d fields; `image` says which of the images each row is of."""
    rows = {key: np.concatenate([image[key] for image in images]) for key in images[0]}
    lengths = [len(image["label"]) for image in images]
    return {"image": np.repeat(np.arange(len(images)), lengths), **rows}


def sum_by_label(arrays: Statistics, field: str, num_labels: int) -> np.ndarray:
    """(K,) float64: a field's sum over all rows of each label."""
    return np.bincount(arrays["label"], arrays[field], minlength=num_labels)


def percent_of(values: np.ndarray) -> float:
    """Mean in percent of what is not NaN; NaN when nothing is left."""
    known = values[~np.isnan(values)]
    return 100 * float(known.mean()) if known.size else float("nan")


def merged(parts: list[dict]) -> dict:
    """What all processes have seen, by key; sorted, so that no sum depends on their number."""
    images = {key: image for part in parts for key, image in part.items()}
    return {key: images[key] for key in sorted(images)}
