"""Full-size models, on the meta device: official parameter names, shapes and counts."""

import json

import pytest
import torch
from conftest import TESTS
from detectron2.modeling import build_model

import rankseg_m2f.registration  # noqa: F401
from rankseg_m2f.config import get_cfg
from rankseg_m2f.weights.key_names import our_names

SWIN_L = {
    "MODEL.BACKBONE.NAME": "D2SwinTransformer",
    "MODEL.SWIN.EMBED_DIM": 192,
    "MODEL.SWIN.DEPTHS": [2, 2, 18, 2],
    "MODEL.SWIN.NUM_HEADS": [6, 12, 24, 48],
    "MODEL.SWIN.WINDOW_SIZE": 12,
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": 384,
}
RANKSEG = {
    "MODEL.RANKSEG.FLAG": True,
    "MODEL.RANKSEG.TOPK": 150,
    "MODEL.SEM_SEG_HEAD.USE_LAYERNORM": True,
}
R50 = {"MODEL.BACKBONE.NAME": "build_resnet_backbone", "MODEL.RESNETS.STEM_TYPE": "basic"}
VIDEO = {
    "MODEL.META_ARCHITECTURE": "VideoMaskFormer",
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "VideoMultiScaleMaskedTransformerDecoder",
}
VSPW = {**VIDEO, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 124}
YTVIS = {**VIDEO, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 40}
ADE20K = {
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 150,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 6,
    "MODEL.MASK_FORMER.DEC_LAYERS": 10,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    "MODEL.DEVICE": "meta",
}


def build(*groups, queries: int = 100):
    cfg = get_cfg()
    keys = ADE20K | {"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": queries}
    for group in groups:
        keys |= group
    cfg.merge_from_list([x for pair in keys.items() for x in pair])
    with torch.device("meta"):
        return build_model(cfg)


MASKFORMER = {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
    "MODEL.MASK_FORMER.DEC_LAYERS": 6,
}
ENCODER = {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "transformer_encoder",
}
SWIN_B = SWIN_L | {"MODEL.SWIN.EMBED_DIM": 128, "MODEL.SWIN.NUM_HEADS": [4, 8, 16, 32]}
# Name of the key list, settings, queries.
MODELS = [
    ("ade_pan_R50", (R50,), 100),
    ("ade_pan", (SWIN_L,), 200),
    ("ade_pan_rank", (SWIN_L, RANKSEG), 200),
    ("ade_sem_rank", (SWIN_L, RANKSEG), 100),
    ("vspw_rank_L", (SWIN_L, RANKSEG, VSPW), 100),
    ("ytvis_rank", (SWIN_L, RANKSEG, YTVIS), 200),
]
OF_MASKFORMER = [
    ("maskformer_R50_semantic", (R50, MASKFORMER), 100),
    ("maskformer_R50_panoptic", (R50, MASKFORMER, ENCODER), 100),
    ("maskformer_swin_B_semantic", (SWIN_B, MASKFORMER), 100),
]


def test_all_key_lists_are_held_against_ours():
    lists = {path.stem for path in (TESTS / "data" / "official_keys").glob("*.json")}
    # Those of pixels are held against ours in tests/pixel.
    assert lists - {"pixel_heads"} == {name for name, *_ in MODELS + OF_MASKFORMER}


@pytest.mark.parametrize(("name", "groups", "queries"), MODELS + OF_MASKFORMER)
def test_keys_and_shapes(name, groups, queries):
    official = json.loads((TESTS / "data" / "official_keys" / f"{name}.json").read_text())
    state = build(*groups, queries=queries).state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == official
    # No rule of renaming touches them.
    assert our_names(state, state.keys()).keys() == official.keys()


@pytest.mark.shared
@pytest.mark.parametrize(("name", "groups", "queries"), MODELS)
def test_types_and_versions(name, groups, queries):
    """What the shortened lists of the project leave out."""
    path = TESTS.parent.parent / "shared" / "reference" / "official_keys" / "state_dict_shapes.json"
    official = json.loads(path.read_text())[name.replace("vspw_rank_L", "vspw_rank(L)")]
    state = build(*groups, queries=queries).state_dict()
    ours = {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in state.items()}
    assert ours == official["keys"]
    for module, version in official["versions"].items():
        assert state._metadata[module]["version"] == version


@pytest.mark.parametrize(
    ("groups", "queries", "count"),
    [
        ((SWIN_L,), 100, 215_488_779),
        ((SWIN_L, RANKSEG), 100, 218_927_672),
        ((SWIN_L,), 200, 215_539_979),
        ((SWIN_L, RANKSEG), 200, 218_978_872),
        ((SWIN_L, VSPW), 100, 215_482_097),
        ((SWIN_L, RANKSEG, VSPW), 100, 218_894_314),
        ((SWIN_L, YTVIS), 200, 215_511_709),
        ((SWIN_L, RANKSEG, YTVIS), 200, 218_837_742),
        ((R50, MASKFORMER), 100, 41_254_743),
        ((R50, MASKFORMER, ENCODER), 100, 45_016_407),
        ((SWIN_B, MASKFORMER), 100, 101_829_391),
    ],
)
def test_parameter_counts(groups, queries, count):
    model = build(*groups, queries=queries)
    assert sum(p.numel() for p in model.parameters()) == count
