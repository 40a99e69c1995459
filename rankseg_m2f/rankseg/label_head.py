"""What all multi-label heads share.

Shapes: B clips, L feature tokens, K labels, C feature channels, D head width.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class GroupWiseLinear(nn.Module):
    """One linear classifier per label: (B, K, D) to logits (B, K)."""

    def __init__(self, num_labels: int, channels: int):
        super().__init__()
        bound = 1 / math.sqrt(channels)
        self.W = nn.Parameter(torch.empty(1, num_labels, channels).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(1, num_labels).uniform_(-bound, bound))

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.W * tokens).sum(-1) + self.b


class LabelHead(nn.Module, ABC):
    """ξ of the paper: which labels are in this image or clip?

    Attributes:
        share: maps label embeddings handed to `forward` to those of the head; None: the head takes
            none.
    """

    share: nn.Module | None

    @abstractmethod
    def forward(self, features: Tensor, label_embeddings: Tensor | None = None) -> Tensor:
        """Presence logits of all labels.

        Args:
            features: (B, L, C), queries or flattened pixels (`tokens_of_map`).
            label_embeddings: (K, shared_channels), only when built to share them.

        Returns:
            (B, K) float.
        """


class EmbeddingLabelHead(LabelHead):
    """A head with one embedding per label, learned or shared.

    Args:
        num_labels: K.
        width: of an embedding, D.
        shared_channels: width of the label embeddings handed to `forward`, when the segmentor
            shares its class weights (SHARE_EMBEDDING); None: the head learns its own.
    """

    def __init__(self, num_labels: int, width: int, shared_channels: int | None = None):
        super().__init__()
        self.num_labels = num_labels
        self.cls_emb = None
        self.share = None
        if shared_channels is None:
            self.cls_emb = nn.Parameter(torch.empty(1, num_labels, width))
            nn.init.trunc_normal_(self.cls_emb, std=0.02)
        elif shared_channels == width:
            self.share = nn.Identity()
        else:
            self.share = nn.Linear(shared_channels, width)

    def embeddings(self, label_embeddings: Tensor | None) -> Tensor:
        """(1, K, D): the learned ones, or those of (K, shared_channels) handed in."""
        if self.share is not None:
            return self.share(label_embeddings)[None]
        assert self.cls_emb is not None  # learned where none are shared
        return self.cls_emb
