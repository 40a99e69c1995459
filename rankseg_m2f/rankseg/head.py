"""The multi-label head: which labels are in this image or clip?

Shapes: B clips, L feature tokens, K labels, C feature channels, D head width.
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankseg_m2f.rankseg.transformer import Block, DecoderBlock


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
    """ξ of the paper, the part all forms share: one embedding per label, learned or shared.

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
        return self.cls_emb if self.share is None else self.share(label_embeddings)[None]

    @abstractmethod
    def forward(self, features: Tensor, label_embeddings: Tensor | None = None) -> Tensor:
        """Presence logits of all labels.

        Args:
            features: (B, L, C), queries or flattened pixels (`tokens_of_map`).
            label_embeddings: (K, shared_channels), only when built to share them.

        Returns:
            (B, K) float.
        """


class MultiLabelHead(LabelHead):
    """One transformer encoder layer over features and label embeddings: the official form.

    Args:
        num_labels: K.
        in_channels: C of the feature tokens.
        hidden_dim: D.
        dropout: in the transformer layers.
        shared_channels: see `LabelHead`.
    """

    def __init__(
        self,
        num_labels: int,
        in_channels: int,
        hidden_dim: int = 512,
        dropout: float = 0.1,
        shared_channels: int | None = None,
    ):
        super().__init__(num_labels, hidden_dim, shared_channels)
        self.proj_dec = nn.Linear(in_channels, hidden_dim)
        # Attention heads of 64 channels as published; a narrower layer has one.
        self.block = self.layers(hidden_dim, max(1, hidden_dim // 64), dropout)
        self.norm = nn.LayerNorm(hidden_dim)
        self.fc = GroupWiseLinear(num_labels, hidden_dim)

    @staticmethod
    def layers(channels: int, heads: int, dropout: float) -> nn.Module:
        """The transformer layers, checkpoint name `block`."""
        return Block(channels, heads, dropout=dropout)

    def refined(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """Tokens, the last K being the label embeddings (B, K, D) that saw features (B, L, D)."""
        return self.block(torch.cat([features, embeddings], dim=1))

    def forward(self, features: Tensor, label_embeddings: Tensor | None = None) -> Tensor:
        """See `LabelHead.forward`."""
        embeddings = self.embeddings(label_embeddings).expand(len(features), -1, -1)
        tokens = self.norm(self.refined(embeddings, self.proj_dec(features)))
        return self.fc(tokens[:, -self.num_labels :])


class DecoderLabelHead(MultiLabelHead):
    """Two transformer decoder layers in which label embeddings query the features.

    The head of Query2Label, with norms first as in the encoder form. Arguments as there.
    """

    @staticmethod
    def layers(channels: int, heads: int, dropout: float) -> nn.Module:
        """See `MultiLabelHead.layers`."""
        return nn.ModuleList(DecoderBlock(channels, heads, dropout=dropout) for _ in range(2))

    def refined(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """See `MultiLabelHead.refined`."""
        for block in self.block:
            embeddings = block(embeddings, features)
        return embeddings


class PooledLabelHead(LabelHead):
    """Average over tokens, then one linear classifier whose weights are the label embeddings.

    Args:
        num_labels, in_channels, shared_channels: as of `MultiLabelHead`.
        unused: `hidden_dim` and `dropout` of the other forms; nothing is hidden or dropped here.
    """

    def __init__(
        self, num_labels: int, in_channels: int, *, shared_channels: int | None = None, **unused
    ):
        super().__init__(num_labels, in_channels, shared_channels)
        self.bias = nn.Parameter(torch.zeros(num_labels))

    def forward(self, features: Tensor, label_embeddings: Tensor | None = None) -> Tensor:
        """See `LabelHead.forward`."""
        return F.linear(features.mean(1), self.embeddings(label_embeddings)[0], self.bias)


# Forms of ξ (Table 6 of the paper).
HEADS = {"encoder": MultiLabelHead, "decoder": DecoderLabelHead, "pooled": PooledLabelHead}


def build_label_head(form: str, *args, **settings) -> LabelHead:
    """The head of a form of `HEADS`, with the arguments of `MultiLabelHead`.

    Raises:
        ValueError: an unknown form.
    """
    if form not in HEADS:
        raise ValueError(f"HEAD={form!r} is none of {', '.join(HEADS)}")
    return HEADS[form](*args, **settings)


def tokens_of_map(features: Tensor, num_frames: int = 1) -> Tensor:
    """Feature maps (B * T, C, h, w) as tokens (B, T * h * w, C), for heads on pixels.

    Args:
        num_frames: T; frames of a clip are neighbours.
    """
    clips = features.unflatten(0, (-1, num_frames))
    return clips.permute(0, 1, 3, 4, 2).flatten(1, 3)
