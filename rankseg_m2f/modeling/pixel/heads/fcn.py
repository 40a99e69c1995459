"""Convolutions on one feature map, then a classifier of its pixels (FCN).

Shapes: N frames, C channels, h, w of the feature map.
"""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from rankseg_m2f.modeling.pixel.conv_module import ConvModule
from rankseg_m2f.modeling.pixel.heads.classified import ClassifiedPixels
from rankseg_m2f.modeling.pixel.heads.head_config import classifier_settings, feature_of
from rankseg_m2f.structures.predictions import PixelPrediction


@SEM_SEG_HEADS_REGISTRY.register()
class FCNHead(ClassifiedPixels):
    """3x3 convolutions, dropout of whole channels, classifier; linear without convolutions."""

    @configurable
    def __init__(
        self,
        *,
        feature: str,
        in_channels: int,
        channels: int,
        num_labels: int,
        num_convs: int = 1,
        norm: str = "SyncBN",
        dropout: float = 0.1,
    ):
        """
        Args:
            feature: name of the map that is read.
            channels: C; without convolutions it is `in_channels`.
        """
        widths = [in_channels] + [channels] * num_convs
        super().__init__(channels=widths[-1], num_labels=num_labels, dropout=dropout)
        self.feature = feature
        self.convs = nn.Sequential(
            *(ConvModule(*widths[i : i + 2], kernel=3, norm=norm) for i in range(num_convs))
        )

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        return {
            **feature_of(cfg, input_shape),
            **classifier_settings(cfg),
            "num_convs": cfg.MODEL.PIXEL.NUM_CONVS,
        }

    def forward(self, features: dict[str, Tensor], num_frames: int) -> PixelPrediction:
        """See `PixelHead.forward`."""
        return self.classify(self.convs(features[self.feature]), num_frames)
