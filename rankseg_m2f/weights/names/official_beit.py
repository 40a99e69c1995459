"""BEiT; the official files, those of its UPerNet in mmseg, and timm have the names that we have."""

import re

from torch import Tensor

from rankseg_m2f.weights.names.rules import Source, same
from rankseg_m2f.weights.names.timm_vit import CLASSIFIERS

_BLOCK = re.compile(r"blocks\.(\d+)\..+")
SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
# The index follows from the image's size alone; the model computes its own.
COMPUTED = r".*relative_position_index"
BLOCK = same(
    "blocks.#.gamma_1",
    "blocks.#.gamma_2",
    "blocks.#.norm1.*",
    "blocks.#.norm2.*",
    "blocks.#.attn.q_bias",
    "blocks.#.attn.v_bias",
    "blocks.#.attn.relative_position_bias_table",
    "blocks.#.attn.qkv.weight",
    "blocks.#.attn.proj.*",
    "blocks.#.mlp.fc1.*",
    "blocks.#.mlp.fc2.*",
)
PYRAMID = same("fpn1.#.*", "fpn2.#.*")


def spread_shared_table(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """A table of relative position biases for all blocks becomes one in each."""
    table = ours.pop(SHARED_TABLE, None)
    if table is None:
        return ours
    blocks = {int(match[1]) for match in map(_BLOCK.fullmatch, ours) if match}
    names = [f"blocks.{i}.attn.relative_position_bias_table" for i in sorted(blocks)]
    return ours | {name: table.clone() for name in names}


OFFICIAL_BEIT = Source(
    name="BEiT",
    mark=r"(?:backbone\.)?blocks\.0\.attn\.q_bias",
    rules=(*same("cls_token", "patch_embed.proj.*", SHARED_TABLE), *BLOCK, *PYRAMID),
    # mask_token: of the pretraining by masked images alone.
    unused=(COMPUTED, *CLASSIFIERS, r"norm\..+", "mask_token"),
    finish=spread_shared_table,
)
