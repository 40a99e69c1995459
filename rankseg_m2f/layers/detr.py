"""Transformer layers in DETR's parameter layout, post- or pre-norm.

Shapes: B clips, Lq queries, Lk tokens, C channels.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from rankseg_m2f.layers.attention import MultiHeadAttention


class _Layer(nn.Module):
    """Sublayers that are added to their input, with the norm after or on their own input."""

    attentions: ClassVar[tuple[str, ...]]

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float, pre_norm: bool):
        """
        Args:
            channels: C.
            hidden: width between the two linear layers.
            pre_norm: sublayers normalise what they read, not what they leave.
        """
        super().__init__()
        for name in self.attentions:
            self.add_module(name, MultiHeadAttention(channels, heads, dropout))
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        for i in range(1, len(self.attentions) + 2):
            self.add_module(f"norm{i}", nn.LayerNorm(channels))
        self.drop = nn.Dropout(dropout)
        self.pre_norm = pre_norm
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def enter(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x) if self.pre_norm else x

    def leave(self, x: Tensor, update: Tensor, norm: nn.Module) -> Tensor:
        x = x + self.drop(update)
        return x if self.pre_norm else norm(x)

    def feed(self, x: Tensor, norm: nn.Module) -> Tensor:
        hidden = self.drop(F.relu(self.linear1(self.enter(x, norm))))
        return self.leave(x, self.linear2(hidden), norm)


class DetrEncoderLayer(_Layer):
    """Self-attention and feed-forward over tokens."""

    attentions = ("self_attn",)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """(B, Lk, C) tokens with position (Lk, C) to (B, Lk, C)."""
        entered = self.enter(tokens, self.norm1)
        placed = entered + position
        tokens = self.leave(tokens, self.self_attn(placed, placed, entered), self.norm1)
        return self.feed(tokens, self.norm2)


class DetrEncoder(nn.Module):
    """A stack of `DetrEncoderLayer`; of 0 layers it changes nothing, unless they are pre-norm."""

    def __init__(
        self, channels: int, heads: int, hidden: int, depth: int, dropout: float, pre_norm: bool
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            DetrEncoderLayer(channels, heads, hidden, dropout, pre_norm) for _ in range(depth)
        )
        # Pre-norm sublayers leave their sum unnormalised.
        self.norm = nn.LayerNorm(channels) if pre_norm else nn.Identity()

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """(B, Lk, C) tokens with position (Lk, C) to (B, Lk, C)."""
        for layer in self.layers:
            tokens = layer(tokens, position)
        return self.norm(tokens)


class DetrDecoderLayer(_Layer):
    """Queries attend to each other, then to all tokens, then feed-forward."""

    attentions = ("self_attn", "multihead_attn")

    def forward(self, queries: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, Lq, C) queries and their position, and (B, Lk, C) keys and values, to (B, Lq, C)."""
        entered = self.enter(queries, self.norm1)
        placed = entered + position
        queries = self.leave(queries, self.self_attn(placed, placed, entered), self.norm1)
        placed = self.enter(queries, self.norm2) + position
        queries = self.leave(queries, self.multihead_attn(placed, keys, values), self.norm2)
        return self.feed(queries, self.norm3)
