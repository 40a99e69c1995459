"""What heads of pixels have in common.

Shapes: N frames (B clips of T), K labels, κ selected labels, C channels; h, w of the head's maps;
H, W padded input size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from rankseg_m2f.structures.predictions import PixelPrediction, PixelTargets


class PixelHead(nn.Module, ABC):
    """Features of a backbone to logits of pixels, of those labels that will be wanted.

    A head is registered in SEM_SEG_HEADS_REGISTRY, is made from (cfg, input_shape), and is chosen
    by MODEL.SEM_SEG_HEAD.NAME.

    Attributes:
        scores_labels: whether its prediction says which labels are present; else the segmentor has
            a multi-label head for that.
    """

    scores_labels: ClassVar[bool] = False

    @property
    def label_embeddings(self) -> Tensor | None:
        """(K, C), to be shared with the multi-label head; None: the head has none."""
        return None

    @abstractmethod
    def forward(self, features: dict[str, Tensor], num_frames: int) -> PixelPrediction:
        """
        Args:
            features: name -> (N, C_i, H/s, W/s).
            num_frames: T.
        """

    def losses(
        self,
        prediction: PixelPrediction,
        labels: Tensor,
        targets: PixelTargets,
        criterion: Callable[[Tensor, Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """Weighted losses of the head; one that has more than the usual one adds to these.

        Args:
            prediction: with logits of κ ranks, or of K labels where they are not ranked.
            labels: (N, H, W) int64 ranks, or labels; -1 where ignored.
            targets: before ranking.
            criterion: logits (N, κ, h, w) and labels (N, H, W) to a scalar.
        """
        return {"loss_seg": criterion(prediction.logits.of_all(), labels)}
