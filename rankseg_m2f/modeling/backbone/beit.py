"""BEiT (Bao et al., ICLR 2022) by timm, with the feature pyramid of its UPerNet.

Shapes: N frames, C channels, h, w patches of the grid.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankseg_m2f.errors import UserError
from rankseg_m2f.layers.position_tables import PositionTable
from rankseg_m2f.modeling.backbone.timm_models import beit_settings, timm_beit
from rankseg_m2f.modeling.backbone.token_maps import to_map, without_padding

_FEATURES = ("res2", "res3", "res4", "res5")


@BACKBONE_REGISTRY.register()
class BEiT(Backbone):
    """BEiT with the official parameter names, giving res2..res5, all of the same width.

    Its tables of relative position biases fit one size of image; a smaller image is padded with
    zeros, right and at the bottom, and its maps are cut back.
    """

    @configurable
    def __init__(
        self,
        *,
        transformer: Mapping[str, Any],
        norm: str,
        out_blocks: Sequence[int],
        use_checkpoint: bool,
    ):
        """Arguments are keys of MODEL.BEIT in lower case; `transformer`, of `timm_beit`.

        Raises:
            UserError: timm is not installed, or `out_blocks` are not four blocks of the model.
        """
        super().__init__()
        depth, embed_dim = transformer["depth"], transformer["embed_dim"]
        if len(out_blocks) != len(_FEATURES) or not all(0 <= i < depth for i in out_blocks):
            raise UserError(
                f"MODEL.BEIT.OUT_BLOCKS {list(out_blocks)} must be four blocks of 0..{depth - 1}"
            )
        beit = timm_beit(**transformer)
        self.cls_token = beit.cls_token
        self.patch_embed = beit.patch_embed
        self.blocks = beit.blocks  # no final norm: the pyramid takes raw maps
        self.fpn1 = nn.Sequential(
            nn.ConvTranspose2d(embed_dim, embed_dim, 2, stride=2),
            get_norm(norm, embed_dim),
            nn.GELU(),
            nn.ConvTranspose2d(embed_dim, embed_dim, 2, stride=2),
        )
        self.fpn2 = nn.Sequential(nn.ConvTranspose2d(embed_dim, embed_dim, 2, stride=2))
        self.fpn3 = nn.Identity()
        self.fpn4 = nn.MaxPool2d(2)
        self.img_size = tuple(transformer["img_size"])
        self.grid = tuple(beit.patch_embed.grid_size)
        self.out_blocks = list(out_blocks)
        self.use_checkpoint = use_checkpoint
        self._out_features = list(_FEATURES)
        self._out_feature_channels = dict.fromkeys(_FEATURES, embed_dim)
        patch_size = transformer["patch_size"]
        strides = (patch_size // 4, patch_size // 2, patch_size, patch_size * 2)
        self._out_feature_strides = dict(zip(_FEATURES, strides, strict=True))

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec | None = None) -> dict:
        transformer, others = beit_settings(cfg)
        return {"transformer": transformer, **others}

    @property
    def size_divisibility(self) -> int:
        """Images are padded to multiples of this."""
        return self._out_feature_strides["res5"]

    def position_tables(self) -> dict[str, PositionTable]:
        """The bias tables of all blocks with their grid; see `HasPositionTables`."""
        return bias_tables(self.blocks, self.grid)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to name -> (N, C, H / s, W / s), s = 4, 8, 16, 32.

        Raises:
            UserError: an image is larger than the model's.
        """
        x = self.patch_embed(pad_to_size(images, self.img_size))  # (N, h * w, C)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        maps = {}
        for i, block in enumerate(self.blocks):
            if self.use_checkpoint and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if i in self.out_blocks:
                maps[i] = to_map(x[:, 1:], self.grid)
        resizes = (self.fpn1, self.fpn2, self.fpn3, self.fpn4)
        features = {
            name: resize(maps[i])
            for name, resize, i in zip(_FEATURES, resizes, self.out_blocks, strict=True)
        }
        return without_padding(features, self._out_feature_strides, tuple(images.shape[-2:]))


def pad_to_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images with zeros on the right and at the bottom, (N, 3, *size).

    Raises:
        UserError: they are larger.
    """
    height, width = images.shape[-2:]
    if height > size[0] or width > size[1]:
        raise UserError(
            f"images of {height}x{width} are larger than the {size[0]}x{size[1]} that relative "
            "position biases were made for (IMG_SIZE): use sliding windows of that size"
        )
    return F.pad(images, (0, size[1] - width, 0, size[0] - height))


def bias_tables(blocks: nn.Module, grid: tuple[int, int]) -> dict[str, PositionTable]:
    """Names of the tables of relative position biases in BEiT's blocks, for `position_tables`."""
    return {
        f"blocks.{i}.attn.relative_position_bias_table": PositionTable(grid, "geometric")
        for i in range(len(blocks))
    }
