"""Why pixels are wrong: their label was not selected, their region misclassified, or its mask bad.

Shapes: h, w image size; T frames of a clip; M labels that an image has.
"""

import os

import numpy as np

from rankseg_m2f.evaluation.ground_truth import GroundTruth, VideoTruth
from rankseg_m2f.evaluation.panoptic import overlaps, region_areas
from rankseg_m2f.evaluation.streaming import Statistics, StreamingEvaluator, sum_by_label

# What becomes of a labelled pixel, in the order in which it is asked.
OUTCOMES = ("correct", "missed", "misclassified", "mask")


class ErrorEvaluator(StreamingEvaluator):
    """Labelled pixels by what became of them, see `pixel_outcomes`.

    Results are shares in percent and sum up to 100. Regions are the segments of `panoptic_seg`,
    or all pixels of a label in `sem_seg`; those of a clip reach over all its frames. Crowds do not
    count among segments.
    """

    task = "errors"
    kind = "errors"
    fields = OUTCOMES

    def __init__(
        self,
        name: str,
        output_dir: str | os.PathLike | None = None,
        truth: GroundTruth | None = None,
        segments: bool = False,
    ):
        """
        Args:
            name: of a dataset with maps.
            output_dir: where `per_image_errors_{name}.npz` is written; None: nowhere.
            truth: the dataset's; None: read from Detectron2's catalog.
            segments: compare segments; the dataset needs panoptic PNGs.
        """
        self.output_key = "panoptic_seg" if segments else "sem_seg"
        super().__init__(name, output_dir, truth)

    def statistics(self, key: str, output: dict) -> Statistics:
        """See `pixel_outcomes`.

        Raises:
            AnnotationError: another size than the ground truth's.
        """
        ranking = output.get("label_ranking")
        selected = None if ranking is None else set(ranking.tolist())
        if self.output_key == "panoptic_seg":
            truth, true_segments = self.truth.segments(key)
            predicted, segments = output["panoptic_seg"]
            true_labels = {s["id"]: s["category_id"] for s in true_segments if not s.get("iscrowd")}
            labels = {s["id"]: s["category_id"] for s in segments}
        else:
            truth, predicted = self._label_maps(key), output["sem_seg"].argmax(0)
            true_labels = labels = {label: label for label in range(self.truth.num_labels)}
        try:
            return pixel_outcomes(truth, true_labels, predicted.cpu().numpy(), labels, selected)
        except ValueError as error:
            raise type(error)(f"{key}: {error}") from error

    def summarise(self, arrays: Statistics) -> dict[str, float]:
        """Shares from sums over images."""
        num_labels = self.truth.num_labels
        sums = {field: sum_by_label(arrays, field, num_labels).sum() for field in OUTCOMES}
        total = sum(sums.values())
        return {f: 100 * float(n / total) if total else float("nan") for f, n in sums.items()}

    def _label_maps(self, key: str) -> np.ndarray:
        if isinstance(self.truth, VideoTruth):
            return np.stack(list(self.truth.label_maps(key)))
        return self.truth.label_map(key)


def pixel_outcomes(
    truth: np.ndarray,
    true_labels: dict[int, int],
    predicted: np.ndarray,
    labels: dict[int, int],
    selected: set[int] | None = None,
) -> Statistics:
    """Pixels of each true label by what became of them.

    A pixel of another label than predicted is `missed` when its own was not selected. Else it is
    `misclassified` when the predicted region it lies in matches its true one, by an IoU over 0.5
    without unlabelled pixels: the mask is right, only its label wrong. Else the `mask` is wrong, as
    where nothing is predicted.

    Args:
        truth: (h, w) or (T, h, w) integer ids of regions.
        true_labels: region -> label; pixels of other ids are unlabelled.
        predicted: non-negative ids of predicted regions, same shape.
        labels: region -> label; at pixels of other ids nothing is predicted.
        selected: the labels that could be predicted; None: all.

    Returns:
        `label`, and pixels of each of OUTCOMES; each (M,) int64.

    Raises:
        AnnotationError: the shapes differ.
    """
    overlap = {p: n for p, n in overlaps(truth, predicted).items() if p[0] in true_labels}
    true_areas, areas = region_areas(overlap, 0), region_areas(overlap, 1)
    label = sorted({true_labels[region] for region, _ in overlap})
    counts = {field: dict.fromkeys(label, 0) for field in OUTCOMES}
    for (true, ours), pixels in overlap.items():
        wanted = true_labels[true]
        matches = ours in labels and 3 * pixels > true_areas[true] + areas[ours]
        if labels.get(ours) == wanted:
            outcome = "correct"
        elif selected is not None and wanted not in selected:
            outcome = "missed"
        else:
            outcome = "misclassified" if matches else "mask"
        counts[outcome][wanted] += pixels
    rows = {f: np.array([counts[f][i] for i in label], dtype=np.int64) for f in OUTCOMES}
    return {"label": np.array(label, dtype=np.int64), **rows}
