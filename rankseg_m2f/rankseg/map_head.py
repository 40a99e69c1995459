"""Multi-label heads that read a feature map: the forms of the paper's pixel segmentors.

Checkpoint names are those of `decode_head.img_cls_head` in the official code.

Shapes: B clips, T frames, K labels, C feature channels, D head width; h, w of the feature map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankseg_m2f.rankseg.head import GroupWiseLinear, LabelHead, tokens_of_map
from rankseg_m2f.rankseg.transformer import Block


class ConvReLU(nn.Module):
    """A 1x1 convolution with bias, then ReLU; maps (N, C, h, w) to (N, C', h, w)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, groups=groups)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.conv(maps))


class SeparableProjection(nn.Module):
    """Channels are scaled one by one, then mixed: (N, C, h, w) to (N, D, h, w)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.depthwise_conv = ConvReLU(in_channels, in_channels, groups=in_channels)
        self.pointwise_conv = ConvReLU(in_channels, out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(maps))


def pooling(size: int | None) -> nn.Module:
    """Average pooling to size x size, whatever the input's size; None: none."""
    return nn.Identity() if size is None else nn.AdaptiveAvgPool2d(size)


class MapLabelHead(LabelHead):
    """One transformer encoder layer over the pixels of a map and the label embeddings.

    The head of DeepLabv3 and UPerNet with RankSeg. It differs from `MultiLabelHead`, that of
    queries, in its projection alone.

    Args:
        num_labels: K.
        in_channels: C.
        hidden_dim: D.
        heads, expansion, dropout: of the transformer layer.
        pool: side of the map that is read; None: as it is.
        shared_channels: see `LabelHead`.
    """

    def __init__(
        self,
        num_labels: int,
        in_channels: int,
        hidden_dim: int = 512,
        *,
        heads: int = 8,
        expansion: int = 4,
        dropout: float = 0.1,
        pool: int | None = None,
        shared_channels: int | None = None,
    ):
        super().__init__(num_labels, hidden_dim, shared_channels)
        self.pool = pooling(pool)
        self.proj_dec = SeparableProjection(in_channels, hidden_dim)
        self.block = Block(hidden_dim, heads, expansion, dropout)
        self.norm = nn.LayerNorm(hidden_dim)
        self.fc = GroupWiseLinear(num_labels, hidden_dim)

    def forward(
        self, features: Tensor, label_embeddings: Tensor | None = None, num_frames: int = 1
    ) -> Tensor:
        """Presence logits of all labels.

        Args:
            features: (B * T, C, h, w), frames of a clip being neighbours.
            label_embeddings: (K, shared_channels), only when built to share them.
            num_frames: T.

        Returns:
            (B, K) float.
        """
        tokens = tokens_of_map(self.proj_dec(self.pool(features)), num_frames)  # (B, T h w, D)
        labels = self.embeddings(label_embeddings).expand(len(tokens), -1, -1)  # (B, K, D)
        tokens = self.block(torch.cat([tokens, labels], dim=1))
        return self.fc(self.norm(tokens[:, -self.num_labels :]))


class PooledMapHead(nn.Sequential):
    """Global average pooling and two 1x1 convolutions ("GAP + Linear" of Table 6).

    Args:
        num_labels: K.
        in_channels: C.
        pool: side of the map whose average is taken. Where it does not divide the map's side, its
            windows overlap, so the average is not that of the map.
    """

    def __init__(self, num_labels: int, in_channels: int, pool: int | None = 16):
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            ConvReLU(in_channels, in_channels),
            nn.Conv2d(in_channels, num_labels, 1),
        )
        self.side = pool

    def forward(
        self, features: Tensor, label_embeddings: Tensor | None = None, num_frames: int = 1
    ) -> Tensor:
        """See `MapLabelHead.forward`; label embeddings are not read."""
        if self.side is not None:
            features = F.adaptive_avg_pool2d(features, self.side)
        pooled = self[0](features).unflatten(0, (-1, num_frames)).mean(1)  # (B, C, 1, 1)
        return self[2](self[1](pooled)).flatten(1)
