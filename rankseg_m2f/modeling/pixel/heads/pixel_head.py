"""What heads on feature maps are asked for.

Shapes: B clips, T frames, N = B * T frames, K labels, κ selected labels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from rankseg_m2f.rankseg.temperature import RankTemperature
from rankseg_m2f.structures.pixel_logits import PixelLogits


class PixelHead(nn.Module, ABC):
    """From the backbone's feature maps to logits of labels, of which κ will be wanted.

    Attributes:
        num_labels: K.
    """

    num_labels: int

    @property
    @abstractmethod
    def temperature(self) -> RankTemperature | None:
        """Adjusts logits by rank, once labels are ranked; None: labels keep their own order.

        It has the checkpoint name of the head, so the head keeps it; it is applied by whoever
        gathers the labels, before logits are resized.
        """

    @abstractmethod
    def forward(
        self, features: Mapping[str, Tensor], num_frames: int = 1
    ) -> tuple[Tensor | None, PixelLogits]:
        """Presence logits and pixel logits.

        Args:
            features: maps (N, C, h, w) by name; frames of a clip are neighbours.
            num_frames: T.

        Returns:
            (B, K) float, None without a multi-label head; logits of N frames, at the size of the
            largest map the head reads.
        """
