"""Names of backbone weights: every official key has one of ours, and back."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_backbone
from official_backbones import (
    ADAPTER_L,
    BEIT_L,
    DATA,
    OCE_B,
    RESNET_101,
    SHARED,
    SWIN_B,
    VIT_B,
    VIT_L,
    our_config,
    packed_case,
    packed_cases,
)

from rankseg_m2f.weights.names.mmseg_mask2former import MMSEG_MASK2FORMER
from rankseg_m2f.weights.names.mmseg_swin import from_channel_major, to_channel_major
from rankseg_m2f.weights.names.rules import OUR_PREFIX, to_ours, to_theirs
from rankseg_m2f.weights.names.sources import SOURCES, our_names, source_of

# Beginnings of the names of official key lists -> what their backbone is.
LISTS = {
    "pixel_segmenter_vit_b_ade20k_oce": OCE_B,
    "pixel_segmenter_vit_b": VIT_B,
    "pixel_segmenter_vit_l": VIT_L,
    "pixel_segmenter_original_vit_l": VIT_L,
    "pixel_deeplabv3_r101": RESNET_101,
    "pixel_swin_b": SWIN_B,
    "pixel_beit_l": BEIT_L,
    "pixel_vit_adapter_l": ADAPTER_L,
}
KEYS = SHARED / "reference" / "official_keys"


def key_lists() -> list[str]:
    names = sorted(path.stem for path in KEYS.glob("pixel_*.json"))
    return [name for name in names if "maskformer" not in name]


def on_meta(official: dict) -> torch.nn.Module:
    with torch.device("meta"):
        return build_backbone(our_config(official))


@pytest.mark.shared
@pytest.mark.parametrize("name", key_lists())
def test_every_official_key_is_one_of_ours(name):
    official = next(v for k, v in LISTS.items() if name.startswith(k))
    model = on_meta(official)
    content = json.loads((KEYS / f"{name}.json").read_text())
    theirs = {k: torch.empty(s, device="meta") for k, s in content["state_dict"].items()}
    renamed = our_names(theirs)
    ours = {k.removeprefix(OUR_PREFIX): v for k, v in renamed.items() if k.startswith(OUR_PREFIX)}
    expected = model.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in expected.items()}
    # Nothing of the backbone is left over under a foreign name.
    heads = ("sem_seg_head.", "aux_head.", "ml_head.", "ml_norm.")
    assert all(k.startswith((OUR_PREFIX, *heads)) for k in renamed)
    count = content.get("parameters_per_part", {}).get("backbone")
    parameters = sum(p.numel() for p in model.parameters())
    # The position embedding of the original Segmenter is that of VIT_L.
    assert count in (None, parameters)


@pytest.mark.shared
def test_the_head_of_adapter_mask2former():
    """Its names become those of the official Mask2Former, and back."""
    official = DATA.parent / "official_keys" / "ade_pan_R50.json"
    expected = {k for k in json.loads(official.read_text()) if k.startswith("sem_seg_head.")}
    content = json.loads((KEYS / "pixel_vit_adapter_l_mask2former_ade20k.json").read_text())
    theirs = {k: torch.empty(s, device="meta") for k, s in content["state_dict"].items()}
    ours = our_names(theirs)
    assert {k for k in ours if not k.startswith(OUR_PREFIX)} == expected
    back, left = to_theirs(ours, MMSEG_MASK2FORMER)
    assert not left
    assert all(back[k] is theirs[k] for k in back)
    assert set(back) == {k for k in theirs if k.startswith("decode_head.")}


@pytest.mark.shared
def test_every_list_is_read():
    assert len(key_lists()) == 19


COUNTS = {
    "Segmenter B": (VIT_B, 86_434_560),
    "Segmenter B, class embeddings in the backbone": (OCE_B, 86_549_760),
    "Segmenter L": (VIT_L, 304_739_328),
    "DeepLabv3 R101": (RESNET_101, 42_519_392),
    "UPerNet Swin-B": (SWIN_B, 86_880_376),
    "UPerNet BEiT-L": (BEIT_L, 318_108_160),
    "ViT-Adapter-L": (ADAPTER_L, 331_091_648),
}


@pytest.mark.parametrize("name", COUNTS)
def test_full_sizes_have_the_official_parameters(name):
    official, count = COUNTS[name]
    assert sum(p.numel() for p in on_meta(official).parameters()) == count


@pytest.mark.parametrize("name", packed_cases())
def test_there_and_back(name):
    """Our names become theirs again, bit for bit; the original Segmenter's too."""
    theirs = packed_case(name).weights
    source = source_of(theirs)
    ours = to_ours(theirs, source)
    assert all(k.startswith(OUR_PREFIX) for k in ours)
    back, left = to_theirs(ours, source)
    assert not left
    # The adapter's cases are backbones alone.
    back = {k if k in theirs else k.removeprefix(OUR_PREFIX): v for k, v in back.items()}
    kept = {k for k in theirs if not k.startswith("encoder.head.")}
    assert set(back) == kept
    for key in kept:
        assert torch.equal(back[key], theirs[key]), key


@pytest.mark.parametrize("name", [n for n in packed_cases() if "original" not in n])
def test_a_backbone_alone_has_the_same_names(name):
    """Pretrained files have no prefix; the original Segmenter is always a whole model."""
    theirs = packed_case(name).weights
    source = source_of(theirs)
    alone = {k.removeprefix("backbone."): v for k, v in theirs.items()}
    assert source_of(alone) is source
    assert to_ours(alone, source).keys() == to_ours(theirs, source).keys()


# Names of a file with any other of its names -> ours.
HEADS = {
    "decode_head.blocks.0.attn.qkv.weight": "sem_seg_head.blocks.0.attn.qkv.weight",
    "decode_head.norm.weight": "ml_norm.weight",
    "decode_head.mask_norm.weight": "sem_seg_head.mask_norm.weight",
    "auxiliary_head.convs.0.bn.weight": "aux_head.convs.0.bn.weight",
}


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_names_of_heads(prefix):
    names = HEADS | {
        "backbone.layers.0.attn.attn.in_proj_weight": "backbone.blocks.0.attn.qkv.weight"
    }
    state = {prefix + name: torch.ones(1) for name in names}
    assert set(our_names(state)) == set(names.values())


@pytest.mark.parametrize("scorer", ["ml_fc.W", "img_cls_head.fc.W"])
def test_segmenters_norm_is_over_ranks_where_labels_are_ranked(scorer):
    state = dict.fromkeys((f"decode_head.{scorer}", "decode_head.mask_norm.bias"), torch.ones(1))
    assert "ml_norm.bias" in our_names(state)


def test_names_that_a_model_has_are_never_changed():
    state = {"decode_head.norm.weight": torch.ones(1), "auxiliary_head.b": torch.ones(1)}
    assert our_names(state, state.keys()) == state
    assert set(our_names(state, ["decode_head.norm.weight"])) == {
        "decode_head.norm.weight",
        "aux_head.b",
    }


def test_an_incomplete_triple_is_reported():
    state = {
        "vit.embeddings.position_embeddings": torch.zeros(1, 5, 2),
        "vit.encoder.layer.0.attention.attention.query.weight": torch.zeros(2, 2),
        "vit.encoder.layer.0.attention.attention.key.weight": torch.zeros(2, 2),
    }
    renamed = our_names(state)
    assert "vit.encoder.layer.0.attention.attention.query.weight" in renamed
    assert "backbone.blocks.0.attn.qkv.weight" not in renamed


def test_names_of_nobody_stay():
    state = {"sem_seg_head.predictor.query_feat.weight": torch.zeros(1)}
    assert source_of(state) is None
    assert our_names(state) == state


def test_sources_have_names_of_their_own():
    assert len({source.name for source in SOURCES}) == len(SOURCES)


def golden_tables() -> tuple[dict, dict]:
    folder = DATA / "pixel_pretrained_init"
    inputs, outputs = (dict(np.load(folder / f"{k}.npz")) for k in ("inputs", "outputs"))
    return inputs, outputs


def part(arrays: dict, prefix: str) -> dict[str, torch.Tensor]:
    return {
        k.removeprefix(prefix): torch.from_numpy(v)
        for k, v in arrays.items()
        if k.startswith(prefix)
    }


def test_official_swin_becomes_mmseg_swin():
    inputs, outputs = golden_tables()
    official = part(inputs, "swin_official/")
    expected = part(outputs, "swin_mmseg/")
    expected.pop("norm.weight")  # a last norm that a segmentor has no use for
    source = source_of(expected)
    ours = {OUR_PREFIX + k: v for k, v in official.items()}
    theirs, left = to_theirs(ours, source)
    assert {k.removeprefix(OUR_PREFIX) for k in left} == {"norm.weight", "head.weight"}
    assert set(theirs) == {OUR_PREFIX + k for k in expected}
    for key, value in expected.items():
        assert torch.equal(theirs[OUR_PREFIX + key], value), key


def test_columns_of_patch_merging_by_hand():
    """Pixel p = 2 * row + column of channel c is 10c + p; ours goes column by column."""
    theirs = torch.tensor([0, 1, 2, 3, 10, 11, 12, 13])
    ours = torch.tensor([0, 10, 2, 12, 1, 11, 3, 13])
    assert torch.equal(from_channel_major(theirs), ours)
    assert torch.equal(to_channel_major(ours), theirs)


def test_google_becomes_mmseg_vit():
    inputs, outputs = golden_tables()
    google = part(inputs, "jax_vit/")
    expected = part(outputs, "mmseg_vit/")
    ours = our_names(google)
    theirs, left = to_theirs(ours, source_of(expected))
    assert not left
    assert set(theirs) == {OUR_PREFIX + k for k in expected}
    for key, value in expected.items():
        assert torch.equal(theirs[OUR_PREFIX + key], value), key


def test_weights_of_google_compute_what_theirs_do():
    inputs, outputs = golden_tables()
    official = {
        "type": "VisionTransformer",
        "img_size": [8, 8],
        "patch_size": 4,
        "embed_dims": 8,
        "num_layers": 2,
        "num_heads": 2,
    }
    cfg = our_config(official)
    cfg.MODEL.VIT.MLP_RATIO = 2.0
    model = build_backbone(cfg).eval()
    ours = our_names(part(inputs, "jax_vit/"))
    model.load_state_dict({k.removeprefix(OUR_PREFIX): v for k, v in ours.items()})
    images = torch.from_numpy(inputs["jax_vit_input"])
    with torch.no_grad():
        feature = model(images)["last_feat"]
    torch.testing.assert_close(
        feature, torch.from_numpy(outputs["jax_vit_output"]), rtol=0, atol=5e-6
    )


def test_second_class_token_of_deit_goes():
    position = torch.arange(6.0).view(1, 6, 1)
    state = {
        "cls_token": torch.zeros(1, 1, 1),
        "dist_token": torch.ones(1, 1, 1),
        "pos_embed": position,
        "blocks.0.attn.qkv.bias": torch.zeros(3),
        "head.weight": torch.zeros(2, 1),
        "head_dist.weight": torch.zeros(2, 1),
    }
    ours = our_names(state)
    assert set(ours) == {
        "backbone.cls_token",
        "backbone.pos_embed",
        "backbone.blocks.0.attn.qkv.bias",
    }
    assert ours["backbone.pos_embed"].flatten().tolist() == [0, 2, 3, 4, 5]


def test_shared_table_of_beit_is_copied_to_each_block():
    table = torch.arange(12.0).view(12, 1)
    state = {"rel_pos_bias.relative_position_bias_table": table} | {
        f"blocks.{i}.attn.q_bias": torch.zeros(1) for i in range(3)
    }
    state["rel_pos_bias.relative_position_index"] = torch.zeros(5, 5)
    state["mask_token"] = torch.zeros(1, 1, 1)
    ours = our_names(state)
    tables = {k: v for k, v in ours.items() if k.endswith("bias_table")}
    assert set(tables) == {
        f"backbone.blocks.{i}.attn.relative_position_bias_table" for i in range(3)
    }
    assert all(torch.equal(v, table) for v in tables.values())
    assert len(ours) == 6
