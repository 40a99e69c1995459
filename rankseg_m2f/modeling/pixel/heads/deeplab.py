"""DeepLabv3 (Chen et al., 2017): atrous spatial pyramid pooling.

Shapes: N frames, C feature channels, D channels of pixel embeddings; h, w of the feature map.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rankseg_m2f.modeling.pixel.conv_module import ConvModule
from rankseg_m2f.modeling.pixel.heads.classified import ClassifiedPixels
from rankseg_m2f.modeling.pixel.resize_maps import resize_maps


class ASPPHead(ClassifiedPixels):
    """The last map seen at several dilations and as a whole."""

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
        super().__init__(features=[feature], channels=channels, **settings)
        self.image_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), ConvModule(in_channels, channels, 1, norm)
        )
        self.aspp_modules = nn.ModuleList(
            ConvModule(in_channels, channels, 1 if d == 1 else 3, norm, dilation=d)
            for d in dilations
        )
        self.bottleneck = ConvModule((len(dilations) + 1) * channels, channels, 3, norm)

    def embed(self, maps: list[Tensor]) -> Tensor:
        """See `ClassifiedPixels.embed`."""
        whole = resize_maps(self.image_pool(maps[0]), maps[0].shape[2:])  # (N, D, h, w)
        views = [whole, *(module(maps[0]) for module in self.aspp_modules)]
        return self.bottleneck(torch.cat(views, dim=1))
