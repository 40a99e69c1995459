"""The FPN pixel decoders of MaskFormer, plain and with a transformer on the coarsest map.

Shapes: N frames (B * T), C channels; H, W input size.
"""

from typing import ClassVar

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from rankseg_m2f.layers.detr import DetrEncoder
from rankseg_m2f.layers.position import sine_position
from rankseg_m2f.modeling.query.pixel_decoder.conv import conv_norm, features_read
from rankseg_m2f.structures.predictions import PixelFeatures


@SEM_SEG_HEADS_REGISTRY.register()
class BasePixelDecoder(nn.Module):
    """Feature pyramid: each finer level is a lateral 1x1 plus the nearest-upsampled coarser one."""

    encodes: ClassVar[bool] = False  # `PixelFeatures.encoded` is made

    @configurable
    def __init__(
        self, input_shape: dict[str, ShapeSpec], *, conv_dim: int, mask_dim: int, norm: str
    ):
        """
        Args:
            input_shape: name -> channels and stride of each backbone feature used.
            conv_dim: C of all maps inside.
            mask_dim: channels of the mask features.
            norm: norm of the convolutions, e.g. "GN".
        """
        super().__init__()
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        coarsest = len(self.in_features)
        for i, name in enumerate(self.in_features, start=1):
            channels = input_shape[name].channels
            if i < coarsest:
                self.add_module(f"adapter_{i}", conv_norm(channels, conv_dim, 1, norm, relu=False))
                channels = conv_dim
            self.add_module(f"layer_{i}", conv_norm(channels, conv_dim, 3, norm, relu=True))
        self.mask_features = Conv2d(conv_dim, mask_dim, 3, padding=1)
        weight_init.c2_xavier_fill(self.mask_features)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": features_read(cfg, input_shape),
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
        }

    def encode(self, features: Tensor) -> Tensor | None:
        """The coarsest map, (N, C_i, H/32, W/32), by a transformer encoder; None without one."""
        return None

    def forward(self, features: dict[str, Tensor]) -> PixelFeatures:
        """As `MSDeformAttnPixelDecoder.forward`."""
        encoded = self.encode(features[self.in_features[-1]])
        merged = None
        levels = []
        for i in range(len(self.in_features), 0, -1):
            x = features[self.in_features[i - 1]]
            if merged is not None:
                lateral = self.get_submodule(f"adapter_{i}")(x)
                x = lateral + F.interpolate(merged, lateral.shape[-2:], mode="nearest")
            elif encoded is not None:
                x = encoded
            merged = self.get_submodule(f"layer_{i}")(x)
            levels.append(merged)
        return PixelFeatures(self.mask_features(merged), levels[:3], encoded)


@SEM_SEG_HEADS_REGISTRY.register()
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """`BasePixelDecoder` with a transformer encoder over the coarsest map."""

    encodes: ClassVar[bool] = True

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int,
        mask_dim: int,
        norm: str,
        heads: int,
        hidden: int,
        depth: int,
        dropout: float,
        pre_norm: bool,
    ):
        """`BasePixelDecoder`'s arguments, then those of the transformer encoder."""
        super().__init__(input_shape, conv_dim=conv_dim, mask_dim=mask_dim, norm=norm)
        coarsest = len(self.in_features)
        channels = input_shape[self.in_features[-1]].channels
        self.input_proj = Conv2d(channels, conv_dim, 1)
        weight_init.c2_xavier_fill(self.input_proj)
        self.transformer = nn.Module()
        self.transformer.encoder = DetrEncoder(conv_dim, heads, hidden, depth, dropout, pre_norm)
        # Anew, as its input is narrower now; last, as in the official order of parameters.
        delattr(self, f"layer_{coarsest}")
        self.add_module(f"layer_{coarsest}", conv_norm(conv_dim, conv_dim, 3, norm, relu=True))

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.MASK_FORMER
        return super().from_config(cfg, input_shape) | {
            "heads": node.NHEADS,
            "hidden": node.DIM_FEEDFORWARD,
            "depth": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "dropout": node.DROPOUT,
            "pre_norm": node.PRE_NORM,
        }

    def encode(self, features: Tensor) -> Tensor:
        """See `BasePixelDecoder.encode`."""
        x = self.input_proj(features)
        height, width = x.shape[-2:]
        position = sine_position(1, height, width, x.shape[1], x.device).flatten(0, 2)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.transformer.encoder(tokens, position)
        return tokens.transpose(1, 2).unflatten(2, (height, width))
