"""Post- or pre-norm transformer sublayers of the query decoder, with the official keys.

Shapes: B clips, Lq queries, Lk memory tokens, C channels.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiHeadAttention(nn.Module):
    """``nn.MultiheadAttention``'s parameters on fused attention.

    Unlike it, a mask is given once for all heads: (B, 1, Lq, Lk) instead of (B * heads, Lq, Lk).
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not split into {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Attend from (B, Lq, C) to (B, Lk, C); `mask` bool, True where attention is allowed."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class _Residual(nn.Module):
    """x + f(x) with the norm after (post-norm) or on f's input (pre-norm)."""

    def __init__(self, channels: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.drop = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def enter(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.pre_norm else x

    def leave(self, x: Tensor, update: Tensor) -> Tensor:
        x = x + self.drop(update)
        return x if self.pre_norm else self.norm(x)


class SelfAttentionLayer(_Residual):
    """Queries attend to each other; their position is added to queries and keys."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0, pre_norm: bool = False):
        super().__init__(channels, dropout, pre_norm)
        self.self_attn = MultiHeadAttention(channels, heads, dropout)

    def forward(self, queries: Tensor, position: Tensor) -> Tensor:
        entered = self.enter(queries)
        placed = entered + position
        return self.leave(queries, self.self_attn(placed, placed, entered))


class CrossAttentionLayer(_Residual):
    """Queries attend to the pixels their masks allow."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0, pre_norm: bool = False):
        super().__init__(channels, dropout, pre_norm)
        self.multihead_attn = MultiHeadAttention(channels, heads, dropout)

    def forward(
        self, queries: Tensor, position: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> Tensor:
        placed = self.enter(queries) + position
        return self.leave(queries, self.multihead_attn(placed, keys, values, mask))


class FeedForwardLayer(_Residual):
    """Two linear layers with a ReLU between."""

    def __init__(self, channels: int, hidden: int, dropout: float = 0.0, pre_norm: bool = False):
        super().__init__(channels, dropout, pre_norm)
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(F.relu(self.linear1(self.enter(x))))
        return self.leave(x, self.linear2(hidden))


class MLP(nn.Module):
    """`depth` linear layers with ReLUs between: (..., in) to (..., out)."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, depth: int):
        super().__init__()
        widths = [in_channels, *[hidden] * (depth - 1), out_channels]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
