"""Mask AP from matches saved per image, so that it can be had of any resample of the images.

Shapes: N images, K categories, D predictions, G pairs of image and category with objects, R
resamples, P IoU thresholds.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

from rankseg_m2f.evaluation.streaming import Statistics, percent_of

_RECALLS = np.linspace(0, 1, 101)
# AP50 and AP75 among COCO's thresholds 0.5, 0.55, ..., 0.95.
_AT = {"AP50": 0, "AP75": 5}


def matches(evaluation: COCOeval, names: Sequence[str]) -> Statistics:
    """What `COCOeval.evaluate` found about objects of any size, with the most predictions.

    Args:
        evaluation: after `evaluate`.
        names: of its categories, in its order.

    Returns:
        `image`, `category` (D,), places in `file_names` and `label_names`; `score` (D,); `hit` and
        `miss` (D, P) bool, both False where the prediction is ignored; `true_image`,
        `true_category`, `objects` (G,). And what `describe` gives of other statistics.
    """
    params = evaluation.params
    images = {image: i for i, image in enumerate(params.imgIds)}
    categories = {category: i for i, category in enumerate(params.catIds)}
    found, objects = [], []
    for e in evaluation.evalImgs:
        if e is None or list(e["aRng"]) != list(params.areaRng[0]):
            continue
        place = images[e["image_id"]], categories[e["category_id"]]
        hit, used = np.asarray(e["dtMatches"]) > 0, ~np.asarray(e["dtIgnore"], dtype=bool)
        scores = np.asarray(e["dtScores"], dtype=float)
        found += zip([place] * len(scores), scores, (hit & used).T, (~hit & used).T, strict=True)
        objects.append((*place, np.count_nonzero(np.asarray(e["gtIgnore"]) == 0)))
    image, category = np.array([f[0] for f in found], dtype=np.int64).reshape(-1, 2).T
    true_image, true_category, number = np.array(objects, dtype=np.int64).reshape(-1, 3).T
    shape = (len(found), len(params.iouThrs))
    keys = np.array([str(image) for image in params.imgIds])
    return {
        "file_names": keys,
        "units": keys,
        "label_names": np.array(names),
        "thing_ids": np.arange(len(names)),
        "has_maps": np.array(False),
        "image": image,
        "category": category,
        "score": np.array([f[1] for f in found]),
        "hit": np.array([f[2] for f in found], dtype=bool).reshape(shape),
        "miss": np.array([f[3] for f in found], dtype=bool).reshape(shape),
        "true_image": true_image,
        "true_category": true_category,
        "objects": number,
    }


class MaskApFromMatches:
    """AP, AP50 and AP75 in percent, as COCO defines them, from `matches`."""

    task = "segm"
    kind = "instance"

    def __init__(
        self, name: str, output_dir: str | os.PathLike | None = None, truth: object | None = None
    ):
        """Takes what evaluators take, and needs none of it: the statistics hold everything."""

    def summarise(self, arrays: Statistics) -> dict[str, float]:
        """Metrics of all images."""
        once = np.ones((1, len(arrays["file_names"])), dtype=np.int64)
        return {key: values.item() for key, values in self.resampled(arrays, once).items()}

    def resampled(self, arrays: Statistics, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Metric -> (R,), from counts (R, N) of images."""
        categories = _categories(arrays)
        rows = []
        for weight in counts:
            # (K, P)
            precision = np.array([category.precision(weight) for category in categories])
            row = {"AP": percent_of(precision)}
            row |= {key: percent_of(precision[:, place]) for key, place in _AT.items()}
            rows.append(row)
        return {key: np.array([row[key] for row in rows]) for key in rows[0]}


@dataclass
class _Category:
    """Predictions of one category by descending score.

    Few of them hit, so all is computed at those.

    Attributes:
        image: (D,).
        hits: per threshold, places among the predictions.
        ignored: the same of those ignored.
        before: per threshold, how many of `ignored` come before each hit.
        true_image, objects: number of objects in each image that has some.
    """

    image: np.ndarray
    hits: list[np.ndarray]
    ignored: list[np.ndarray]
    before: list[np.ndarray]
    true_image: np.ndarray
    objects: np.ndarray

    def precision(self, weight: np.ndarray) -> np.ndarray:
        """(P,) mean precision over the recalls, from (N,) weights; NaN without objects."""
        total = (weight[self.true_image] * self.objects).sum()
        if not total:
            return np.full(len(self.hits), np.nan)
        times = weight[self.image]
        seen = times.cumsum()
        means = []
        for hits, ignored, before in zip(self.hits, self.ignored, self.before, strict=True):
            found = times[hits].cumsum()
            unused = np.append(0, times[ignored].cumsum())[before]
            precision = found / np.maximum(seen[hits] - unused, 1)
            # The best precision at this recall or a higher one; 0 at recalls never reached.
            best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
            means.append(best[np.searchsorted(found / total, _RECALLS)].mean())
        return np.array(means)


def _categories(arrays: Statistics) -> list[_Category]:
    order = np.argsort(-arrays["score"], kind="mergesort")
    categories = []
    for number in range(len(arrays["label_names"])):
        chosen = order[arrays["category"][order] == number]
        true = arrays["true_category"] == number
        hit, miss = arrays["hit"][chosen].T, arrays["miss"][chosen].T
        hits = [np.flatnonzero(row) for row in hit]
        ignored = [np.flatnonzero(row) for row in ~(hit | miss)]
        categories.append(
            _Category(
                arrays["image"][chosen],
                hits,
                ignored,
                [np.searchsorted(i, h) for i, h in zip(ignored, hits, strict=True)],
                arrays["true_image"][true],
                arrays["objects"][true],
            )
        )
    return categories
