"""mmseg's ViT, of Segmenter in the RankSeg release."""

from rankseg_m2f.weights.names.rules import Source, rename, same

MMSEG_VIT = Source(
    name="mmseg ViT",
    mark=r"(?:backbone\.)?layers\.0\.attn\.attn\.in_proj_weight",
    rules=(
        # cls_emb: class embeddings that are tokens of the backbone.
        *same("cls_token", "pos_embed", "cls_emb"),
        rename("patch_embed.projection.*", "patch_embed.proj.*"),
        rename("layers.#.ln1.*", "blocks.#.norm1.*"),
        rename("layers.#.ln2.*", "blocks.#.norm2.*"),
        rename("layers.#.attn.attn.in_proj_*", "blocks.#.attn.qkv.*"),
        rename("layers.#.attn.attn.out_proj.*", "blocks.#.attn.proj.*"),
        rename("layers.#.ffn.layers.0.0.*", "blocks.#.mlp.fc1.*"),
        rename("layers.#.ffn.layers.1.*", "blocks.#.mlp.fc2.*"),
        # The norm after the last block; a block's own are ln1 and ln2 as well.
        rename("ln1.*", "norm.*"),
    ),
)
