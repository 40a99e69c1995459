"""Pre-norm transformer blocks."""

import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention with one joint projection; tokens (B, L, C) in and out."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not split into {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        query, keys, values = (
            self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, keys, values, dropout_p=dropout)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens (B, L, C) to memory (B, M, C); tokens (B, L, C) out."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        query = self.q(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys, values = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, keys, values, dropout_p=dropout)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Two linear layers with a GELU (erf form) between; tokens (B, L, C) in and out."""

    def __init__(self, channels: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(tokens)))))


class Block(nn.Module):
    """Self-attention, then feed-forward, each on normalised tokens and added back."""

    def __init__(self, channels: int, heads: int, expansion: int = 4, dropout: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = SelfAttention(channels, heads, dropout)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, expansion * channels, dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) to tokens of the same shape."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class DecoderBlock(nn.Module):
    """Self-attention, attention to memory, feed-forward, each on normalised tokens."""

    def __init__(self, channels: int, heads: int, expansion: int = 4, dropout: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = SelfAttention(channels, heads, dropout)
        self.norm2 = nn.LayerNorm(channels)
        self.norm_memory = nn.LayerNorm(channels)
        self.cross = CrossAttention(channels, heads, dropout)
        self.norm3 = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, expansion * channels, dropout)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Tokens (B, L, C) that have looked at memory (B, M, C)."""
        tokens = tokens + self.attn(self.norm1(tokens))
        tokens = tokens + self.cross(self.norm2(tokens), self.norm_memory(memory))
        return tokens + self.mlp(self.norm3(tokens))
