"""The query decoder of MaskFormer: DETR's, on one map of pixels, for images and clips alike.

Shapes: B clips, T frames, Q queries, K labels, C channels; H, W padded input size.
"""

from typing import ClassVar

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d
from torch import Tensor, nn

from rankseg_m2f.errors import UserError
from rankseg_m2f.layers.attention import MLP
from rankseg_m2f.layers.detr import DetrDecoderLayer, DetrEncoder
from rankseg_m2f.layers.position import sine_position
from rankseg_m2f.modeling.query.decoder_parts import (
    TRANSFORMER_DECODER_REGISTRY,
    class_head,
    decoder_settings,
)
from rankseg_m2f.structures.predictions import QueryPrediction


@TRANSFORMER_DECODER_REGISTRY.register()
class StandardTransformerDecoder(nn.Module):
    """Queries look, layer by layer, at all pixels of one coarse map."""

    first_layer: ClassVar[int] = 1
    reads_levels: ClassVar[bool] = False
    whole_segments: ClassVar[bool] = True

    @configurable
    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        heads: int,
        feedforward: int,
        encoder_depth: int,
        depth: int,
        dropout: float,
        pre_norm: bool,
        mask_dim: int,
        enforce_input_project: bool,
        cosine: bool,
        cosine_scale: float = 0.0,
    ):
        """
        Args:
            in_channels: of the map.
            num_classes: K, without no-object.
            hidden_dim: C.
            num_queries: Q.
            heads, feedforward, dropout, pre_norm: of the transformer layers.
            encoder_depth: layers over the map's pixels alone, before the decoder.
            depth: number of decoder layers and of predictions.
            mask_dim: channels of the mask features.
            enforce_input_project: a 1x1 convolution even where widths agree.
            cosine: cosine classifier instead of a linear one.
            cosine_scale: see `CosineClassifier`.
        """
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.encoder = DetrEncoder(
            hidden_dim, heads, feedforward, encoder_depth, dropout, pre_norm
        )
        self.transformer.decoder = nn.Module()
        self.transformer.decoder.layers = nn.ModuleList(
            DetrDecoderLayer(hidden_dim, heads, feedforward, dropout, pre_norm)
            for _ in range(depth)
        )
        self.transformer.decoder.norm = nn.LayerNorm(hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.input_proj = nn.Identity()
        if in_channels != hidden_dim or enforce_input_project:
            self.input_proj = Conv2d(in_channels, hidden_dim, 1)
            weight_init.c2_xavier_fill(self.input_proj)
        self.class_embed = class_head(hidden_dim, num_classes, cosine, cosine_scale)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, depth=3)

    @classmethod
    def from_config(cls, cfg, in_channels: int) -> dict:
        node = cfg.MODEL.MASK_FORMER
        if node.DEC_LAYERS < 1:
            raise UserError(f"MODEL.MASK_FORMER.DEC_LAYERS={node.DEC_LAYERS} must be 1 or more")
        return {
            "in_channels": in_channels,
            "encoder_depth": node.ENC_LAYERS,
            "depth": node.DEC_LAYERS,
            **decoder_settings(cfg),
        }

    def forward(
        self, pixels: Tensor, mask_features: Tensor, num_frames: int, every_mask: bool = True
    ) -> list[QueryPrediction]:
        """Predictions after each layer; the last one is final.

        Args:
            pixels: (B * T, C_in, h, w).
            mask_features: (B * T, mask_dim, H/4, W/4).
            num_frames: T.
            every_mask: also the masks of hidden layers (training).

        Returns:
            `depth` predictions.
        """
        keys, values = self._memory(pixels, num_frames)
        mask_features = mask_features.unflatten(0, (-1, num_frames))  # (B, T, mask_dim, H/4, W/4)
        position = self.query_embed.weight.expand(len(mask_features), -1, -1)  # (B, Q, C)
        queries = torch.zeros_like(position)
        layers = []
        for layer in self.transformer.decoder.layers:
            queries = layer(queries, position, keys, values)
            normed = self.transformer.decoder.norm(queries)  # (B, Q, C)
            masks = None
            if every_mask or layer is self.transformer.decoder.layers[-1]:
                # (B, Q, T, H/4, W/4)
                masks = torch.einsum("bqc,btchw->bqthw", self.mask_embed(normed), mask_features)
            layers.append(QueryPrediction(queries, self.class_embed(normed), masks))
        return layers

    def _memory(self, pixels: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, T * h * w, C) each."""
        height, width = pixels.shape[-2:]
        pixels = self.input_proj(pixels).unflatten(0, (-1, num_frames))
        values = pixels.permute(0, 1, 3, 4, 2).flatten(1, 3)  # (B, T * h * w, C)
        channels = values.shape[-1]
        position = sine_position(num_frames, height, width, channels, values.device).flatten(0, 2)
        values = self.transformer.encoder(values, position)
        return values + position, values
