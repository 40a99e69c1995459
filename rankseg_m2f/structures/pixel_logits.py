"""Logits of pixels before it is known which labels are wanted.

Of K labels only the κ selected ones are ever made: labels are gathered at the resolution of the
prediction, and only what was gathered is upsampled.

Shapes: N frames, K labels, κ selected labels, C channels; h, w size of the prediction.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


class PixelLogits(ABC):
    """Logit maps of N frames, by label."""

    @abstractmethod
    def of_all(self) -> Tensor:
        """(N, K, h, w), in label order."""

    @abstractmethod
    def of_labels(self, index: Tensor) -> Tensor:
        """(N, κ, h, w) of the labels (N, κ) int64 of each frame, in that order."""

    @abstractmethod
    def __getitem__(self, frames: slice) -> "PixelLogits":
        """Logits of some of the frames."""

    def seeing(self, present: Tensor) -> "PixelLogits":
        """The logits of a head that is told which labels (N, K) bool are present (an oracle).

        Most heads have no use for it.
        """
        return self


@dataclass
class DenseLogits(PixelLogits):
    """Of a head that has made all of them.

    Attributes:
        maps: (N, K, h, w).
    """

    maps: Tensor

    def of_all(self) -> Tensor:
        """See `PixelLogits`."""
        return self.maps

    def of_labels(self, index: Tensor) -> Tensor:
        """See `PixelLogits`."""
        height, width = self.maps.shape[2:]
        return self.maps.gather(1, index[:, :, None, None].expand(-1, -1, height, width))

    def __getitem__(self, frames: slice) -> "DenseLogits":
        """See `PixelLogits`."""
        return DenseLogits(self.maps[frames])


@dataclass
class EmbeddedLogits(PixelLogits):
    """Products of pixel and label embeddings: a 1x1 convolution of which κ outputs are made.

    Attributes:
        pixels: (N, C, h, w).
        labels: (K, C).
        bias: (K,).
    """

    pixels: Tensor
    labels: Tensor
    bias: Tensor

    def of_all(self) -> Tensor:
        """See `PixelLogits`."""
        return F.conv2d(self.pixels, self.labels[:, :, None, None], self.bias)

    def of_labels(self, index: Tensor) -> Tensor:
        """See `PixelLogits`."""
        maps = self.labels[index] @ self.pixels.flatten(2)  # (N, κ, h * w)
        maps = maps + self.bias[index].unsqueeze(2)
        return maps.unflatten(2, self.pixels.shape[2:])

    def __getitem__(self, frames: slice) -> "EmbeddedLogits":
        """See `PixelLogits`."""
        return EmbeddedLogits(self.pixels[frames], self.labels, self.bias)
