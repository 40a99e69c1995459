"""Mean IoU and its relatives.

Shapes: K labels; h, w image size; M labels that an image has or is said to have.
"""

import numpy as np

from rankseg_m2f.errors import UserError
from rankseg_m2f.evaluation.ground_truth import IGNORED
from rankseg_m2f.evaluation.streaming import (
    Statistics,
    StreamingEvaluator,
    percent_of,
    sum_by_label,
)
from rankseg_m2f.images import AnnotationError


class SemanticEvaluator(StreamingEvaluator):
    """Semantic segmentation from `sem_seg`: a (K, h, w) tensor or `SelectedScores`.

    Results, in percent: mIoU, fwIoU, mACC, pACC, and IoU and ACC of each label (NaN without
    ground truth), all as Detectron2's `SemSegEvaluator` defines them. Sums are kept per label and
    not per pair of labels, so K may be large.
    """

    output_key = "sem_seg"
    task = "sem_seg"
    reads = "semantic"
    metrics = ("mIoU", "fwIoU", "mACC", "pACC")
    kind = "semantic"
    fields = ("intersection", "truth", "predicted")

    def statistics(self, file_name: str, output: dict) -> Statistics:
        """Pixels of each label: `label`, `intersection`, `truth`, `predicted`, all (M,).

        Raises:
            AnnotationError: another size than the ground truth's.
            UserError: a label outside [0, K).
        """
        predicted = output["sem_seg"].argmax(0).cpu().numpy()
        return self.compare(file_name, self.truth.label_map(file_name), predicted)

    def compare(self, file_name: str, truth: np.ndarray, predicted: np.ndarray) -> Statistics:
        """`label_pixels` of two (h, w) label maps; raises as `statistics` does."""
        if predicted.shape != truth.shape:
            # Predictions have the image's size.
            raise AnnotationError(
                f"{file_name}: the prediction is {predicted.shape}, the ground truth {truth.shape}"
            )
        if predicted.max() >= self.truth.num_labels:
            raise UserError(
                f"{file_name}: label {predicted.max()} is predicted, but dataset {self.name!r} "
                f"has {self.truth.num_labels} labels"
            )
        return label_pixels(truth, predicted, self.truth.num_labels)

    def summarise(self, arrays: Statistics) -> dict[str, float]:
        """Metrics from sums over images."""
        hit, truth, predicted = (
            sum_by_label(arrays, field, self.truth.num_labels) for field in SemanticEvaluator.fields
        )
        seen = np.where(truth > 0, truth, np.nan)
        iou = hit / (seen + predicted - hit)
        accuracy = hit / seen
        total = truth.sum()
        results = {
            "mIoU": percent_of(iou),
            "fwIoU": 100 * float(np.nansum(iou * truth) / total) if total else float("nan"),
            "mACC": percent_of(accuracy),
            "pACC": 100 * float(hit.sum() / total) if total else float("nan"),
        }
        for kind, values in (("IoU", iou), ("ACC", accuracy)):
            for name, value in zip(self.truth.label_names, values.tolist(), strict=True):
                results[f"{kind}-{name}"] = 100 * value
        return results


def label_pixels(truth: np.ndarray, predicted: np.ndarray, num_labels: int) -> Statistics:
    """Pixels of each label, where the truth is known.

    Args:
        truth: (h, w) integer label ids, IGNORED where unknown.
        predicted: (h, w) integer label ids.

    Returns:
        `label`, and its pixels in the `intersection`, in the `truth` and as `predicted`;
        each (M,) int64.
    """
    known = truth != IGNORED
    truth, predicted = truth[known], predicted[known]
    counts = {
        "intersection": np.bincount(truth[truth == predicted], minlength=num_labels),
        "truth": np.bincount(truth, minlength=num_labels),
        "predicted": np.bincount(predicted, minlength=num_labels),
    }
    label = (counts["truth"] + counts["predicted"]).nonzero()[0]
    return {"label": label, **{field: count[label] for field, count in counts.items()}}
