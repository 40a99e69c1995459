"""Swin Transformer as a Detectron2 backbone, with the official keys.

Shapes: N frames, L tokens of a map (h * w), C channels, W window side, M heads; tokens are kept
as maps (N, h, w, C).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankseg_m2f.errors import UserError, require_one_of
from rankseg_m2f.rankseg.transformer import FeedForward

# Added to the attention between pixels that were not neighbours before the shift.
_NOT_NEIGHBOURS = -100.0


class DropPath(nn.Module):
    """Drops a sample's whole update with probability `rate` while training."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class WindowAttention(nn.Module):
    """Self-attention inside windows, with a learnable bias per relative position."""

    def __init__(
        self,
        channels: int,
        window: int,
        heads: int,
        qkv_bias: bool,
        qk_scale: float | None,
        attn_drop: float,
        drop: float,
    ):
        super().__init__()
        self.heads = heads
        self.scale = qk_scale
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        axis = torch.arange(window)
        row, column = (x.flatten() for x in torch.meshgrid(axis, axis, indexing="ij"))
        rows = row[:, None] - row + window - 1
        columns = column[:, None] - column + window - 1
        self.register_buffer("relative_position_index", rows * (2 * window - 1) + columns)
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, windows: Tensor, attn_mask: Tensor | None) -> Tensor:
        """Windows (N * n, W * W, C) to the same; `attn_mask` (n, W * W, W * W) is added."""
        tokens = windows.shape[1]
        qkv = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(tokens, tokens, self.heads).permute(2, 0, 1).to(qkv.dtype)
        if attn_mask is not None:
            images = len(windows) // len(attn_mask)
            bias = (bias + attn_mask.unsqueeze(1).to(bias.dtype)).repeat(images, 1, 1, 1)
        dropout = self.attn_drop if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            *qkv, attn_mask=bias, dropout_p=dropout, scale=self.scale
        )
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class SwinBlock(nn.Module):
    """Window attention, plain or shifted by half a window, and feed-forward; pre-norm."""

    def __init__(
        self, channels: int, window: int, shift: int, mlp_ratio: float, drop_path: float, **attn
    ):
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, window, **attn)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, int(channels * mlp_ratio), attn["drop"])

    def forward(self, x: Tensor, attn_mask: Tensor | None) -> Tensor:
        """Map (N, h, w, C) to the same; `attn_mask` as in `WindowAttention`, read when shifted."""
        x = x + self.drop_path(self._attend(self.norm1(x), attn_mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, attn_mask: Tensor | None) -> Tensor:
        _, height, width, channels = x.shape
        side, shift = self.window, self.shift
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        padded = x.shape[1:3]
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
        grid = (padded[0] // side, padded[1] // side)
        x = x.unflatten(2, (grid[1], side)).unflatten(1, (grid[0], side)).transpose(2, 3)
        x = self.attn(x.reshape(-1, side * side, channels), attn_mask if shift else None)
        x = x.view(-1, *grid, side, side, channels).transpose(2, 3).reshape(-1, *padded, channels)
        if shift:
            x = x.roll((shift, shift), dims=(1, 2))
        return x[:, :height, :width]


def _shifted_mask(x: Tensor, side: int) -> Tensor:
    """(windows, W * W, W * W): 0 where two pixels of a shifted window may meet, else -100."""
    height, width = (-(-length // side) * side for length in x.shape[1:3])
    shift = side // 2
    # A roll brings together three strips of rows and of columns; each pair is a region.
    strips = []
    for length in (height, width):
        position = torch.arange(length, device=x.device)
        strips.append((position >= length - side).int() + (position >= length - shift).int())
    region = strips[0][:, None] * 3 + strips[1]
    windows = region.view(height // side, side, width // side, side).transpose(1, 2)
    windows = windows.reshape(-1, side * side)
    return (windows[:, :, None] != windows[:, None]).float() * _NOT_NEIGHBOURS


class PatchMerging(nn.Module):
    """2 x 2 neighbours become one token of twice the channels: (N, h, w, C) to half the size."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class PatchEmbed(nn.Module):
    """Patches of pixels to tokens: (N, 3, H, W) to (N, H / p, W / p, C)."""

    def __init__(self, patch: int, channels: int, norm: bool):
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, channels, patch, stride=patch)
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.patch, 0, -height % self.patch))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Blocks of one resolution, every other one shifted."""

    def __init__(self, channels: int, window: int, drop_paths: Sequence[float], **kw):
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            SwinBlock(channels, window, window // 2 * (i % 2), drop_path=rate, **kw)
            for i, rate in enumerate(drop_paths)
        )
        self.downsample: nn.Module | None = None

    def forward(self, x: Tensor, recompute: bool) -> Tensor:
        """Map (N, h, w, C) to the same, before downsampling."""
        attn_mask = _shifted_mask(x, self.window) if len(self.blocks) > 1 else None
        for block in self.blocks:
            if recompute:
                x = checkpoint(block, x, attn_mask, use_reentrant=False)
            else:
                x = block(x, attn_mask)
        return x


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(Backbone):
    """Swin T, S, B, L (Liu et al., ICCV 2021) giving res2..res5."""

    @configurable
    def __init__(
        self,
        *,
        pretrain_img_size: int,
        patch_size: int,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        mlp_ratio: float,
        qkv_bias: bool,
        qk_scale: float | None,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
        ape: bool,
        patch_norm: bool,
        out_features: Sequence[str],
        use_checkpoint: bool,
    ):
        """Arguments are the keys of MODEL.SWIN in lower case."""
        super().__init__()
        names = [f"res{i + 2}" for i in range(len(depths))]
        unknown = set(out_features) - set(names)
        if unknown:
            raise ValueError(f"MODEL.SWIN.OUT_FEATURES {sorted(unknown)} are none of {names}")
        self.use_checkpoint = use_checkpoint
        self.patch_embed = PatchEmbed(patch_size, embed_dim, patch_norm)
        self.absolute_pos_embed = None
        if ape:
            side = pretrain_img_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, embed_dim, side, side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)

        drop_paths = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.layers = nn.ModuleList()
        for i, depth in enumerate(depths):
            start = sum(depths[:i])
            stage = Stage(
                embed_dim * 2**i,
                window_size,
                drop_paths[start : start + depth],
                mlp_ratio=mlp_ratio,
                heads=num_heads[i],
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                attn_drop=attn_drop_rate,
                drop=drop_rate,
            )
            if i < len(depths) - 1:
                stage.downsample = PatchMerging(embed_dim * 2**i)
            self.layers.append(stage)
        self._out_features = [name for name in names if name in out_features]
        self._out_feature_channels = {n: embed_dim * 2**i for i, n in enumerate(names)}
        self._out_feature_strides = {n: patch_size * 2**i for i, n in enumerate(names)}
        for i, name in enumerate(names):
            if name in out_features:
                self.add_module(f"norm{i}", nn.LayerNorm(self._out_feature_channels[name]))
        self.apply(_initialise)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec | None = None) -> dict:
        stages = {len(cfg.MODEL.SWIN.DEPTHS), len(cfg.MODEL.SWIN.NUM_HEADS)}
        if len(stages) > 1:
            raise UserError("MODEL.SWIN.DEPTHS and NUM_HEADS must have an entry for each stage")
        for i, heads in enumerate(cfg.MODEL.SWIN.NUM_HEADS):
            if heads < 1 or cfg.MODEL.SWIN.EMBED_DIM * 2**i % heads:
                raise UserError(
                    f"MODEL.SWIN.NUM_HEADS[{i}]={heads} must divide the stage's "
                    f"{cfg.MODEL.SWIN.EMBED_DIM * 2**i} channels, MODEL.SWIN.EMBED_DIM * 2^{i}"
                )
        for name in cfg.MODEL.SWIN.OUT_FEATURES:
            names = [f"res{i + 2}" for i in range(len(cfg.MODEL.SWIN.DEPTHS))]
            require_one_of("MODEL.SWIN.OUT_FEATURES", name, names)
        return {key.lower(): value for key, value in cfg.MODEL.SWIN.items()}

    @property
    def size_divisibility(self) -> int:
        """Images are padded to multiples of this."""
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to name -> (N, C_i, H / s, W / s), s = 4, 8, 16, 32."""
        x = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            position = F.interpolate(self.absolute_pos_embed, x.shape[1:3], mode="bicubic")
            x = x + position.permute(0, 2, 3, 1)
        x = self.pos_drop(x)
        features = {}
        for i, stage in enumerate(self.layers):
            x = stage(x, recompute=self.use_checkpoint and self.training)
            if f"res{i + 2}" in self._out_features:
                normed = self.get_submodule(f"norm{i}")(x)
                features[f"res{i + 2}"] = normed.permute(0, 3, 1, 2).contiguous()
            if stage.downsample is not None:
                x = stage.downsample(x)
        return features


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
