"""The multi-label head: which labels are in this image or clip?

Shapes: B clips, L feature tokens, K labels, C feature channels, D head width.
"""

import math

import torch
from torch import Tensor, nn

from rankseg_m2f.rankseg.transformer import Block


class GroupWiseLinear(nn.Module):
    """One linear classifier per label: (B, K, D) to logits (B, K)."""

    def __init__(self, num_labels: int, channels: int):
        super().__init__()
        bound = 1 / math.sqrt(channels)
        self.W = nn.Parameter(torch.empty(1, num_labels, channels).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(1, num_labels).uniform_(-bound, bound))

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.W * tokens).sum(-1) + self.b


class MultiLabelHead(nn.Module):
    """ξ of the paper as one transformer encoder layer over features and label embeddings.

    Args:
        num_labels: K.
        in_channels: C of the feature tokens.
        hidden_dim: D.
        dropout: in the transformer block.
        shared_channels: width of the label embeddings handed to `forward`, when the segmentor
            shares its class weights (SHARE_EMBEDDING); None: the head learns its own.
    """

    def __init__(
        self,
        num_labels: int,
        in_channels: int,
        hidden_dim: int = 512,
        dropout: float = 0.1,
        shared_channels: int | None = None,
    ):
        super().__init__()
        self.num_labels = num_labels
        self.cls_emb = None
        self.share = None
        if shared_channels is None:
            self.cls_emb = nn.Parameter(torch.empty(1, num_labels, hidden_dim))
            nn.init.trunc_normal_(self.cls_emb, std=0.02)
        elif shared_channels == hidden_dim:
            self.share = nn.Identity()
        else:
            self.share = nn.Linear(shared_channels, hidden_dim)
        self.proj_dec = nn.Linear(in_channels, hidden_dim)
        # Heads of 64 channels as published; a narrower head has one.
        self.block = Block(hidden_dim, heads=max(1, hidden_dim // 64), dropout=dropout)
        self.norm = nn.LayerNorm(hidden_dim)
        self.fc = GroupWiseLinear(num_labels, hidden_dim)

    def forward(self, features: Tensor, label_embeddings: Tensor | None = None) -> Tensor:
        """Presence logits of all labels.

        Args:
            features: (B, L, C), queries or flattened pixels.
            label_embeddings: (K, shared_channels), only when built to share them.

        Returns:
            (B, K) float.
        """
        embeddings = self.cls_emb if self.share is None else self.share(label_embeddings)[None]
        tokens = torch.cat(
            [self.proj_dec(features), embeddings.expand(len(features), -1, -1)], dim=1
        )
        tokens = self.norm(self.block(tokens))
        return self.fc(tokens[:, -self.num_labels :])
