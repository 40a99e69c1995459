"""Parameter names of Hugging Face's Mask2Former and backbones, as one table for both ways."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from rankseg_m2f.weights.names.huggingface_maskformer import HUGGINGFACE_MASKFORMER
from rankseg_m2f.weights.names.rules import is_from, to_ours, translate

_ENCODER = "model.pixel_level_module.encoder."
_PIXEL = "model.pixel_level_module.decoder."
_QUERY = "model.transformer_module."
_DECODER = _QUERY + "decoder."
_SWIN = _ENCODER + "encoder.layers.#."
_BLOCK = _SWIN + "blocks.#."
_STAGE = _ENCODER + "encoder.stages."
_OUR_PIXEL = "sem_seg_head.pixel_decoder."
_OUR_LAYER = _OUR_PIXEL + "transformer.encoder.layers.#."
_PREDICTOR = "sem_seg_head.predictor."

# (their name in files, our name), # for a number and * for a word, in the same order on both
# sides. The first that matches a whole name counts, in either direction.
NAMES = [
    # Swin
    (_ENCODER + "embeddings.patch_embeddings.projection.*", "backbone.patch_embed.proj.*"),
    (_ENCODER + "embeddings.norm.*", "backbone.patch_embed.norm.*"),
    (
        _BLOCK + "attention.self.relative_position_*",
        "backbone.layers.#.blocks.#.attn.relative_position_*",
    ),
    (_BLOCK + "attention.output.dense.*", "backbone.layers.#.blocks.#.attn.proj.*"),
    (_BLOCK + "layernorm_before.*", "backbone.layers.#.blocks.#.norm1.*"),
    (_BLOCK + "layernorm_after.*", "backbone.layers.#.blocks.#.norm2.*"),
    (_BLOCK + "intermediate.dense.*", "backbone.layers.#.blocks.#.mlp.fc1.*"),
    (_BLOCK + "output.dense.*", "backbone.layers.#.blocks.#.mlp.fc2.*"),
    (_SWIN + "downsample.*.*", "backbone.layers.#.downsample.*.*"),
    *[(f"{_ENCODER}hidden_states_norms.stage{i + 1}.*", f"backbone.norm{i}.*") for i in range(4)],
    # ResNet
    (_ENCODER + "embedder.embedder.convolution.*", "backbone.stem.conv1.*"),
    (_ENCODER + "embedder.embedder.normalization.*", "backbone.stem.conv1.norm.*"),
    *[
        (f"{_STAGE}{stage}.layers.#.{theirs}.{kind}.*", f"backbone.res{stage + 2}.#.{ours}.{norm}*")
        for stage in range(4)
        for theirs, ours in (
            ("shortcut", "shortcut"),
            ("layer.0", "conv1"),
            ("layer.1", "conv2"),
            ("layer.2", "conv3"),
        )
        for kind, norm in (("convolution", ""), ("normalization", "norm."))
    ],
    # pixel decoder
    (_PIXEL + "level_embed", _OUR_PIXEL + "transformer.level_embed"),
    (_PIXEL + "input_projections.#.#.*", _OUR_PIXEL + "input_proj.#.#.*"),
    (_PIXEL + "encoder.layers.#.self_attn_layer_norm.*", _OUR_LAYER + "norm1.*"),
    (_PIXEL + "encoder.layers.#.final_layer_norm.*", _OUR_LAYER + "norm2.*"),
    (_PIXEL + "encoder.layers.#.fc1.*", _OUR_LAYER + "linear1.*"),
    (_PIXEL + "encoder.layers.#.fc2.*", _OUR_LAYER + "linear2.*"),
    (_PIXEL + "encoder.layers.#.self_attn.*.*", _OUR_LAYER + "self_attn.*.*"),
    (_PIXEL + "mask_projection.*", _OUR_PIXEL + "mask_features.*"),
    (_PIXEL + "adapter_#.0.*", _OUR_PIXEL + "adapter_#.*"),
    (_PIXEL + "adapter_#.1.*", _OUR_PIXEL + "adapter_#.norm.*"),
    (_PIXEL + "layer_#.0.*", _OUR_PIXEL + "layer_#.*"),
    (_PIXEL + "layer_#.1.*", _OUR_PIXEL + "layer_#.norm.*"),
    # query decoder
    (_QUERY + "queries_embedder.weight", _PREDICTOR + "query_embed.weight"),
    (_QUERY + "queries_features.weight", _PREDICTOR + "query_feat.weight"),
    (_QUERY + "level_embed.weight", _PREDICTOR + "level_embed.weight"),
    (_QUERY + "input_projections.#.*", _PREDICTOR + "input_proj.#.*"),
    (_DECODER + "layernorm.*", _PREDICTOR + "decoder_norm.*"),
    (
        _DECODER + "layers.#.self_attn.out_proj.*",
        _PREDICTOR + "transformer_self_attention_layers.#.self_attn.out_proj.*",
    ),
    (
        _DECODER + "layers.#.self_attn_layer_norm.*",
        _PREDICTOR + "transformer_self_attention_layers.#.norm.*",
    ),
    (
        _DECODER + "layers.#.cross_attn.out_proj.*",
        _PREDICTOR + "transformer_cross_attention_layers.#.multihead_attn.out_proj.*",
    ),
    (
        _DECODER + "layers.#.cross_attn.in_proj_*",
        _PREDICTOR + "transformer_cross_attention_layers.#.multihead_attn.in_proj_*",
    ),
    (
        _DECODER + "layers.#.cross_attn_layer_norm.*",
        _PREDICTOR + "transformer_cross_attention_layers.#.norm.*",
    ),
    (_DECODER + "layers.#.fc1.*", _PREDICTOR + "transformer_ffn_layers.#.linear1.*"),
    (_DECODER + "layers.#.fc2.*", _PREDICTOR + "transformer_ffn_layers.#.linear2.*"),
    (_DECODER + "layers.#.final_layer_norm.*", _PREDICTOR + "transformer_ffn_layers.#.norm.*"),
    (_DECODER + "mask_predictor.mask_embedder.#.0.*", _PREDICTOR + "mask_embed.layers.#.*"),
    ("class_predictor.*", _PREDICTOR + "class_embed.*"),
    ("criterion.empty_weight", "criterion.empty_weight"),
]
# Three of their parameters, in this order, are one of ours: {} is one of the three.
_SPLIT = [
    (
        _BLOCK + "attention.self.{}.*",
        ("query", "key", "value"),
        "backbone.layers.#.blocks.#.attn.qkv.*",
    ),
    (
        _DECODER + "layers.#.self_attn.{}_proj.*",
        ("q", "k", "v"),
        _PREDICTOR + "transformer_self_attention_layers.#.self_attn.in_proj_*",
    ),
]
# Other names of theirs -> the name in files of Mask2Former. Alone, a backbone has no prefix, or
# its own; models of transformers 5 call parts of Swin otherwise than files do.
_SYNONYMS = [
    (
        r"(?:swin\.|resnet\.)?((?:embeddings|embedder|encoder|hidden_states_norms)\..+)",
        rf"{_ENCODER}\1",
    ),
    (rf"({re.escape(_ENCODER)})(?:swin|model)\.(.+)", r"\1\2"),
    (r"(.+\.attention)\.relative_position_bias\.(\w+)", r"\1.self.\2"),
    *[
        (rf"(.+\.blocks\.\d+)\.attention\.{new}_proj\.(\w+)", rf"\1.attention.{old}.\2")
        for new, old in zip(
            "qkvo", ("self.query", "self.key", "self.value", "output.dense"), strict=True
        )
    ],
    (r"(.+\.blocks\.\d+)\.mlp\.fc1\.(\w+)", r"\1.intermediate.dense.\2"),
    (r"(.+\.blocks\.\d+)\.mlp\.fc2\.(\w+)", r"\1.output.dense.\2"),
]
# A parameter that tells their models from others.
_OWN = re.compile(
    r"model\.pixel_level_module\..+"
    r"|(?:swin\.)?embeddings\.patch_embeddings\..+|(?:resnet\.)?embedder\.embedder\..+"
)
# A segmentor has no use for these: a last norm and classifiers of ImageNet.
_UNUSED = re.compile(rf"{re.escape(_ENCODER)}layernorm\..+|(?:swin\.)?layernorm\..+|classifier\..+")
# Ours keeps what theirs computes.
_COMPUTED = re.compile(r".+\.relative_position_index")


def is_huggingface(state: dict[str, Tensor]) -> bool:
    """Whether parameter names are those of Hugging Face's Mask2Former, MaskFormer, Swin, ResNet."""
    return any(map(_OWN.fullmatch, state))


def from_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters under our names.

    Args:
        state: of ``Mask2FormerForUniversalSegmentation`` or ``MaskFormerForInstanceSegmentation``
            with a Swin or ResNet backbone, or of such a backbone alone
            (``SwinForImageClassification``, ``SwinBackbone``, ...).

    Returns:
        Names without a rule are kept, so that a load report shows them.
    """
    if is_from(HUGGINGFACE_MASKFORMER, state):
        # Its decoder's names mean something else than those of Mask2Former.
        state = to_ours(state, HUGGINGFACE_MASKFORMER)
    ours: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        name = _name_in_files(key)
        if _UNUSED.fullmatch(name):
            continue
        for template, ours_template, part in _split_rules():
            if (joint := translate(name, template, ours_template)) is not None:
                parts.setdefault(joint, {})[part] = value
                break
        else:
            ours[_first(name, NAMES) or key] = value
    for name, three in parts.items():
        if len(three) == 3:
            ours[name] = torch.cat([three[i] for i in range(3)])
    return ours


def to_huggingface(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Parameters of our model under the names of Hugging Face's files.

    Args:
        state: of a model with a Swin or ResNet backbone.

    Returns:
        Their state, and the names of ours that have no counterpart.
    """
    theirs: dict[str, Tensor] = {}
    left = []
    inverse = [(ours, name) for name, ours in NAMES]
    for key, value in state.items():
        if _COMPUTED.fullmatch(key):
            continue
        thirds = {
            part: name
            for template, ours_template, part in _split_rules()
            if (name := translate(key, ours_template, template)) is not None
        }
        if thirds:
            theirs |= {thirds[part]: x.contiguous() for part, x in enumerate(value.chunk(3))}
        elif (name := _first(key, inverse)) is None:
            left.append(key)
        else:
            theirs[name] = value
            if name.endswith(".running_var"):
                # Their norms count batches; ours do too unless frozen, and then say so below.
                counter = name.removesuffix("running_var") + "num_batches_tracked"
                theirs.setdefault(counter, torch.tensor(0))
    return theirs, left


def _split_rules() -> Iterator[tuple[str, str, int]]:
    for template, words, ours in _SPLIT:
        for part, word in enumerate(words):
            yield template.format(word), ours, part


def _name_in_files(name: str) -> str:
    for pattern, replacement in _SYNONYMS:
        if match := re.fullmatch(pattern, name):
            name = match.expand(replacement)
    return name


def _first(name: str, rules: list[tuple[str, str]]) -> str | None:
    found = (translate(name, source, target) for source, target in rules)
    return next((x for x in found if x is not None), None)
