"""EncNet (Zhang et al., CVPR 2018), which the paper compares with: labels seen in the image as a
whole gate the channels of its pixels.

It says which labels are present, as RankSeg's multi-label head does, and selects none of them; the
official code calls these logits SE ("semantic encoding"). Checkpoint names are those of
`decode_head` in the official code.

Shapes: N frames, B clips, T frames of a clip, K labels, M codewords, P pixels, C channels; h, w of
the feature map.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from rankseg_m2f.modeling.pixel.conv_module import ConvModule
from rankseg_m2f.modeling.pixel.heads.classified import ClassifiedPixels
from rankseg_m2f.modeling.pixel.heads.head_config import (
    classifier_settings,
    decoder_settings,
    feature_of,
    refuse_ranks,
)
from rankseg_m2f.modeling.pixel.heads.segmenter import SegmenterHead
from rankseg_m2f.structures.predictions import PixelPrediction


class Encoding(nn.Module):
    """Residuals of pixels to codewords, summed with soft assignment: (N, C, h, w) to (N, M, C)."""

    def __init__(self, channels: int, num_codes: int):
        super().__init__()
        bound = (num_codes * channels) ** -0.5
        self.codewords = nn.Parameter(torch.empty(num_codes, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(num_codes).uniform_(-1, 0))

    def forward(self, maps: Tensor) -> Tensor:
        # Differences of large numbers: not for half precision.
        with torch.autocast(maps.device.type, enabled=False):
            pixels = maps.flatten(2).transpose(1, 2).to(self.codewords.dtype)  # (N, P, C)
            square = pixels.square().sum(2, keepdim=True)  # (N, P, 1)
            square = square + self.codewords.square().sum(1)  # (N, P, M)
            distance = square - 2 * pixels @ self.codewords.T
            weight = (self.scale * distance).softmax(2)  # (N, P, M)
            total = weight.sum(1).unsqueeze(2)  # (N, M, 1)
            return weight.transpose(1, 2) @ pixels - total * self.codewords


class EncModule(nn.Module):
    """The encoding of an image, and its pixels gated by it."""

    def __init__(self, channels: int, num_codes: int, norm: str):
        super().__init__()
        self.encoding_project = ConvModule(channels, channels, 1, norm)
        self.encoding = nn.ModuleList([Encoding(channels, num_codes), get_norm(norm, num_codes)])
        self.fc = nn.Sequential(nn.Linear(channels, channels), nn.Sigmoid())

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (N, C, h, w) to encodings (N, C) and gated maps (N, C, h, w)."""
        encode, norm = self.encoding
        # The batch norm's channels are the codewords; Detectron2's one takes maps alone.
        codes = norm(encode(self.encoding_project(maps)).unsqueeze(3)).squeeze(3)  # (N, M, C)
        encoding = F.relu(codes).mean(1)
        gate = self.fc(encoding)[:, :, None, None]
        return encoding, F.relu(maps + maps * gate)


@SEM_SEG_HEADS_REGISTRY.register()
class EncHead(ClassifiedPixels):
    """EncNet on the last feature map."""

    scores_labels = True

    @configurable
    def __init__(
        self,
        *,
        feature: str,
        in_channels: int,
        channels: int = 512,
        num_labels: int,
        num_codes: int = 32,
        norm: str = "SyncBN",
        dropout: float = 0.1,
    ):
        """
        Args:
            feature: name of the feature map.
            channels: C.
            num_codes: M.
            norm: see `ConvModule`.
            dropout: see `ClassifiedPixels`.
        """
        super().__init__(channels=channels, num_labels=num_labels, dropout=dropout)
        self.feature = feature
        self.bottleneck = ConvModule(in_channels, channels, 3, norm)
        self.enc_module = EncModule(channels, num_codes, norm)
        self.se_layer = nn.Linear(channels, num_labels)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        refuse_ranks(cfg, "selects no labels")
        return {
            **feature_of(cfg, input_shape),
            **classifier_settings(cfg),
            "num_codes": cfg.MODEL.PIXEL.NUM_CODES,
        }

    def forward(self, features: dict[str, Tensor], num_frames: int) -> PixelPrediction:
        """See `PixelHead.forward`."""
        encoding, pixels = self.enc_module(self.bottleneck(features[self.feature]))
        presence_logits = self.se_layer(of_clips(encoding, num_frames))  # (B, K)
        return self.classify(pixels, num_frames, presence_logits)


@SEM_SEG_HEADS_REGISTRY.register()
class EncSegmenterHead(SegmenterHead):
    """EncNet before Segmenter's decoder."""

    scores_labels = True

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        width: int,
        num_labels: int,
        num_codes: int = 32,
        norm: str = "SyncBN",
        **settings,
    ):
        """
        Args:
            num_codes: M.
            norm: see `ConvModule`.
            settings: see `SegmenterHead`.
        """
        super().__init__(in_channels=width, width=width, num_labels=num_labels, **settings)
        self.bottleneck = ConvModule(in_channels, width, 3, norm)
        self.enc_module = EncModule(width, num_codes, norm)
        self.se_layer = nn.Linear(width, num_labels)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        refuse_ranks(cfg, "selects no labels")
        return {
            **decoder_settings(cfg, input_shape),
            "num_codes": cfg.MODEL.PIXEL.NUM_CODES,
            "norm": cfg.MODEL.SEM_SEG_HEAD.NORM,
        }

    def forward(self, features: dict[str, Tensor], num_frames: int) -> PixelPrediction:
        """See `PixelHead.forward`."""
        encoding, gated = self.enc_module(self.bottleneck(features[self.feature]))
        prediction = super().forward({**features, self.feature: gated}, num_frames)
        presence_logits = self.se_layer(of_clips(encoding, num_frames))
        return replace(prediction, presence_logits=presence_logits)


def of_clips(encoding: Tensor, num_frames: int) -> Tensor:
    """Mean (B, C) of the encodings (B * T, C) of each clip's frames."""
    return encoding.unflatten(0, (-1, num_frames)).mean(1)
