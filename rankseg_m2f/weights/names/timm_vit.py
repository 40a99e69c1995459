"""timm's ViT, whose names are ours; DeiT, and AugReg as timm publishes it, have them too."""

from torch import Tensor

from rankseg_m2f.weights.names.rules import Source, same

BLOCK = same(
    "blocks.#.norm1.*",
    "blocks.#.norm2.*",
    "blocks.#.attn.qkv.*",
    "blocks.#.attn.proj.*",
    "blocks.#.mlp.fc1.*",
    "blocks.#.mlp.fc2.*",
)
EMBEDDINGS = same("cls_token", "pos_embed", "patch_embed.proj.*")
# Classifiers, and the layer before one in files of ImageNet-22k.
CLASSIFIERS = (r"head(?:_dist)?\..+", r"fc_norm\..+", r"pre_logits\..+")


def _without_distillation(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """DeiT's second class token goes, and its row of the position embedding."""
    if ours.pop("dist_token", None) is None:
        return ours
    position = ours["pos_embed"]
    return ours | {"pos_embed": position[:, [0, *range(2, position.shape[1])]]}


TIMM_VIT = Source(
    name="timm ViT, DeiT",
    mark=r"(?:backbone\.)?blocks\.0\.attn\.qkv\.bias",
    rules=(
        *EMBEDDINGS,
        *BLOCK,
        *same("blocks.#.ls1.gamma", "blocks.#.ls2.gamma", "norm.*", "dist_token", "cls_emb"),
    ),
    unused=CLASSIFIERS,
    finish=_without_distillation,
)
