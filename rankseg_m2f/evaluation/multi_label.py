"""Multi-label classification: how well the labels of an image or clip are found and selected.

The statistics saved are a file of label scores, from which a segmentor can rank its labels; see
`rankseg_m2f.label_scores`.

Shapes: N images or clips, K labels, κ selected labels.
"""

import numpy as np
import torch

from rankseg_m2f.errors import UserError
from rankseg_m2f.evaluation.streaming import Statistics, StreamingEvaluator, sparse_rows
from rankseg_m2f.rankseg import metrics

# Scores of all resamples that are judged at once: tens of megabytes.
_RESAMPLED = 4_000_000


class MultiLabelEvaluator(StreamingEvaluator):
    """The multi-label head, from `label_scores` (K,) and `label_ranking` (κ,).

    κ may differ from image to image. Results: mAP (over labels), image_AP (over images), recall
    and coverage of the selected labels, in percent; and kappa, their mean number. No coverage for
    datasets without maps. Nothing at all for models without such a head.
    """

    output_key = "label_scores"
    task = "labels"
    kind = "labels"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the results; coverage is of pixels, which only maps have."""
        coverage = ("coverage",) if self.truth.has_maps else ()
        return ("mAP", "image_AP", "recall", *coverage, "kappa")

    def statistics(self, key: str, output: dict) -> Statistics:
        """`scores` (K,) and `ranking` (κ,) as predicted; `label` and `pixels` of what is there."""
        scores = output["label_scores"].float().cpu().numpy()
        if len(scores) != self.truth.num_labels:
            raise UserError(
                f"{key}: the model scores {len(scores)} labels, but dataset {self.name!r} "
                f"has {self.truth.num_labels}"
            )
        label, pixels = self.truth.labels(key)
        ranking = output["label_ranking"].cpu().numpy()
        return {"scores": scores, "ranking": ranking, "label": label, "pixels": pixels}

    def collect(self, images: dict[str, Statistics]) -> Statistics:
        """`scores` (N, K), `ranking` (N, largest κ), and rows of `image`, `label`, `pixels`."""
        rows = list(images.values())
        widest = max(len(row["ranking"]) for row in rows)
        ranking = np.full((len(rows), widest), -1, dtype=np.int64)
        for padded, row in zip(ranking, rows, strict=True):
            padded[: len(row["ranking"])] = row["ranking"]
        dense = {"scores": np.stack([row["scores"] for row in rows]), "ranking": ranking}
        sparse = [{field: row[field] for field in ("label", "pixels")} for row in rows]
        return {**dense, **sparse_rows(sparse)}

    def summarise(self, arrays: Statistics) -> dict[str, float]:
        """Metrics from all images' scores."""
        results = {key: value.item() for key, value in self._percent(arrays).items()}
        return {**results, "kappa": float((arrays["ranking"] >= 0).sum(1).mean())}

    def resampled(self, arrays: Statistics, counts: np.ndarray) -> dict[str, np.ndarray]:
        """As for all evaluators; scores are sorted once for several resamples."""
        size = max(1, _RESAMPLED // arrays["scores"].size)
        parts = [
            self._percent(arrays, torch.from_numpy(counts[i : i + size]))
            for i in range(0, len(counts), size)
        ]
        return {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}

    def _percent(
        self, arrays: Statistics, weight: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Metrics in percent, for each row of weights (R, N) if there are any."""
        scores, ranking, image, label, pixels = (
            torch.from_numpy(arrays[key])
            for key in ("scores", "ranking", "image", "label", "pixels")
        )
        presence = torch.zeros(scores.shape, dtype=torch.bool)
        presence[image, label] = True
        results = {
            "mAP": metrics.class_map(scores, presence, weight),
            "image_AP": metrics.image_ap(scores, presence, weight),
            "recall": metrics.recall_at(ranking, presence, weight),
        }
        if self.truth.has_maps:
            areas = torch.zeros(scores.shape, dtype=torch.int64)
            areas[image, label] = pixels
            results["coverage"] = metrics.coverage(ranking, areas, weight)
        return {key: 100 * value for key, value in results.items()}
