"""ViT-Adapter (Chen et al., ICLR 2023) on ViT or BEiT, as a Detectron2 backbone.

Shapes: N frames, C channels, h, w patches of the grid, P prefix tokens (a class token or none).
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankseg_m2f.errors import UserError
from rankseg_m2f.layers.ms_deform_attn import MSDeformAttn
from rankseg_m2f.layers.position_tables import PositionTable, resize_position_embedding
from rankseg_m2f.modeling.backbone.adapter_blocks import (
    Interaction,
    SpatialPrior,
    split_levels,
    windowed_block,
)
from rankseg_m2f.modeling.backbone.beit import bias_tables, pad_to_size
from rankseg_m2f.modeling.backbone.timm_models import (
    beit_settings,
    timm_beit,
    timm_vit,
    vit_settings,
)
from rankseg_m2f.modeling.backbone.token_maps import pad_to_multiple, to_map, without_padding

_FEATURES = ("res2", "res3", "res4", "res5")
_STRIDES = (4, 8, 16, 32)
# Multiples that image sides must be of, for the pyramid's levels to halve evenly.
_DIVISIBILITY = 32


class _Adapter(Backbone):
    """What both forms share: a transformer, a pyramid, and interactions between them."""

    def __init__(
        self,
        body: nn.Module,
        *,
        injector_init: float,
        drop_path_rate: float,
        use_checkpoint: bool,
        conv_channels: int,
        interactions: Sequence[tuple[int, int]],
        extra_extractors: int,
        ffn_ratio: float,
        deform_heads: int,
        deform_points: int,
        deform_ratio: float,
        norm: str,
    ):
        """`body`: timm's model; `injector_init`: first value of γ; else keys of VIT_ADAPTER."""
        super().__init__()
        _check(interactions, len(body.blocks), body.patch_embed.patch_size)
        channels = body.embed_dim
        self.patch_embed = body.patch_embed
        self.blocks = body.blocks
        self.grid = tuple(body.patch_embed.grid_size)
        self.level_embed = nn.Parameter(torch.empty(3, channels))
        self.spm = SpatialPrior(conv_channels, channels, norm)
        self.spans = [range(first, last + 1) for first, last in interactions]
        self.interactions = nn.ModuleList(
            Interaction(
                channels,
                injector_init,
                ffn_ratio,
                drop_path_rate,
                extra=extra_extractors if i == len(interactions) - 1 else 0,
                heads=deform_heads,
                points=deform_points,
                value_channels=int(channels * deform_ratio),
            )
            for i in range(len(interactions))
        )
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        for i in range(len(_FEATURES)):
            self.add_module(f"norm{i + 1}", get_norm(norm, channels))
        self.use_checkpoint = use_checkpoint
        self._out_features = list(_FEATURES)
        self._out_feature_channels = dict.fromkeys(_FEATURES, channels)
        self._out_feature_strides = dict(zip(_FEATURES, _STRIDES, strict=True))
        for module in (self.spm, self.interactions, self.up):
            module.apply(_initialise)
        nn.init.normal_(self.level_embed)

    @property
    def size_divisibility(self) -> int:
        """Images are padded to multiples of this."""
        return _DIVISIBILITY

    @abstractmethod
    def pad(self, images: Tensor) -> Tensor:
        """Images of a size that the form takes."""

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix tokens (N, P, C) and patches (N, h * w, C) of padded images."""

    def run_block(self, i: int, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Block `i` of the transformer on (N, P + h * w, C)."""
        return self.blocks[i](tokens)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to name -> (N, C, H / s, W / s), s = 4, 8, 16, 32."""
        padded = self.pad(images)
        c1, *levels = self.spm(padded)
        grid = tuple(levels[1].shape[-2:])
        pairs = zip(levels, self.level_embed, strict=True)
        c = torch.cat([x.flatten(2).transpose(1, 2) + level for x, level in pairs], dim=1)
        prefix, x = self.embed(padded)
        maps = []
        for span, interaction in zip(self.spans, self.interactions, strict=True):
            x = interaction.injector(x, c, grid)
            tokens = self._run(span, torch.cat([prefix, x], dim=1), grid)
            prefix, x = tokens.split([prefix.shape[1], x.shape[1]], dim=1)
            c = interaction.extract(c, x, grid)
            maps.append(to_map(x, grid))
        features = self._join(c1, split_levels(c, grid), maps)
        return without_padding(features, self._out_feature_strides, tuple(images.shape[-2:]))

    def _run(self, span: range, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        for i in span:
            if self.use_checkpoint and self.training:
                tokens = checkpoint(self.run_block, i, tokens, grid, use_reentrant=False)
            else:
                tokens = self.run_block(i, tokens, grid)
        return tokens

    def _join(self, c1: Tensor, levels: list[Tensor], maps: list[Tensor]) -> dict[str, Tensor]:
        """The pyramid's maps, each with the transformer's map after its interaction, normalised."""
        pyramid = [c1 + self.up(levels[0]), *levels]
        features = {}
        for i, (name, level) in enumerate(zip(_FEATURES, pyramid, strict=True)):
            size = level.shape[-2:]
            resized = F.interpolate(maps[i], size, mode="bilinear", align_corners=False)
            features[name] = self.get_submodule(f"norm{i + 1}")(level + resized)
        return features


@BACKBONE_REGISTRY.register()
class BEiTAdapter(_Adapter):
    """ViT-Adapter on BEiT, giving res2..res5 of its width; one size of image, see `BEiT`."""

    @configurable
    def __init__(self, *, transformer: Mapping[str, Any], **adapter):
        """`transformer`: arguments of `timm_beit`; others: keys of MODEL.VIT_ADAPTER, lower case.

        Raises:
            UserError: timm is not installed, or interactions or sizes that do not fit.
        """
        img_size = tuple(transformer["img_size"])
        if any(side % _DIVISIBILITY for side in img_size):
            raise UserError(f"MODEL.BEIT.IMG_SIZE {img_size} must be multiples of {_DIVISIBILITY}")
        body = timm_beit(**transformer)
        super().__init__(
            body,
            injector_init=transformer["init_values"],
            drop_path_rate=transformer["drop_path_rate"],
            **adapter,
        )
        self.cls_token = body.cls_token
        self.img_size = img_size

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict:
        transformer, others = beit_settings(cfg)
        return {
            "transformer": transformer,
            "use_checkpoint": others["use_checkpoint"],
            **_adapter_keys(cfg),
        }

    def position_tables(self) -> dict[str, PositionTable]:
        """The bias tables of all blocks with their grid; see `HasPositionTables`."""
        return bias_tables(self.blocks, self.grid)

    def pad(self, images: Tensor) -> Tensor:
        """Images of the model's size."""
        return pad_to_size(images, self.img_size)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The class token and patches."""
        return self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)


@BACKBONE_REGISTRY.register()
class ViTAdapter(_Adapter):
    """ViT-Adapter on ViT, giving res2..res5 of its width, for images of any size.

    There is no class token; its row of the position embedding is kept for the checkpoint alone.
    """

    @configurable
    def __init__(
        self,
        *,
        transformer: Mapping[str, Any],
        position_resize: str,
        windows: Sequence[int],
        **adapter,
    ):
        """`transformer`: arguments of `timm_vit`; others: keys of MODEL.VIT_ADAPTER, lower case.

        `position_resize` is of MODEL.VIT; `windows` has one side per block, 0 for
        attention over the whole image, or is empty.

        Raises:
            UserError: timm is not installed, or interactions or windows that do not fit.
        """
        depth = transformer["depth"]
        if len(windows) not in (0, depth):
            raise UserError(
                f"MODEL.VIT_ADAPTER.WINDOWS has {len(windows)} entries, must have one for each of "
                f"{depth} blocks, or none"
            )
        body = timm_vit(**transformer)
        drop_path_rate = transformer["drop_path_rate"]
        super().__init__(body, injector_init=0.0, drop_path_rate=drop_path_rate, **adapter)
        self.pos_embed = body.pos_embed
        self.position_resize = position_resize
        self.windows = list(windows) or [0] * depth

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict:
        transformer, others = vit_settings(cfg)
        return {
            "transformer": transformer,
            "position_resize": others["position_resize"],
            "use_checkpoint": others["use_checkpoint"],
            "windows": cfg.MODEL.VIT_ADAPTER.WINDOWS,
            **_adapter_keys(cfg),
        }

    def position_tables(self) -> dict[str, PositionTable]:
        """The position embedding with its grid; see `HasPositionTables`."""
        return {"pos_embed": PositionTable(self.grid, self.position_resize)}

    def pad(self, images: Tensor) -> Tensor:
        """Images with sides that are multiples of 32."""
        return pad_to_multiple(images, _DIVISIBILITY)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """No prefix, and patches with their positions."""
        x = self.patch_embed(images)  # (N, h, w, C)
        grid = tuple(x.shape[1:3])
        position = self.pos_embed
        if grid != self.grid:
            position = resize_position_embedding(position, self.grid, grid, self.position_resize)
        x = x.flatten(1, 2)
        return x[:, :0], x + position[:, 1:]

    def run_block(self, i: int, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Block `i`, inside windows if it has some."""
        if self.windows[i]:
            return windowed_block(self.blocks[i], tokens, grid, self.windows[i])
        return self.blocks[i](tokens)


def _adapter_keys(cfg: CfgNode) -> dict:
    keys = cfg.MODEL.VIT_ADAPTER
    return {key.lower(): value for key, value in keys.items() if key != "WINDOWS"}


def _check(
    interactions: Sequence[tuple[int, int]], depth: int, patch_size: tuple[int, int]
) -> None:
    covered = [i for first, last in interactions for i in range(first, last + 1)]
    if len(interactions) != len(_FEATURES) or covered != list(range(depth)):
        raise UserError(
            f"MODEL.VIT_ADAPTER.INTERACTIONS {list(interactions)} must be four spans (first, last) "
            f"that hold blocks 0..{depth - 1} in order"
        )
    if tuple(patch_size) != (16, 16):
        raise UserError(f"ViT-Adapter needs patches of 16 pixels, not {patch_size}")


def _initialise(module: nn.Module) -> None:
    """As the authors do; deformable attention as it starts everywhere else."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, MSDeformAttn):
        # Applied after its linear layers.
        module.reset_parameters()
