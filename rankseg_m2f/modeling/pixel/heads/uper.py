"""UPerNet (Xiao et al., ECCV 2018): pyramid pooling on the coarsest map, then a feature pyramid.

Shapes: N frames, D channels of pixel embeddings; h, w of a feature map.
"""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from rankseg_m2f.modeling.pixel.conv_module import ConvModule
from rankseg_m2f.modeling.pixel.heads.classified import ClassifiedPixels
from rankseg_m2f.modeling.pixel.heads.head_config import classifier_settings, features_of
from rankseg_m2f.modeling.pixel.resize_maps import resize_maps
from rankseg_m2f.structures.predictions import PixelPrediction


@SEM_SEG_HEADS_REGISTRY.register()
class UPerHead(ClassifiedPixels):
    """All maps summed from coarse to fine, and fused at the size of the finest."""

    @configurable
    def __init__(
        self,
        *,
        features: Sequence[str],
        in_channels: Sequence[int],
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        norm: str = "SyncBN",
        **settings,
    ):
        """
        Args:
            features: names of the feature maps, fine to coarse.
            in_channels: of each.
            channels: D.
            pool_scales: sides to which the coarsest map is pooled.
            norm: see `ConvModule`.
            settings: `num_labels`, `table` and `dropout` of `ClassifiedPixels`.
        """
        super().__init__(channels=channels, **settings)
        self.features = tuple(features)
        *finer, coarsest = in_channels
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(s), ConvModule(coarsest, channels, 1, norm))
            for s in pool_scales
        )
        self.bottleneck = ConvModule(coarsest + len(pool_scales) * channels, channels, 3, norm)
        self.lateral_convs = nn.ModuleList(ConvModule(c, channels, 1, norm) for c in finer)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3, norm) for _ in finer)
        self.fpn_bottleneck = ConvModule(len(in_channels) * channels, channels, 3, norm)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        return {
            **features_of(cfg, input_shape),
            **classifier_settings(cfg),
            "pool_scales": cfg.MODEL.PIXEL.POOL_SCALES,
            "table": cfg.MODEL.RANKSEG.FLAG,
        }

    def pooled(self, coarsest: Tensor) -> Tensor:
        """The coarsest map (N, C, h, w) as (N, D, h, w) that knows its surroundings."""
        views = [resize_maps(module(coarsest), coarsest.shape[2:]) for module in self.psp_modules]
        return self.bottleneck(torch.cat([coarsest, *views], dim=1))

    def forward(self, features: dict[str, Tensor], num_frames: int) -> PixelPrediction:
        """See `PixelHead.forward`."""
        maps = [features[name] for name in self.features]
        coarsest = self.pooled(maps[-1])
        levels = [coarsest]  # coarse to fine
        for map_of_level, lateral in zip(maps[-2::-1], self.lateral_convs[::-1], strict=True):
            level = lateral(map_of_level)
            # Not in place: ReLU keeps its output for the backward pass.
            levels.append(level + resize_maps(levels[-1], level.shape[2:]))
        finer = [conv(x) for conv, x in zip(self.fpn_convs, levels[:0:-1], strict=True)]
        size = finer[0].shape[2:]
        fused = [finer[0], *(resize_maps(x, size) for x in [*finer[1:], coarsest])]
        return self.classify(self.fpn_bottleneck(torch.cat(fused, dim=1)), num_frames)
