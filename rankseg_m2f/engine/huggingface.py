"""Parameter names of Hugging Face's Mask2Former, as a table of rules."""

import re

import torch
from torch import Tensor

_SWIN = r"model\.pixel_level_module\.encoder\.(?:swin\.|model\.)?"
_RESNET = r"model\.pixel_level_module\.encoder\."
_PIXEL = r"model\.pixel_level_module\.decoder\."
_QUERY = r"model\.transformer_module\."
_BLOCK = r"backbone.layers.\1.blocks.\2."
_ENCODER = r"sem_seg_head.pixel_decoder.transformer.encoder.layers.\1."
_PREDICTOR = "sem_seg_head.predictor."

# (their pattern, our name); the first whole match counts. Both the names of transformers 4, which
# checkpoint files keep, and those of its version 5 are known.
RULES = [
    (_SWIN + r"embeddings\.patch_embeddings\.projection\.(\w+)", r"backbone.patch_embed.proj.\1"),
    (_SWIN + r"embeddings\.norm\.(\w+)", r"backbone.patch_embed.norm.\1"),
    (
        _SWIN + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.(?:self\.)?"
        r"(?:relative_position_bias\.)?(relative_position_bias_table|relative_position_index)",
        _BLOCK + r"attn.\3",
    ),
    (
        _SWIN
        + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.(?:o_proj|output\.dense)\.(\w+)",
        _BLOCK + r"attn.proj.\3",
    ),
    (
        _SWIN + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.layernorm_before\.(\w+)",
        _BLOCK + r"norm1.\3",
    ),
    (
        _SWIN + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.layernorm_after\.(\w+)",
        _BLOCK + r"norm2.\3",
    ),
    (
        _SWIN + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.(?:mlp\.fc1|intermediate\.dense)\.(\w+)",
        _BLOCK + r"mlp.fc1.\3",
    ),
    (
        _SWIN + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.(?:mlp\.fc2|output\.dense)\.(\w+)",
        _BLOCK + r"mlp.fc2.\3",
    ),
    (_SWIN + r"encoder\.layers\.(\d+)\.downsample\.(.+)", r"backbone.layers.\1.downsample.\2"),
    (
        _RESNET + r"embedder\.embedder\.convolution\.(\w+)",
        r"backbone.stem.conv1.\1",
    ),
    (_RESNET + r"embedder\.embedder\.normalization\.(\w+)", r"backbone.stem.conv1.norm.\1"),
    (_PIXEL + r"level_embed", "sem_seg_head.pixel_decoder.transformer.level_embed"),
    (_PIXEL + r"input_projections\.(.+)", r"sem_seg_head.pixel_decoder.input_proj.\1"),
    (_PIXEL + r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(\w+)", _ENCODER + r"norm1.\2"),
    (_PIXEL + r"encoder\.layers\.(\d+)\.final_layer_norm\.(\w+)", _ENCODER + r"norm2.\2"),
    (_PIXEL + r"encoder\.layers\.(\d+)\.fc([12])\.(\w+)", _ENCODER + r"linear\2.\3"),
    (_PIXEL + r"encoder\.layers\.(\d+)\.(self_attn\..+)", _ENCODER + r"\2"),
    (_PIXEL + r"mask_projection\.(\w+)", r"sem_seg_head.pixel_decoder.mask_features.\1"),
    (_PIXEL + r"(adapter|layer)_(\d+)\.0\.(\w+)", r"sem_seg_head.pixel_decoder.\1_\2.\3"),
    (_PIXEL + r"(adapter|layer)_(\d+)\.1\.(\w+)", r"sem_seg_head.pixel_decoder.\1_\2.norm.\3"),
    (_QUERY + r"queries_embedder\.weight", _PREDICTOR + "query_embed.weight"),
    (_QUERY + r"queries_features\.weight", _PREDICTOR + "query_feat.weight"),
    (_QUERY + r"level_embed\.weight", _PREDICTOR + "level_embed.weight"),
    (_QUERY + r"input_projections\.(\d+)\.(\w+)", _PREDICTOR + r"input_proj.\1.\2"),
    (_QUERY + r"decoder\.layernorm\.(\w+)", _PREDICTOR + r"decoder_norm.\1"),
    (
        _QUERY + r"decoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)",
        _PREDICTOR + r"transformer_self_attention_layers.\1.self_attn.out_proj.\2",
    ),
    (
        _QUERY + r"decoder\.layers\.(\d+)\.self_attn_layer_norm\.(\w+)",
        _PREDICTOR + r"transformer_self_attention_layers.\1.norm.\2",
    ),
    (
        _QUERY + r"decoder\.layers\.(\d+)\.cross_attn\.(.+)",
        _PREDICTOR + r"transformer_cross_attention_layers.\1.multihead_attn.\2",
    ),
    (
        _QUERY + r"decoder\.layers\.(\d+)\.cross_attn_layer_norm\.(\w+)",
        _PREDICTOR + r"transformer_cross_attention_layers.\1.norm.\2",
    ),
    (
        _QUERY + r"decoder\.layers\.(\d+)\.fc([12])\.(\w+)",
        _PREDICTOR + r"transformer_ffn_layers.\1.linear\2.\3",
    ),
    (
        _QUERY + r"decoder\.layers\.(\d+)\.final_layer_norm\.(\w+)",
        _PREDICTOR + r"transformer_ffn_layers.\1.norm.\2",
    ),
    (
        _QUERY + r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.(\w+)",
        _PREDICTOR + r"mask_embed.layers.\1.\2",
    ),
    (r"class_predictor\.(\w+)", _PREDICTOR + r"class_embed.\1"),
    (r"criterion\.empty_weight", "criterion.empty_weight"),
]
# Three of their parameters, q, k and v, are one of ours.
_JOINT = [
    (
        _SWIN + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.(?:self\.)?"
        r"(q|k|v)(?:uery|ey|alue|_proj)\.(\w+)",
        r"backbone.layers.\1.blocks.\2.attn.qkv.\4",
    ),
    (
        _QUERY + r"decoder\.layers\.(\d+)()\.self_attn\.(q|k|v)_proj\.(\w+)",
        _PREDICTOR + r"transformer_self_attention_layers.\1.self_attn.in_proj_\4",
    ),
]
# Theirs computes these, or has no use for them.
_UNUSED = re.compile(_SWIN + r"layernorm\..+|.*num_batches_tracked")


def is_huggingface(state: dict[str, Tensor]) -> bool:
    """Whether parameter names are those of Hugging Face's Mask2Former."""
    return any(key.startswith("model.pixel_level_module.") for key in state)


def from_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of ``Mask2FormerForUniversalSegmentation`` under our names.

    Swin and ResNet backbones are known. Names without a rule are kept, so that a load report
    shows them.
    """
    ours: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if _UNUSED.fullmatch(key):
            continue
        for pattern, name in _JOINT:
            if match := re.fullmatch(pattern, key):
                parts.setdefault(match.expand(name), {})[match[3]] = value
                break
        else:
            ours[_rename(key)] = value
    return ours | {key: torch.cat([p["q"], p["k"], p["v"]]) for key, p in parts.items()}


def _rename(key: str) -> str:
    for pattern, name in RULES:
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    if match := re.fullmatch(_SWIN + r"hidden_states_norms\.stage(\d)\.(\w+)", key):
        return f"backbone.norm{int(match[1]) - 1}.{match[2]}"
    stage = _RESNET + r"encoder\.stages\.(\d)\.layers\.(\d+)\."
    unit = r"(convolution|normalization)\.(\w+)"
    if match := re.fullmatch(stage + r"(?:layer\.(\d)|(shortcut))\." + unit, key):
        conv = f"conv{int(match[3]) + 1}" if match[3] else "shortcut"
        norm = "norm." if match[5] == "normalization" else ""
        return f"backbone.res{int(match[1]) + 2}.{match[2]}.{conv}.{norm}{match[6]}"
    return key
