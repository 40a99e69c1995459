"""Multi-label heads of the paper's pixel segmentors, with their official parameters.

Their 1x1 convolutions are kept as convolutions for the sake of checkpoints
(`decode_head.img_cls_head`); like all heads they take tokens, in which no pixel has neighbours.

Shapes: B clips, L tokens, K labels, C feature channels, D head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankseg_m2f.rankseg.label_head import EmbeddingLabelHead, GroupWiseLinear, LabelHead
from rankseg_m2f.rankseg.transformer import Block


class TokenConv(nn.Module):
    """A 1x1 convolution with bias and ReLU, of tokens: (B, L, C) to (B, L, C')."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, groups=groups)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.relu(conv_tokens(self.conv, tokens))


def conv_tokens(conv: nn.Module, tokens: Tensor) -> Tensor:
    """A 1x1 convolution of tokens (B, L, C): (B, L, C')."""
    return conv(tokens.transpose(1, 2).unsqueeze(3)).squeeze(3).transpose(1, 2)


class SeparableProjection(nn.Module):
    """Channels are scaled one by one, then mixed: tokens (B, L, C) to (B, L, D)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.depthwise_conv = TokenConv(in_channels, in_channels, groups=in_channels)
        self.pointwise_conv = TokenConv(in_channels, out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(tokens))


class SeparableLabelHead(EmbeddingLabelHead):
    """One transformer encoder layer over pixels and label embeddings: of DeepLabv3 and UPerNet.

    It differs from `MultiLabelHead`, that of queries, in its projection alone.

    Args:
        num_labels: K.
        in_channels: C.
        hidden_dim: D.
        dropout: in the transformer layer.
        shared_channels: see `EmbeddingLabelHead`.
        heads: of attention; None: one per 64 channels, as published.
    """

    def __init__(
        self,
        num_labels: int,
        in_channels: int,
        hidden_dim: int = 512,
        dropout: float = 0.1,
        shared_channels: int | None = None,
        heads: int | None = None,
    ):
        super().__init__(num_labels, hidden_dim, shared_channels)
        self.proj_dec = SeparableProjection(in_channels, hidden_dim)
        self.block = Block(hidden_dim, heads or max(1, hidden_dim // 64), dropout=dropout)
        self.norm = nn.LayerNorm(hidden_dim)
        self.fc = GroupWiseLinear(num_labels, hidden_dim)

    def forward(self, features: Tensor, label_embeddings: Tensor | None = None) -> Tensor:
        """See `LabelHead.forward`."""
        labels = self.embeddings(label_embeddings).expand(len(features), -1, -1)  # (B, K, D)
        tokens = self.block(torch.cat([self.proj_dec(features), labels], dim=1))
        return self.fc(self.norm(tokens[:, -self.num_labels :]))


class PooledConvLabelHead(LabelHead):
    """Average over tokens, then two 1x1 convolutions ("GAP + Linear" of Table 6).

    Args:
        num_labels: K.
        in_channels: C.
        unused: arguments of the other forms; nothing is hidden, dropped or shared here.
    """

    def __init__(self, num_labels: int, in_channels: int, **unused: object):
        super().__init__()
        self.share = None
        # Official names: the numbers of layers in a row, of which the first is the pooling.
        self.add_module("1", TokenConv(in_channels, in_channels))
        self.add_module("2", nn.Conv2d(in_channels, num_labels, 1))

    def forward(self, features: Tensor, label_embeddings: Tensor | None = None) -> Tensor:
        """See `LabelHead.forward`; label embeddings are not read."""
        hidden = self.get_submodule("1")(features.mean(1, keepdim=True))  # (B, 1, C)
        return conv_tokens(self.get_submodule("2"), hidden).squeeze(1)
