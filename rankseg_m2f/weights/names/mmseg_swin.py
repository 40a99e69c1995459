"""mmseg's Swin Transformer."""

from torch import Tensor

from rankseg_m2f.weights.names.rules import Rule, Source, rename, same

_BLOCK, _OUR_BLOCK = "stages.#.blocks.#.", "layers.#.blocks.#."


def from_channel_major(merged: Tensor) -> Tensor:
    """Columns (..., C, 4) of mmseg's patch merging in our order (..., 4, C).

    Both have the four pixels of a patch, theirs row by row and ours column by column.
    """
    return merged.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2)


def to_channel_major(merged: Tensor) -> Tensor:
    """The inverse of `from_channel_major`."""
    return merged.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)


def _merging(name: str) -> Rule:
    return Rule(
        (f"stages.#.downsample.{name}",),
        f"layers.#.downsample.{name}",
        join=from_channel_major,
        split=lambda tensor: (to_channel_major(tensor),),
    )


MMSEG_SWIN = Source(
    name="mmseg Swin",
    mark=r"(?:backbone\.)?stages\.0\.blocks\.0\.attn\.w_msa\..+",
    rules=(
        rename("patch_embed.projection.*", "patch_embed.proj.*"),
        *same("patch_embed.norm.*"),
        rename(_BLOCK + "norm#.*", _OUR_BLOCK + "norm#.*"),
        rename(_BLOCK + "attn.w_msa.relative_position_*", _OUR_BLOCK + "attn.relative_position_*"),
        rename(_BLOCK + "attn.w_msa.qkv.*", _OUR_BLOCK + "attn.qkv.*"),
        rename(_BLOCK + "attn.w_msa.proj.*", _OUR_BLOCK + "attn.proj.*"),
        rename(_BLOCK + "ffn.layers.0.0.*", _OUR_BLOCK + "mlp.fc1.*"),
        rename(_BLOCK + "ffn.layers.1.*", _OUR_BLOCK + "mlp.fc2.*"),
        _merging("norm.*"),
        _merging("reduction.weight"),
        *same("norm#.*"),
    ),
    unused=(r"norm\..+", r"head\..+"),
)
