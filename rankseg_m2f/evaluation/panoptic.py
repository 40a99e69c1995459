"""Panoptic quality by the official rules, without writing PNGs.

Shapes: K labels; h, w image size; M labels that an image has or is said to have.
"""

import numpy as np

from rankseg_m2f.errors import UserError
from rankseg_m2f.evaluation.streaming import (
    Statistics,
    StreamingEvaluator,
    percent_of,
    sum_by_label,
)
from rankseg_m2f.images import AnnotationError

VOID = 0
_FIELDS = ("iou", "tp", "fp", "fn")


class PanopticEvaluator(StreamingEvaluator):
    """Panoptic segmentation from `panoptic_seg`: segment map and segments with contiguous labels.

    Results, in percent: PQ, SQ, RQ, each also over things (`_th`) and stuff (`_st`) alone, and the
    PQ of each label. Labels neither in the truth nor predicted count nowhere.
    """

    output_key = "panoptic_seg"
    task = "panoptic_seg"
    reads = "panoptic"
    metrics = tuple(f"{m}{group}" for group in ("", "_th", "_st") for m in ("PQ", "SQ", "RQ"))
    kind = "panoptic"
    fields = _FIELDS

    def statistics(self, file_name: str, output: dict) -> Statistics:
        """See `match_segments`.

        Raises:
            AnnotationError: another size than the ground truth's.
            UserError: a label outside [0, K).
            ValueError: a map and a list that do not name the same segments.
        """
        predicted, segments = output["panoptic_seg"]
        truth, true_segments = self.truth.segments(file_name)
        try:
            return match_segments(
                truth, true_segments, predicted.cpu().numpy(), segments, self.truth.num_labels
            )
        except ValueError as error:
            raise type(error)(f"{file_name}: {error}") from error

    def summarise(self, arrays: Statistics) -> dict[str, float]:
        """Metrics from sums over images."""
        num_labels = self.truth.num_labels
        quality = panoptic_quality(*(sum_by_label(arrays, f, num_labels) for f in self.fields))
        is_thing = np.isin(np.arange(num_labels), sorted(self.truth.thing_ids))
        results = {}
        for suffix, group in (("", slice(None)), ("_th", is_thing), ("_st", ~is_thing)):
            for metric, values in quality.items():
                results[metric + suffix] = percent_of(values[group])
        for name, value in zip(self.truth.label_names, quality["PQ"].tolist(), strict=True):
            results[f"PQ-{name}"] = 100 * value
        return results


def panoptic_quality(
    iou: np.ndarray, tp: np.ndarray, fp: np.ndarray, fn: np.ndarray
) -> dict[str, np.ndarray]:
    """PQ, SQ and RQ of each label, all (K,), in [0, 1]; NaN for labels never seen."""
    seen = tp + fp + fn > 0
    count = np.where(seen, tp + (fp + fn) / 2, np.nan)
    # A label seen but never matched counts as 0 in all three.
    matched = np.where(seen, np.maximum(tp, 1), np.nan)
    return {"PQ": iou / count, "SQ": iou / matched, "RQ": tp / count}


def match_segments(
    truth: np.ndarray,
    true_segments: list[dict],
    predicted: np.ndarray,
    segments: list[dict],
    num_labels: int,
) -> Statistics:
    """Match predicted and true segments of one image.

    A pair of equal label matches when its IoU is over 0.5, pixels of no true segment left out.
    A true crowd is neither matched nor missed. A predicted segment mostly on void, or on a crowd
    of its own label, is no false positive.

    Args:
        truth: (h, w) int32 segment ids, 0 for none.
        true_segments: dicts with id, category_id and iscrowd (default 0).
        predicted: (h, w) integer segment ids, 0 for none.
        segments: dicts with id and category_id.

    Returns:
        `label`, sum of matched `iou`, `tp`, `fp`, `fn`; each (M,).
    """
    overlap = overlaps(truth, predicted)
    area = region_areas(overlap, 1)
    _check(segments, area, num_labels)
    true_area = region_areas(overlap, 0)
    true_labels = {s["id"]: s["category_id"] for s in true_segments}
    crowds = {s["id"] for s in true_segments if s.get("iscrowd", 0)}
    labels = {s["id"]: s["category_id"] for s in segments}
    counts = {
        label: dict.fromkeys(_FIELDS, 0) for label in (*true_labels.values(), *labels.values())
    }
    missed = set(true_labels) - crowds
    wrong = set(labels)
    for (true, ours), pixels in overlap.items():
        if true not in true_labels or true in crowds or true_labels[true] != labels.get(ours):
            continue
        union = area[ours] + true_area[true] - pixels - overlap.get((VOID, ours), 0)
        if 2 * pixels > union:
            counts[labels[ours]]["tp"] += 1
            counts[labels[ours]]["iou"] += pixels / union
            missed.remove(true)
            wrong.remove(ours)
    for true in missed:
        counts[true_labels[true]]["fn"] += 1
    # With several crowds of a label the official code looks at the last one alone.
    crowd_of = {true_labels[s["id"]]: s["id"] for s in true_segments if s["id"] in crowds}
    for ours in wrong:
        excused = overlap.get((VOID, ours), 0)
        excused += overlap.get((crowd_of.get(labels[ours]), ours), 0)
        counts[labels[ours]]["fp"] += 2 * excused <= area[ours]
    label = sorted(label for label, count in counts.items() if any(count.values()))
    rows = {f: np.array([counts[i][f] for i in label], dtype=np.float64) for f in _FIELDS}
    return {"label": np.array(label, dtype=np.int64), **rows}


def overlaps(truth: np.ndarray, predicted: np.ndarray) -> dict[tuple[int, int], int]:
    """Common pixels of each pair of (true, predicted) region ids that meet.

    Args:
        truth: integer ids of regions.
        predicted: non-negative ids, same shape.

    Raises:
        AnnotationError: the shapes differ.
        ValueError: a negative id.
    """
    if truth.shape != predicted.shape:
        # Predictions have the image's size.
        raise AnnotationError(
            f"the prediction is {predicted.shape}, the ground truth {truth.shape}"
        )
    base = int(predicted.max()) + 1
    if predicted.min() < 0:
        raise ValueError(f"segment id {predicted.min()} is negative; 0 means no segment")
    pairs, pixels = np.unique(truth.astype(np.int64) * base + predicted, return_counts=True)
    return {divmod(pair, base): n for pair, n in zip(pairs.tolist(), pixels.tolist(), strict=True)}


def region_areas(overlap: dict[tuple[int, int], int], side: int) -> dict[int, int]:
    """Area of each true (side 0) or predicted (side 1) region, summed over its `overlaps`."""
    area: dict[int, int] = {}
    for pair, pixels in overlap.items():
        area[pair[side]] = area.get(pair[side], 0) + pixels
    return area


def _check(segments: list[dict], area: dict[int, int], num_labels: int) -> None:
    listed = {s["id"] for s in segments}
    different = listed ^ (set(area) - {VOID})
    if different:
        raise ValueError(f"segments {sorted(different)} are in the map or in the list, not in both")
    for segment in segments:
        if not 0 <= segment["category_id"] < num_labels:
            raise UserError(
                f"label {segment['category_id']} is predicted, but there are {num_labels} labels"
            )
