"""Plain Vision Transformer (Dosovitskiy et al., ICLR 2021) by timm, as a Detectron2 backbone.

Shapes: N frames, C channels, h, w patches of the grid, K labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankseg_m2f.errors import UserError
from rankseg_m2f.layers.position_tables import PositionTable, resize_position_embedding
from rankseg_m2f.modeling.backbone.timm_models import timm_vit, vit_settings
from rankseg_m2f.modeling.backbone.token_maps import to_map

# Name of the last block's map, as Detectron2's own ViT calls it.
LAST = "last_feat"
_RESIZES = ("bicubic", "bilinear")
_TRIGGERS = ("tokens", "grid")


@BACKBONE_REGISTRY.register()
class ViT(Backbone):
    """ViT with the parameter names of timm, giving maps at the stride of its patches.

    The last block's map, after the final norm, is called "last_feat", that of another block i, raw,
    "block{i}". Label tokens (K of them, below) are given beside the maps, as "cls_emb".
    """

    @configurable
    def __init__(
        self,
        *,
        transformer: Mapping[str, Any],
        final_norm: bool,
        position_resize: str,
        position_trigger: str,
        out_blocks: Sequence[int],
        label_tokens: int,
        label_tokens_from: int,
        use_checkpoint: bool,
    ):
        """Arguments are keys of MODEL.VIT in lower case; `transformer`, of `timm_vit`.

        Raises:
            UserError: timm is not installed, or a block or a way to resize that does not exist.
        """
        super().__init__()
        depth, embed_dim = transformer["depth"], transformer["embed_dim"]
        out_blocks = list(out_blocks) or [depth - 1]
        _check(depth, out_blocks, position_resize, position_trigger, label_tokens_from)
        vit = timm_vit(**transformer)
        self.cls_token = vit.cls_token
        self.pos_embed = vit.pos_embed
        self.patch_embed = vit.patch_embed
        self.blocks = vit.blocks
        self.norm = vit.norm if final_norm else nn.Identity()
        self.cls_emb = None
        if label_tokens:
            self.cls_emb = nn.Parameter(torch.empty(1, label_tokens, embed_dim))
            nn.init.trunc_normal_(self.cls_emb, std=0.02)
        self.grid = tuple(vit.patch_embed.grid_size)
        self.position_resize = position_resize
        self.position_trigger = position_trigger
        self.label_tokens_from = label_tokens_from
        self.use_checkpoint = use_checkpoint
        self._names = {i: LAST if i == depth - 1 else f"block{i}" for i in sorted(out_blocks)}
        self._patch_size = transformer["patch_size"]
        self._out_features = list(self._names.values())
        self._out_feature_channels = dict.fromkeys(self._out_features, embed_dim)
        self._out_feature_strides = dict.fromkeys(self._out_features, self._patch_size)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec | None = None) -> dict:
        transformer, others = vit_settings(cfg)
        return {"transformer": transformer, **others}

    @property
    def size_divisibility(self) -> int:
        """Images are padded to multiples of this."""
        return self._patch_size

    def position_tables(self) -> dict[str, PositionTable]:
        """The position embedding with its grid; see `HasPositionTables`."""
        return {"pos_embed": PositionTable(self.grid, self.position_resize)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to name -> (N, C, h, w), and "cls_emb" -> (N, K, C) if there are any.

        Sides that are no multiples of the patch are padded with zeros, right and at the bottom.
        """
        x = self.patch_embed(images)  # (N, h, w, C)
        count, grid = len(x), tuple(x.shape[1:3])
        x = torch.cat([self.cls_token.expand(count, -1, -1), x.flatten(1, 2)], dim=1)
        x = x + self._position(grid)  # (N, 1 + h * w, C)
        features = {}
        for i, block in enumerate(self.blocks):
            if self.cls_emb is not None and i == self.label_tokens_from:
                x = torch.cat([x, self.cls_emb.expand(count, -1, -1)], dim=1)
            x = self._run(block, x)
            if i in self._names:
                out = self.norm(x) if self._names[i] == LAST else x
                features[self._names[i]] = to_map(out[:, 1 : 1 + grid[0] * grid[1]], grid)
        if self.cls_emb is not None:
            features["cls_emb"] = self.norm(x)[:, 1 + grid[0] * grid[1] :]
        return features

    def _position(self, grid: tuple[int, int]) -> Tensor:
        """(1, 1 + h * w, C) for a grid."""
        same = grid == self.grid
        if self.position_trigger == "tokens":
            # As mmseg and the original Segmenter: another grid of as many patches goes unseen.
            same = grid[0] * grid[1] == self.grid[0] * self.grid[1]
        if same:
            return self.pos_embed
        return resize_position_embedding(self.pos_embed, self.grid, grid, self.position_resize)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.use_checkpoint and self.training:
            return checkpoint(block, x, use_reentrant=False)
        return block(x)


def _check(
    depth: int, out_blocks: list[int], resize: str, trigger: str, label_tokens_from: int
) -> None:
    unknown = [i for i in out_blocks if not 0 <= i < depth]
    if unknown:
        raise UserError(f"MODEL.VIT.OUT_BLOCKS {unknown} must be in 0..{depth - 1}")
    if resize not in _RESIZES:
        raise UserError(f"MODEL.VIT.POSITION_RESIZE is {resize!r}, must be one of {_RESIZES}")
    if trigger not in _TRIGGERS:
        raise UserError(f"MODEL.VIT.POSITION_TRIGGER is {trigger!r}, must be one of {_TRIGGERS}")
    if not 0 <= label_tokens_from < depth:
        raise UserError(
            f"MODEL.VIT.LABEL_TOKENS_FROM is {label_tokens_from}, must be in 0..{depth - 1}"
        )
