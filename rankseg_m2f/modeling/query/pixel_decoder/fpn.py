"""The FPN pixel decoders of MaskFormer, plain and with a transformer on the coarsest map.

Shapes: N frames (B * T), C channels; H, W input size.
"""

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from rankseg_m2f.layers.attention import MultiHeadAttention
from rankseg_m2f.layers.position import sine_position
from rankseg_m2f.modeling.query.pixel_decoder.conv import conv_norm, features_read


@SEM_SEG_HEADS_REGISTRY.register()
class BasePixelDecoder(nn.Module):
    """Feature pyramid: each finer level is a lateral 1x1 plus the nearest-upsampled coarser one."""

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

    def coarsest(self, features: Tensor) -> Tensor:
        """What enters the coarsest level's convolution; (N, C_i, H/32, W/32)."""
        return features

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """As `MSDeformAttnPixelDecoder.forward`."""
        merged = None
        maps = []
        for i in range(len(self.in_features), 0, -1):
            x = features[self.in_features[i - 1]]
            if merged is None:
                x = self.coarsest(x)
            else:
                lateral = self.get_submodule(f"adapter_{i}")(x)
                x = lateral + F.interpolate(merged, lateral.shape[-2:], mode="nearest")
            merged = self.get_submodule(f"layer_{i}")(x)
            maps.append(merged)
        return self.mask_features(merged), maps[:3]


class _EncoderLayer(nn.Module):
    """Self-attention and feed-forward over pixels, in DETR's parameter layout."""

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.self_attn = MultiHeadAttention(channels, heads, dropout)
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.drop = nn.Dropout(dropout)
        self.pre_norm = pre_norm
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        if self.pre_norm:
            tokens = tokens + self._attend(self.norm1(tokens), position)
            return tokens + self._feed(self.norm2(tokens))
        tokens = self.norm1(tokens + self._attend(tokens, position))
        return self.norm2(tokens + self._feed(tokens))

    def _attend(self, tokens: Tensor, position: Tensor) -> Tensor:
        placed = tokens + position
        return self.drop(self.self_attn(placed, placed, tokens))

    def _feed(self, tokens: Tensor) -> Tensor:
        return self.drop(self.linear2(self.drop(F.relu(self.linear1(tokens)))))


@SEM_SEG_HEADS_REGISTRY.register()
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """`BasePixelDecoder` with a transformer encoder over the coarsest map."""

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
        self.add_module(f"layer_{coarsest}", conv_norm(conv_dim, conv_dim, 3, norm, relu=True))
        self.transformer = nn.Module()
        self.transformer.encoder = nn.Module()
        self.transformer.encoder.layers = nn.ModuleList(
            _EncoderLayer(conv_dim, heads, hidden, dropout, pre_norm) for _ in range(depth)
        )
        # Pre-norm sublayers leave their sum unnormalised.
        self.transformer.encoder.norm = nn.LayerNorm(conv_dim) if pre_norm else nn.Identity()

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

    def coarsest(self, features: Tensor) -> Tensor:
        x = self.input_proj(features)
        height, width = x.shape[-2:]
        position = sine_position(1, height, width, x.shape[1], x.device).flatten(0, 2)
        tokens = x.flatten(2).transpose(1, 2)
        for layer in self.transformer.encoder.layers:
            tokens = layer(tokens, position)
        tokens = self.transformer.encoder.norm(tokens)
        return tokens.transpose(1, 2).unflatten(2, (height, width))
