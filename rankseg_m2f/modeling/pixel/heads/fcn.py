"""Convolutions on one feature map, then a classifier of its pixels (FCN).

Shapes: N frames, C channels, h, w of the feature map.
"""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from rankseg_m2f.errors import UserError
from rankseg_m2f.modeling.pixel.conv_module import ConvModule
from rankseg_m2f.modeling.pixel.heads.classified import ClassifiedPixels


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
        super().__init__(
            features=[feature], channels=widths[-1], num_labels=num_labels, dropout=dropout
        )
        self.convs = nn.Sequential(
            *(ConvModule(*widths[i : i + 2], kernel=3, norm=norm) for i in range(num_convs))
        )

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        node, names = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
        if len(names) != 1 or names[0] not in input_shape:
            raise UserError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES={list(names)}: an FCNHead reads one map of the "
                f"backbone, which has {', '.join(input_shape)}"
            )
        return {
            "feature": names[0],
            "in_channels": input_shape[names[0]].channels,
            "channels": node.CONVS_DIM,
            "num_labels": node.NUM_CLASSES,
            "num_convs": cfg.MODEL.PIXEL.NUM_CONVS,
            "norm": node.NORM,
            "dropout": cfg.MODEL.PIXEL.DROPOUT,
        }

    def embed(self, maps: list[Tensor]) -> Tensor:
        """See `ClassifiedPixels.embed`."""
        return self.convs(maps[0])
