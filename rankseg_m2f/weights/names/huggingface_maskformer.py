"""Head of Hugging Face's MaskFormer, for the official names."""

from rankseg_m2f.weights.names.rules import Source, rename, stacked

_PIXEL = "model.pixel_level_module.decoder."
_QUERY = "model.transformer_module."
_THEIR_LAYER = _QUERY + "decoder.layers.#."
_OUR_LAYER = "predictor.transformer.decoder.layers.#."
# Their names of sublayers, and ours.
_NORMS = {"self_attn": "norm1", "encoder_attn": "norm2", "final": "norm3"}
_ATTENTIONS = {"self_attn": "self_attn", "encoder_attn": "multihead_attn"}
# They merge fine levels from coarse to fine; ours are counted from fine to coarse.
_LEVELS = {0: 3, 1: 2, 2: 1}

HUGGINGFACE_MASKFORMER = Source(
    name="Hugging Face's MaskFormer",
    mark=r"mask_embedder\.0\.0\.weight",
    rules=(
        rename(_PIXEL + "fpn.stem.0.*", "pixel_decoder.layer_4.*"),
        rename(_PIXEL + "fpn.stem.1.*", "pixel_decoder.layer_4.norm.*"),
        *(
            rename(f"{_PIXEL}fpn.layers.{i}.{theirs}.{k}.*", f"pixel_decoder.{ours}_{n}{norm}.*")
            for i, n in _LEVELS.items()
            for theirs, ours in (("proj", "adapter"), ("block", "layer"))
            for k, norm in enumerate(("", ".norm"))
        ),
        rename(_PIXEL + "mask_projection.*", "pixel_decoder.mask_features.*"),
        rename(_QUERY + "queries_embedder.weight", "predictor.query_embed.weight"),
        rename(_QUERY + "input_projection.*", "predictor.input_proj.*"),
        *(
            stacked(f"{_THEIR_LAYER}{theirs}.{{}}_proj.*", "qkv", f"{_OUR_LAYER}{ours}.in_proj_*")
            for theirs, ours in _ATTENTIONS.items()
        ),
        *(
            rename(f"{_THEIR_LAYER}{theirs}.out_proj.*", f"{_OUR_LAYER}{ours}.out_proj.*")
            for theirs, ours in _ATTENTIONS.items()
        ),
        *(
            rename(f"{_THEIR_LAYER}{theirs}_layer_norm.*", f"{_OUR_LAYER}{ours}.*")
            for theirs, ours in _NORMS.items()
        ),
        *(rename(f"{_THEIR_LAYER}fc{i}.*", f"{_OUR_LAYER}linear{i}.*") for i in (1, 2)),
        rename(_QUERY + "decoder.layernorm.*", "predictor.transformer.decoder.norm.*"),
        rename("class_predictor.*", "predictor.class_embed.*"),
        rename("mask_embedder.#.0.*", "predictor.mask_embed.layers.#.*"),
    ),
    prefixes=("",),
    our_prefix="sem_seg_head.",
    # Models of transformers 5 call parts otherwise than files do.
    synonyms=(
        (r"(.+\.decoder\.layers\.\d+\..+)\.o_proj\.(\w+)", r"\1.out_proj.\2"),
        (r"(.+\.decoder\.layers\.\d+)\.mlp\.(fc\d\.\w+)", r"\1.\2"),
    ),
    # Norms of Swin's outputs, which their Mask2Former calls by stage.
    outside=tuple(
        (
            rf"(.+\.encoder\.hidden_states_norms)\.{i}\.(\w+)",
            rf"\1.stage{i + 1}.\2",
        )
        for i in range(4)
    ),
)
