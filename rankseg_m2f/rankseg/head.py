"""The multi-label head: which labels are in this image or clip?

Shapes: B clips, L feature tokens, K labels, C feature channels, D head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankseg_m2f.rankseg.label_head import EmbeddingLabelHead, GroupWiseLinear, LabelHead
from rankseg_m2f.rankseg.pixel_label_head import PooledConvLabelHead, SeparableLabelHead
from rankseg_m2f.rankseg.query2label import Query2LabelHead
from rankseg_m2f.rankseg.transformer import Block, DecoderBlock


class MultiLabelHead(EmbeddingLabelHead):
    """One transformer encoder layer over features and label embeddings: the official form.

    Args:
        num_labels: K.
        in_channels: C of the feature tokens.
        hidden_dim: D.
        dropout: in the transformer layers.
        shared_channels: see `EmbeddingLabelHead`.
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


class PooledLabelHead(EmbeddingLabelHead):
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


# Forms of ξ, of tokens of any kind.
HEADS = {"encoder": MultiLabelHead, "decoder": DecoderLabelHead, "pooled": PooledLabelHead}
# Those of the official pixel segmentors: of DeepLabv3 and UPerNet, and two of Segmenter (Table 6).
PIXEL_HEADS = {
    "separable": SeparableLabelHead,
    "query2label": Query2LabelHead,
    "gap": PooledConvLabelHead,
}


def build_label_head(form: str, *args, **settings) -> LabelHead:
    """The head of a form of `HEADS` or `PIXEL_HEADS`, with the arguments of `MultiLabelHead`.

    Raises:
        ValueError: an unknown form.
    """
    heads = HEADS | PIXEL_HEADS
    if form not in heads:
        raise ValueError(f"HEAD={form!r} must be one of {', '.join(heads)}")
    return heads[form](*args, **settings)


def tokens_of_map(features: Tensor, num_frames: int = 1) -> Tensor:
    """Feature maps (B * T, C, h, w) as tokens (B, T * h * w, C), for heads on pixels.

    Args:
        num_frames: T; frames of a clip are neighbours.
    """
    clips = features.unflatten(0, (-1, num_frames))
    return clips.permute(0, 1, 3, 4, 2).flatten(1, 3)
