"""Parts of ViT-Adapter (Chen et al., ICLR 2023), with the official keys.

The tokens of a plain transformer, x, at stride 16, and those of a convolutional pyramid, c, at
strides 8, 16 and 32, exchange what they know by deformable attention.

Shapes: N frames, C channels, h, w patches of x; c has 2h * 2w + h * w + h/2 * w/2 tokens.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from torch import Tensor, nn

from rankseg_m2f.layers.ms_deform_attn import MSDeformAttn
from rankseg_m2f.modeling.backbone.swin import DropPath
from rankseg_m2f.modeling.backbone.token_maps import to_map

LayerNorm = partial(nn.LayerNorm, eps=1e-6)
Grid = tuple[int, int]


def pyramid_grids(grid: Grid) -> list[Grid]:
    """Grids of c's levels for the grid (h, w) of x."""
    height, width = grid
    return [(height * 2, width * 2), grid, (height // 2, width // 2)]


def split_levels(tokens: Tensor, grid: Grid) -> list[Tensor]:
    """c (N, tokens, C) to the map (N, C, h_i, w_i) of each level."""
    grids = pyramid_grids(grid)
    parts = tokens.split([height * width for height, width in grids], dim=1)
    return [to_map(part, level) for part, level in zip(parts, grids, strict=True)]


def cell_centres(grids: Sequence[Grid], like: Tensor) -> Tensor:
    """(tokens, 2) centres (x, y) in [0, 1] of the cells of all grids, one after the other."""
    centres = []
    for height, width in grids:
        rows = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) / height
        columns = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) / width
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centres.append(torch.stack([x, y], dim=-1).flatten(0, 1))
    return torch.cat(centres)


class SpatialPrior(nn.Module):
    """A small convolutional pyramid: images (N, 3, H, W) to maps of C channels at 4, 8, 16, 32."""

    def __init__(self, width: int, channels: int, norm: str):
        super().__init__()
        self.stem = nn.Sequential(
            *_conv(3, width, 2, norm),
            *_conv(width, width, 1, norm),
            *_conv(width, width, 1, norm),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        widths = (width, width * 2, width * 4, width * 4)
        self.conv2, self.conv3, self.conv4 = (
            nn.Sequential(*_conv(a, b, 2, norm)) for a, b in pairwise(widths)
        )
        self.fc1, self.fc2, self.fc3, self.fc4 = (nn.Conv2d(w, channels, 1) for w in widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        c1 = self.stem(images)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return [self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(c4)]


def _conv(in_channels: int, out_channels: int, stride: int, norm: str) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return [conv, get_norm(norm, out_channels), nn.ReLU(inplace=True)]


class Injector(nn.Module):
    """x looks at the pyramid: x + γ · attention(x, c)."""

    def __init__(self, channels: int, gamma: float, **attention):
        super().__init__()
        self.query_norm = LayerNorm(channels)
        self.feat_norm = LayerNorm(channels)
        self.attn = MSDeformAttn(channels, levels=3, **attention)
        self.gamma = nn.Parameter(torch.full((channels,), gamma))

    def forward(self, x: Tensor, c: Tensor, grid: Grid) -> Tensor:
        reference = cell_centres([grid], x)
        update = self.attn(self.query_norm(x), self.feat_norm(c), pyramid_grids(grid), reference)
        return x + self.gamma * update


class PyramidConv(nn.Module):
    """3x3 depthwise convolution of each level of c."""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, c: Tensor, grid: Grid) -> Tensor:
        levels = [self.dwconv(level).flatten(2) for level in split_levels(c, grid)]
        return torch.cat(levels, dim=2).transpose(1, 2)


class ConvFeedForward(nn.Module):
    """Two linear layers with a depthwise convolution and a GELU between; c in and out."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = PyramidConv(hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, c: Tensor, grid: Grid) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(c), grid)))


class Extractor(nn.Module):
    """The pyramid looks at x, then a feed-forward layer mixes neighbours."""

    def __init__(self, channels: int, ffn_ratio: float, drop_path: float, **attention):
        super().__init__()
        self.query_norm = LayerNorm(channels)
        self.feat_norm = LayerNorm(channels)
        self.attn = MSDeformAttn(channels, levels=1, **attention)
        self.ffn_norm = LayerNorm(channels)
        self.ffn = ConvFeedForward(channels, int(channels * ffn_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, c: Tensor, x: Tensor, grid: Grid) -> Tensor:
        reference = cell_centres(pyramid_grids(grid), c)
        c = c + self.attn(self.query_norm(c), self.feat_norm(x), [grid], reference)
        return c + self.drop_path(self.ffn(self.ffn_norm(c), grid))


class Interaction(nn.Module):
    """What stands before and after some blocks of the transformer."""

    def __init__(
        self,
        channels: int,
        gamma: float,
        ffn_ratio: float,
        drop_path: float,
        extra: int,
        **attention,
    ):
        """`extra`: extractors after the first; `attention`: heads, points, value_channels."""
        super().__init__()
        self.injector = Injector(channels, gamma, **attention)
        self.extractor = Extractor(channels, ffn_ratio, drop_path, **attention)
        self.extra_extractors = nn.ModuleList(
            Extractor(channels, ffn_ratio, drop_path, **attention) for _ in range(extra)
        )

    def extract(self, c: Tensor, x: Tensor, grid: Grid) -> Tensor:
        """c after all extractors have looked at x."""
        c = self.extractor(c, x, grid)
        for extractor in self.extra_extractors:
            c = extractor(c, x, grid)
        return c


def windowed_block(block: nn.Module, x: Tensor, grid: Grid, window: int) -> Tensor:
    """A block of timm's ViT whose attention stays inside windows; x (N, h * w, C) to the same.

    The grid is filled up to whole windows with queries, keys and values of zero, which count in
    the softmax, as in the official code.
    """
    attention = block.attn
    qkv = to_map(attention.qkv(block.norm1(x)), grid)  # (N, 3C, h, w)
    qkv = F.pad(qkv, (0, -grid[1] % window, 0, -grid[0] % window))
    rows, columns = (side // window for side in qkv.shape[-2:])
    qkv = qkv.unflatten(3, (columns, window)).unflatten(2, (rows, window))
    qkv = qkv.unflatten(1, (3, attention.num_heads, -1))  # (N, 3, M, C / M, r, W, c, W)
    qkv = qkv.permute(1, 0, 4, 6, 2, 5, 7, 3).flatten(5, 6).flatten(1, 3)
    mixed = F.scaled_dot_product_attention(*qkv)  # (N * r * c, M, W * W, C / M)
    mixed = mixed.unflatten(2, (window, window)).unflatten(0, (len(x), rows, columns))
    mixed = mixed.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4).flatten(1, 2)
    mixed = mixed[:, : grid[0], : grid[1]].flatten(1, 2)
    x = x + block.drop_path1(block.ls1(attention.proj(mixed)))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
