"""Mask2Former's head in mmdetection and ViT-Adapter, for the official names of Mask2Former."""

from rankseg_m2f.weights.names.rules import Rule, Source, rename

_THEIR_LAYER = "pixel_decoder.encoder.layers.#."
_OUR_LAYER = "pixel_decoder.transformer.encoder.layers.#."
_LAYER = "transformer_decoder.layers.#."
_CROSS = "predictor.transformer_cross_attention_layers.#."
_SELF = "predictor.transformer_self_attention_layers.#."
_FFN = "predictor.transformer_ffn_layers.#."


def _attention(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Projections of ``nn.MultiheadAttention``."""
    return (
        rename(theirs + "in_proj_*", ours + "in_proj_*"),
        rename(theirs + "out_proj.*", ours + "out_proj.*"),
    )


MMSEG_MASK2FORMER = Source(
    name="Mask2Former of mmdetection",
    mark=r"decode_head\.transformer_decoder\.post_norm\.weight",
    rules=(
        rename("pixel_decoder.input_convs.#.conv.*", "pixel_decoder.input_proj.#.0.*"),
        rename("pixel_decoder.input_convs.#.gn.*", "pixel_decoder.input_proj.#.1.*"),
        rename("pixel_decoder.level_encoding.weight", "pixel_decoder.transformer.level_embed"),
        rename(_THEIR_LAYER + "attentions.0.*.*", _OUR_LAYER + "self_attn.*.*"),
        rename(_THEIR_LAYER + "ffns.0.layers.0.0.*", _OUR_LAYER + "linear1.*"),
        rename(_THEIR_LAYER + "ffns.0.layers.1.*", _OUR_LAYER + "linear2.*"),
        rename(_THEIR_LAYER + "norms.0.*", _OUR_LAYER + "norm1.*"),
        rename(_THEIR_LAYER + "norms.1.*", _OUR_LAYER + "norm2.*"),
        # One level is merged top-down; we count from 1.
        rename("pixel_decoder.lateral_convs.0.conv.*", "pixel_decoder.adapter_1.*"),
        rename("pixel_decoder.lateral_convs.0.gn.*", "pixel_decoder.adapter_1.norm.*"),
        rename("pixel_decoder.output_convs.0.conv.*", "pixel_decoder.layer_1.*"),
        rename("pixel_decoder.output_convs.0.gn.*", "pixel_decoder.layer_1.norm.*"),
        rename("pixel_decoder.mask_feature.*", "pixel_decoder.mask_features.*"),
        # A decoder layer looks at the image first, then at its queries.
        *_attention(_LAYER + "attentions.0.attn.", _CROSS + "multihead_attn."),
        *_attention(_LAYER + "attentions.1.attn.", _SELF + "self_attn."),
        rename(_LAYER + "ffns.0.layers.0.0.*", _FFN + "linear1.*"),
        rename(_LAYER + "ffns.0.layers.1.*", _FFN + "linear2.*"),
        rename(_LAYER + "norms.0.*", _CROSS + "norm.*"),
        rename(_LAYER + "norms.1.*", _SELF + "norm.*"),
        rename(_LAYER + "norms.2.*", _FFN + "norm.*"),
        rename("transformer_decoder.post_norm.*", "predictor.decoder_norm.*"),
        *(
            rename(f"{name}.weight", f"predictor.{name}.weight")
            for name in ("query_embed", "query_feat", "level_embed")
        ),
        rename("cls_embed.*", "predictor.class_embed.*"),
        # Linear layers with ReLUs between.
        *(rename(f"mask_embed.{2 * i}.*", f"predictor.mask_embed.layers.{i}.*") for i in range(3)),
    ),
    prefixes=("decode_head.",),
    our_prefix="sem_seg_head.",
)
