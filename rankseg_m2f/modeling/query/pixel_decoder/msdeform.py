"""The multi-scale deformable attention pixel decoder of Mask2Former.

Shapes: N frames (B * T), C channels, S tokens of all levels, L levels; H, W input size.
"""

from typing import ClassVar

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from rankseg_m2f.errors import require_one_of
from rankseg_m2f.layers.linear import apply_linear
from rankseg_m2f.layers.ms_deform_attn import MSDeformAttn
from rankseg_m2f.layers.position import sine_position
from rankseg_m2f.modeling.query.pixel_decoder.conv import conv_norm, features_read
from rankseg_m2f.structures.predictions import PixelFeatures

_FFN_CHANNELS = 1024  # fixed in the official code, whatever DIM_FEEDFORWARD says
_POINTS = 4


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, post-norm; tokens (N, S, C) in and out."""

    def __init__(self, channels: int, heads: int, levels: int, dropout: float):
        super().__init__()
        self.self_attn = MSDeformAttn(channels, levels, heads, _POINTS)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, _FFN_CHANNELS)
        self.linear2 = nn.Linear(_FFN_CHANNELS, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.drop = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, tokens: Tensor, position: Tensor, shapes: list) -> Tensor:
        mixed = self.self_attn(tokens + position, tokens, shapes)
        tokens = self.norm1(tokens + self.drop(mixed))
        hidden = self.drop(apply_linear(self.linear1, tokens, relu=True))
        return self.norm2(tokens + self.drop(apply_linear(self.linear2, hidden)))


class DeformableEncoder(nn.Module):
    """A stack of deformable layers over feature maps of several levels."""

    def __init__(self, channels: int, heads: int, levels: int, depth: int, dropout: float):
        super().__init__()
        # Without layers nothing reads it, and DDP waits for the gradients of all that have one.
        self.level_embed = nn.Parameter(
            torch.empty(levels, channels).normal_(), requires_grad=depth > 0
        )
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            DeformableEncoderLayer(channels, heads, levels, dropout) for _ in range(depth)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """L maps (N, C, h, w) to L maps of the same shapes."""
        shapes = [tuple(x.shape[-2:]) for x in maps]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        position = torch.cat(
            [
                sine_position(1, h, w, tokens.shape[-1], tokens.device).flatten(0, 2) + embed
                for (h, w), embed in zip(shapes, self.level_embed, strict=True)
            ]
        )
        for layer in self.encoder.layers:
            tokens = layer(tokens, position, shapes)
        levels = tokens.split([h * w for h, w in shapes], dim=1)
        return [
            x.transpose(1, 2).unflatten(2, shape) for x, shape in zip(levels, shapes, strict=True)
        ]


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """Deformable encoder over res3..res5, then one top-down step to stride 4.

    Runs in float32 whatever autocast says, as in the official code.
    """

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
        depth: int,
        dropout: float,
        encoder_in_features: list[str],
        common_stride: int,
    ):
        """
        Args:
            input_shape: name -> channels and stride of each backbone feature used.
            conv_dim: C of all maps inside.
            mask_dim: channels of the mask features.
            norm: norm of the top-down convolutions, e.g. "GN".
            heads, depth, dropout: of the deformable encoder.
            encoder_in_features: names of the levels it sees.
            common_stride: stride of the mask features.
        """
        super().__init__()
        by_stride = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.encoder_in = [name for name in reversed(by_stride) if name in encoder_in_features]
        stride = min(input_shape[name].stride for name in self.encoder_in)
        # Finer levels than the encoder's are merged top-down until the common stride is reached.
        steps = (stride // common_stride).bit_length() - 1
        self.top_down_in = by_stride[:steps][::-1]

        self.input_proj = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(input_shape[name].channels, conv_dim, 1), nn.GroupNorm(32, conv_dim)
            )
            for name in self.encoder_in
        )
        for projection in self.input_proj:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)
        self.transformer = DeformableEncoder(conv_dim, heads, len(self.encoder_in), depth, dropout)
        self.mask_features = Conv2d(conv_dim, mask_dim, 1)
        weight_init.c2_xavier_fill(self.mask_features)
        for i, name in enumerate(by_stride[:steps], start=1):
            channels = input_shape[name].channels
            self.add_module(f"adapter_{i}", conv_norm(channels, conv_dim, 1, norm, relu=False))
            self.add_module(f"layer_{i}", conv_norm(conv_dim, conv_dim, 3, norm, relu=True))

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        read = features_read(cfg, input_shape)
        encoded = head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES
        for name in encoded:
            key = "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"
            require_one_of(key, name, read)
        return {
            "input_shape": read,
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "heads": cfg.MODEL.MASK_FORMER.NHEADS,
            "depth": head.TRANSFORMER_ENC_LAYERS,
            "dropout": cfg.MODEL.MASK_FORMER.DROPOUT,
            "encoder_in_features": encoded,
            "common_stride": head.COMMON_STRIDE,
        }

    def forward(self, features: dict[str, Tensor]) -> PixelFeatures:
        """Backbone features, name -> (N, C_i, H/s, W/s), to pixel features."""
        device = next(iter(features.values())).device
        with torch.autocast(device.type, enabled=False):
            maps = self.transformer(
                [
                    project(features[name].float())
                    for project, name in zip(self.input_proj, self.encoder_in, strict=True)
                ]
            )
            finest = maps[-1]
            for i, name in zip(range(len(self.top_down_in), 0, -1), self.top_down_in, strict=True):
                lateral = self.get_submodule(f"adapter_{i}")(features[name].float())
                upsampled = F.interpolate(finest, lateral.shape[-2:], mode="bilinear")
                finest = self.get_submodule(f"layer_{i}")(lateral + upsampled)
            return PixelFeatures(self.mask_features(finest), maps[:3], maps[0])
