"""ESSNet (Jain et al., 2021), which the paper compares with: pixels and labels meet in few
dimensions, and of each pixel only its k best labels are compared.

Unlike RankSeg's κ, these differ from pixel to pixel. Checkpoint names are those of `decode_head` in
the official code.

Shapes: N frames, K labels, k labels per pixel; h, w of the feature map.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rankseg_m2f.modeling.pixel.heads.segmenter import SegmenterHead
from rankseg_m2f.rankseg.labels import ABSENT_LOGIT
from rankseg_m2f.structures.pixel_logits import DenseLogits, PixelLogits


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


class SampledSegmenterHead(SegmenterHead):
    """The mask transformer with ESSNet's embeddings.

    Args:
        best: k.
        settings: see `MaskTransformer`; `score_width` is the low dimension of the embeddings.
    """

    def __init__(
        self, num_labels: int, in_feature: str, in_channels: int, *, best: int = 50, **settings
    ):
        super().__init__(num_labels, in_feature, in_channels, **settings)
        self.best = min(best, num_labels)

    def forward(
        self, features: Mapping[str, Tensor], num_frames: int = 1
    ) -> tuple[Tensor | None, PixelLogits]:
        """See `PixelHead.forward`."""
        return None, SampledLogits(self.logits(features, num_frames), self.best)


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


def sampled_cross_entropy(
    logits: Tensor, target: Tensor, best: int, over_all_pixels: bool = True
) -> Tensor:
    """Mean cross-entropy of the true label among the k best others of each pixel.

    Args:
        logits, target, best: see `sampled_logits`.
        over_all_pixels: the mean is over ignored pixels, too, whose loss is 0.

    Returns:
        Scalar; 0 where no pixel counts.
    """
    known = (target >= 0) & (target < logits.shape[1])
    chosen = sampled_logits(logits.float(), target, best)
    loss = F.cross_entropy(chosen, torch.where(known, 0, -1), ignore_index=-1, reduction="sum")
    return loss / (known.numel() if over_all_pixels else known.sum().clamp(min=1))
