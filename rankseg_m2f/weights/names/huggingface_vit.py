"""Hugging Face's ViT and BEiT, as files name them; transformers 5 has other names in memory."""

from rankseg_m2f.weights.names.official_beit import SHARED_TABLE, spread_shared_table
from rankseg_m2f.weights.names.rules import Rule, Source, rename, stacked

_LAYER = "encoder.layer.#."
_ATTENTION = _LAYER + "attention.attention."
_QKV = ("query", "key", "value")
# Of a layer in memory, to the names in files.
_SYNONYMS = (
    (r"layers\.(.+)", r"encoder.layer.\1"),
    *(
        (rf"(encoder\.layer\.\d+)\.attention\.{new}_proj\.(\w+)", rf"\1.attention.{old}.\2")
        for new, old in (
            ("q", "attention.query"),
            ("k", "attention.key"),
            ("v", "attention.value"),
            ("o", "output.dense"),
        )
    ),
    (r"(encoder\.layer\.\d+)\.mlp\.fc1\.(\w+)", r"\1.intermediate.dense.\2"),
    (r"(encoder\.layer\.\d+)\.mlp\.fc2\.(\w+)", r"\1.output.dense.\2"),
)
_COMMON = (
    rename("embeddings.cls_token", "cls_token"),
    rename("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    rename(_LAYER + "layernorm_before.*", "blocks.#.norm1.*"),
    rename(_LAYER + "layernorm_after.*", "blocks.#.norm2.*"),
    rename(_LAYER + "attention.output.dense.*", "blocks.#.attn.proj.*"),
    rename(_LAYER + "intermediate.dense.*", "blocks.#.mlp.fc1.*"),
    rename(_LAYER + "output.dense.*", "blocks.#.mlp.fc2.*"),
)
_UNUSED = (r"pooler\..+", r"classifier\..+", r"lm_head\..+", r"embeddings\.mask_token")

HUGGINGFACE_VIT = Source(
    name="Hugging Face ViT",
    mark=r"(?:vit\.)?embeddings\.position_embeddings",
    rules=(
        *_COMMON,
        rename("embeddings.position_embeddings", "pos_embed"),
        stacked(_ATTENTION + "{}.weight", _QKV, "blocks.#.attn.qkv.weight"),
        stacked(_ATTENTION + "{}.bias", _QKV, "blocks.#.attn.qkv.bias"),
        rename("layernorm.*", "norm.*"),
    ),
    prefixes=("vit.", ""),
    unused=_UNUSED,
    synonyms=_SYNONYMS,
)

_TABLE = "relative_position_bias.relative_position_bias_table"
HUGGINGFACE_BEIT = Source(
    name="Hugging Face BEiT",
    mark=r"(?:beit\.)?(?:encoder\.layer|layers)\.0\.lambda_1",
    rules=(
        *_COMMON,
        rename(_LAYER + "lambda_#", "blocks.#.gamma_#"),
        rename(_ATTENTION + "query.bias", "blocks.#.attn.q_bias"),
        rename(_ATTENTION + "value.bias", "blocks.#.attn.v_bias"),
        stacked(_ATTENTION + "{}.weight", _QKV, "blocks.#.attn.qkv.weight"),
        rename(_ATTENTION + _TABLE, "blocks.#.attn.relative_position_bias_table"),
        Rule((f"encoder.{_TABLE}",), SHARED_TABLE),
        Rule(("fpn1.#.*",), "fpn1.#.*", at_root=True),
        Rule(("fpn2.#.*",), "fpn2.#.*", at_root=True),
    ),
    prefixes=("beit.", ""),
    unused=(*_UNUSED, r"layernorm\..+", r".*relative_position_index"),
    synonyms=(
        *_SYNONYMS,
        (r"(encoder\.layer\.\d+)\.(relative_position_bias\..+)", r"\1.attention.attention.\2"),
        (r"shared_position_bias\.(\w+)", r"encoder.relative_position_bias.\1"),
        (r"fpn\.fpn1\.conv_transpose1\.(\w+)", r"fpn1.0.\1"),
        (r"fpn\.fpn1\.normalization\.(\w+)", r"fpn1.1.\1"),
        (r"fpn\.fpn1\.conv_transpose2\.(\w+)", r"fpn1.3.\1"),
        (r"fpn\.fpn2\.(\w+)", r"fpn2.0.\1"),
    ),
    finish=spread_shared_table,
)
