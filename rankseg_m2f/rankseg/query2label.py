"""Query2Label (Liu et al., 2021) as the paper uses it: "2x TranDec" of Table 6.

Checkpoint names are those of `decode_head.img_cls_head` in the official code.

Shapes: B clips, K labels, L memory tokens, C feature channels, D head width; s side of the grid of
positions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankseg_m2f.rankseg.label_head import EmbeddingLabelHead, GroupWiseLinear
from rankseg_m2f.rankseg.pixel_label_head import conv_tokens


class QueryLayer(nn.Module):
    """Labels attend to the image, then a feed-forward layer; norms come last.

    The self-attention of DETR's layer is left out, as in Query2Label: labels see each other through
    nothing but the image.
    """

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)
        self.drop = nn.Dropout(dropout)

    def forward(self, labels: Tensor, embeddings: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Labels (B, K, D) that have looked at keys and values (B, L, D)."""
        mixed, _ = self.multihead_attn(labels + embeddings, keys, values, need_weights=False)
        labels = self.norm2(labels + self.drop(mixed))
        hidden = self.drop(F.relu(self.linear1(labels)))
        return self.norm3(labels + self.drop(self.linear2(hidden)))


class QueryDecoder(nn.Module):
    """`depth` layers and a last norm."""

    def __init__(self, channels: int, heads: int, hidden: int, depth: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(
            QueryLayer(channels, heads, hidden, dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, embeddings: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Label embeddings (B, K, D) to refined ones; keys and values are (B, L, D)."""
        labels = torch.zeros_like(embeddings)
        for layer in self.layers:
            labels = layer(labels, embeddings, keys, values)
        return self.norm(labels)


class SinePosition(nn.Module):
    """The sine position of a fixed grid, kept in checkpoints as `pe`: (1, D, s, s)."""

    pe: Tensor

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.register_buffer("pe", sine_position(channels, side))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, D) of one or more grids, row by row, with their position added.

        Raises:
            ValueError: L is not a multiple of s * s.
        """
        place = self.pe.flatten(2).transpose(1, 2)  # (1, s s, D)
        cells = place.shape[1]
        if tokens.shape[1] % cells:
            side = self.pe.shape[3]
            raise ValueError(
                f"Query2Label has positions of a grid of {side} x {side} cells and met "
                f"{tokens.shape[1]} tokens: pool its map to {side} x {side}"
            )
        return tokens + place.repeat(1, tokens.shape[1] // cells, 1)


def sine_position(channels: int, side: int) -> Tensor:
    """(1, D, s, s): half the channels say the row, the others the column.

    Raises:
        ValueError: channels not divisible by 4.
    """
    if channels % 4:
        raise ValueError(f"a sine position needs a multiple of 4 channels, got {channels}")
    # Cells are counted from 1, and the last one stands at 2π; both as in DETR.
    place = torch.arange(1, side + 1, dtype=torch.float32)
    place = place / (side + 1e-6) * 2 * math.pi
    half = channels // 2
    period = 10000 ** (2 * (torch.arange(half) // 2).float() / half)
    angle = place[:, None] / period  # (s, D/2)
    wave = torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)
    rows = wave.T[:, :, None].expand(-1, -1, side)
    columns = wave.T[:, None, :].expand(-1, side, -1)
    return torch.cat([rows, columns])[None].contiguous()


class Query2LabelHead(EmbeddingLabelHead):
    """Label embeddings query the pixels of a pooled map through transformer decoder layers.

    `DecoderLabelHead` is our own variant: norms first, self-attention, no positions.

    Args:
        num_labels: K.
        in_channels: C.
        hidden_dim: D.
        dropout: in the transformer layers.
        shared_channels: see `EmbeddingLabelHead`.
        heads, hidden, depth: of the decoder; `hidden` is the feed-forward width.
        side: s, of the grid whose cells the tokens are; a clip has one grid per frame.
    """

    def __init__(
        self,
        num_labels: int,
        in_channels: int,
        hidden_dim: int = 512,
        dropout: float = 0.1,
        shared_channels: int | None = None,
        *,
        heads: int = 8,
        hidden: int = 2048,
        depth: int = 2,
        side: int = 16,
    ):
        super().__init__(num_labels, hidden_dim, shared_channels)
        self.input_proj = nn.Conv2d(in_channels, hidden_dim, 1)
        self.position_embedding = SinePosition(hidden_dim, side)
        decoder = QueryDecoder(hidden_dim, heads, hidden, depth, dropout)
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        self.transformer = nn.ModuleDict({"decoder": decoder})
        self.query_embed = None
        if shared_channels is None:
            self.query_embed = nn.Embedding(num_labels, hidden_dim)
            self.cls_emb = None  # by its name in Query2Label instead
        self.fc = GroupWiseLinear(num_labels, hidden_dim)

    def forward(self, features: Tensor, label_embeddings: Tensor | None = None) -> Tensor:
        """See `LabelHead.forward`."""
        memory = conv_tokens(self.input_proj, features)  # (B, L, D)
        keys = self.position_embedding(memory)
        labels = self.embeddings(label_embeddings).expand(len(features), -1, -1)  # (B, K, D)
        return self.fc(self.transformer["decoder"](labels, keys, memory))

    def embeddings(self, label_embeddings: Tensor | None) -> Tensor:
        """See `EmbeddingLabelHead.embeddings`."""
        if self.query_embed is not None:
            return self.query_embed.weight[None]
        return super().embeddings(label_embeddings)
