"""The masked-attention query decoder of Mask2Former, for images and clips alike.

Shapes: B clips, T frames, Q queries, K labels, C channels; H, W padded input size.
"""

from typing import ClassVar

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d
from torch import Tensor, nn

from rankseg_m2f.errors import UserError
from rankseg_m2f.layers.attention import (
    MLP,
    CrossAttentionLayer,
    FeedForwardLayer,
    SelfAttentionLayer,
)
from rankseg_m2f.layers.position import sine_position
from rankseg_m2f.modeling.query.decoder_parts import (
    TRANSFORMER_DECODER_REGISTRY,
    class_head,
    decoder_settings,
)
from rankseg_m2f.structures.predictions import QueryPrediction

_LEVELS = 3


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Queries look, layer by layer, at the pixels their last mask covers."""

    _version = 2
    first_layer: ClassVar[int] = 0
    reads_levels: ClassVar[bool] = True
    whole_segments: ClassVar[bool] = False

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
            in_channels: of the three pixel-feature maps.
            num_classes: K, without no-object.
            hidden_dim: C.
            num_queries: Q.
            heads, feedforward, dropout, pre_norm: of the transformer layers.
            depth: number of decoder layers (predictions are one more).
            mask_dim: channels of the mask features.
            enforce_input_project: a 1x1 convolution even where widths agree.
            cosine: cosine classifier instead of a linear one.
            cosine_scale: see `CosineClassifier`.
        """
        super().__init__()
        self.heads = heads
        layer = {"channels": hidden_dim, "dropout": dropout, "pre_norm": pre_norm}
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(heads=heads, **layer) for _ in range(depth)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(heads=heads, **layer) for _ in range(depth)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(hidden=feedforward, **layer) for _ in range(depth)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(_LEVELS, hidden_dim)
        project = in_channels != hidden_dim or enforce_input_project
        self.input_proj = nn.ModuleList(
            Conv2d(in_channels, hidden_dim, 1) if project else nn.Identity() for _ in range(_LEVELS)
        )
        if project:
            for conv in self.input_proj:
                weight_init.c2_xavier_fill(conv)
            # A decoder of one or two layers reads fewer maps; DDP waits for all other gradients.
            self.input_proj[depth:].requires_grad_(False)
        self.class_embed = class_head(hidden_dim, num_classes, cosine, cosine_scale)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, depth=3)

    @classmethod
    def from_config(cls, cfg, in_channels: int) -> dict:
        node = cfg.MODEL.MASK_FORMER
        if node.DEC_LAYERS < 2:
            raise UserError(f"MODEL.MASK_FORMER.DEC_LAYERS={node.DEC_LAYERS} must be 2 or more")
        return {
            "in_channels": in_channels,
            "depth": node.DEC_LAYERS - 1,
            **decoder_settings(cfg),
        }

    def forward(
        self, maps: list[Tensor], mask_features: Tensor, num_frames: int, every_mask: bool = True
    ) -> list[QueryPrediction]:
        """Predictions of the learnable queries and after each layer; the last one is final.

        Args:
            maps: three maps (B * T, C_in, H/s, W/s) of strides 32, 16, 8.
            mask_features: (B * T, mask_dim, H/4, W/4).
            num_frames: T.
            every_mask: keep the mask logits of hidden layers (training); else they are dropped
                once used, and only the final prediction holds masks.

        Returns:
            depth + 1 predictions.
        """
        memory = [self._memory(level, maps[level], num_frames) for level in range(_LEVELS)]
        mask_features = mask_features.unflatten(0, (-1, num_frames))  # (B, T, mask_dim, H/4, W/4)
        batch = len(mask_features)
        queries = self.query_feat.weight.expand(batch, -1, -1)  # (B, Q, C)
        position = self.query_embed.weight.expand(batch, -1, -1)
        layers = [self._predict(queries, mask_features)]
        for i in range(len(self.transformer_ffn_layers)):
            keys, values, size = memory[i % _LEVELS]
            mask = attention_mask(layers[-1].mask_logits, size)  # (B, 1, Q, T * h * w)
            if not every_mask:
                layers[-1].mask_logits = None
            cross = self.transformer_cross_attention_layers[i]
            queries = cross(queries, position, keys, values, mask)
            queries = self.transformer_self_attention_layers[i](queries, position)
            queries = self.transformer_ffn_layers[i](queries)
            layers.append(self._predict(queries, mask_features))
        return layers

    def _memory(
        self, level: int, pixels: Tensor, num_frames: int
    ) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Keys and values (B, T * h * w, C) of one level, and its (h, w)."""
        size = tuple(pixels.shape[-2:])
        pixels = self.input_proj[level](pixels).unflatten(0, (-1, num_frames))
        values = pixels.permute(0, 1, 3, 4, 2).flatten(1, 3)  # (B, T * h * w, C)
        values = values + self.level_embed.weight[level]
        position = sine_position(num_frames, *size, values.shape[-1], values.device)
        return values + position.flatten(0, 2), values, size

    def _predict(self, queries: Tensor, mask_features: Tensor) -> QueryPrediction:
        normed = self.decoder_norm(queries)  # (B, Q, C)
        masks = torch.einsum("bqc,btchw->bqthw", self.mask_embed(normed), mask_features)
        # Class logits (B, Q, K + 1), mask logits (B, Q, T, H/4, W/4).
        return QueryPrediction(queries, self.class_embed(normed), masks)


TRANSFORMER_DECODER_REGISTRY._do_register(
    "VideoMultiScaleMaskedTransformerDecoder", MultiScaleMaskedTransformerDecoder
)


def attention_mask(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Where each query may look: inside its mask, or everywhere if that is empty.

    Args:
        mask_logits: (B, Q, T, H, W).
        size: (h, w) of the attended map.

    Returns:
        (B, 1, Q, T * h * w) bool, True where attention is allowed; no gradient flows.
    """
    logits = mask_logits.detach().flatten(0, 1)
    logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    allowed = logits.sigmoid().flatten(1).unflatten(0, mask_logits.shape[:2]) >= 0.5
    return (allowed | ~allowed.any(-1, keepdim=True)).unsqueeze(1)
