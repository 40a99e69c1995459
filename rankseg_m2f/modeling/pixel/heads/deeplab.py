"""DeepLabv3 (Chen et al., 2017): atrous spatial pyramid pooling.

Shapes: N frames, C feature channels, D channels of pixel embeddings; h, w of the feature map.
"""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from rankseg_m2f.modeling.pixel.conv_module import ConvModule
from rankseg_m2f.modeling.pixel.heads.classified import ClassifiedPixels
from rankseg_m2f.modeling.pixel.heads.head_config import classifier_settings, feature_of
from rankseg_m2f.modeling.pixel.resize_maps import resize_maps
from rankseg_m2f.structures.predictions import PixelPrediction


@SEM_SEG_HEADS_REGISTRY.register()
class ASPPHead(ClassifiedPixels):
    """The last map seen at several dilations and as a whole."""

    @configurable
    def __init__(
        self,
        *,
        feature: str,
        in_channels: int,
        channels: int = 512,
        dilations: Sequence[int] = (1, 12, 24, 36),
        norm: str = "SyncBN",
        **settings,
    ):
        """
        Args:
            feature: name of the feature map, the backbone's last.
            in_channels: C.
            channels: D.
            dilations: of the parallel convolutions; that of dilation 1 is 1x1.
            norm: see `ConvModule`.
            settings: `num_labels`, `table` and `dropout` of `ClassifiedPixels`.
        """
        super().__init__(channels=channels, **settings)
        self.feature = feature
        self.image_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), ConvModule(in_channels, channels, 1, norm)
        )
        self.aspp_modules = nn.ModuleList(
            ConvModule(in_channels, channels, 1 if d == 1 else 3, norm, dilation=d)
            for d in dilations
        )
        self.bottleneck = ConvModule((len(dilations) + 1) * channels, channels, 3, norm)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        return {
            **feature_of(cfg, input_shape),
            **classifier_settings(cfg),
            "dilations": cfg.MODEL.PIXEL.DILATIONS,
            "table": cfg.MODEL.RANKSEG.FLAG,
        }

    def forward(self, features: dict[str, Tensor], num_frames: int) -> PixelPrediction:
        """See `PixelHead.forward`."""
        maps = features[self.feature]  # (N, C, h, w)
        whole = resize_maps(self.image_pool(maps), maps.shape[2:])  # (N, D, h, w)
        views = [whole, *(module(maps) for module in self.aspp_modules)]
        return self.classify(self.bottleneck(torch.cat(views, dim=1)), num_frames)
