"""ESSNet (Jain et al., 2021), which the paper compares with: pixels and labels meet in few
dimensions, and of each pixel only its k best labels are compared.

Unlike RankSeg's κ, these differ from pixel to pixel. Checkpoint names are those of `decode_head` in
the official code.

Shapes: N frames, K labels, k labels per pixel; h, w of the feature map.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor

from rankseg_m2f.modeling.pixel.heads.head_config import decoder_settings, refuse_ranks
from rankseg_m2f.modeling.pixel.heads.segmenter import SegmenterHead
from rankseg_m2f.modeling.pixel.resize_maps import resize_maps
from rankseg_m2f.rankseg.labels import ABSENT_LOGIT
from rankseg_m2f.structures.pixel_logits import DenseLogits
from rankseg_m2f.structures.predictions import PixelPrediction, PixelTargets


@dataclass
class SampledLogits(DenseLogits):
    """Logits of all labels of which each pixel is to keep its best.

    Attributes:
        best: k.
    """

    best: int

    def of_all(self) -> Tensor:
        """(N, K, h, w), `ABSENT_LOGIT` for all but the k best of each pixel."""
        index = self.maps.topk(self.best, dim=1).indices
        kept = torch.full_like(self.maps, ABSENT_LOGIT)
        return kept.scatter(1, index, self.maps.gather(1, index))

    def of_labels(self, index: Tensor) -> Tensor:
        """(N, κ, h, w) of labels (N, κ) int64, of which some pixels have kept none."""
        return DenseLogits(self.of_all()).of_labels(index)

    def __getitem__(self, frames: slice) -> "SampledLogits":
        """See `PixelLogits`."""
        return SampledLogits(self.maps[frames], self.best)


@SEM_SEG_HEADS_REGISTRY.register()
class SampledSegmenterHead(SegmenterHead):
    """The mask transformer with ESSNet's embeddings."""

    @configurable
    def __init__(self, *, best: int = 50, num_labels: int, **settings):
        """
        Args:
            best: k; more than K means K.
            settings: see `SegmenterHead`; `score_width` is the low dimension of the embeddings.
        """
        super().__init__(num_labels=num_labels, **settings)
        self.best = min(best, num_labels)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        refuse_ranks(cfg, "selects labels for each pixel")
        return {
            **decoder_settings(cfg, input_shape),
            "best": cfg.MODEL.PIXEL.DECODER.BEST,
            "score_width": cfg.MODEL.PIXEL.DECODER.SCORE_WIDTH or None,
        }

    def forward(self, features: dict[str, Tensor], num_frames: int) -> PixelPrediction:
        """See `PixelHead.forward`; while training, which labels are kept depends on the target."""
        prediction = super().forward(features, num_frames)
        if self.training:
            return prediction
        logits = SampledLogits(prediction.logits.of_all(), self.best)
        return replace(prediction, logits=logits)

    def losses(
        self,
        prediction: PixelPrediction,
        labels: Tensor,
        targets: PixelTargets,
        criterion: Callable[[Tensor, Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """See `PixelHead.losses`: the true label against the k best others of each pixel."""
        logits = resize_maps(prediction.logits.of_all(), labels.shape[1:])
        sampled = sampled_logits(logits, labels, self.best)
        return {"loss_seg": criterion(sampled, torch.where(labels >= 0, 0, -1))}


def sampled_logits(logits: Tensor, target: Tensor, best: int) -> Tensor:
    """The logits a pixel is trained on: its true label's first, then its k best others.

    The official code replaces a true label among the k best by its neighbour in label order, which
    may count one label twice; here the next best takes its place.

    Args:
        logits: (N, K, h, w).
        target: (N, h, w) int64 labels; what is not in [0, K) has no true label, and gets logits
            that are not to be used.
        best: k; more than the K - 1 others means all of them.

    Returns:
        (N, 1 + k, h, w): the target of a cross-entropy is 0 everywhere.
    """
    num_labels = logits.shape[1]
    known = (target >= 0) & (target < num_labels)
    true = target.masked_fill(~known, 0).unsqueeze(1)
    others = logits.detach().scatter(1, true, -torch.inf)
    index = others.topk(min(best, num_labels - 1), dim=1).indices
    return torch.cat([logits.gather(1, true), logits.gather(1, index)], dim=1)
