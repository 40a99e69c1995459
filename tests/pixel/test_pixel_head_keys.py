"""Heads of full size, made from config on the meta device: official names, shapes and counts."""

import json

import pytest
import torch
from conftest import TESTS
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from pixel_official import head_weights

import rankseg_m2f.modeling.pixel.pixel_segmentor  # noqa: F401  (registration)
from rankseg_m2f.config import get_cfg

OFFICIAL = json.loads((TESTS / "data" / "official_keys" / "pixel_heads.json").read_text())
# K and κ.
DATASETS = {
    "pascal_context": (60, 25),
    "ade20k_full": (847, 100),
    "ade20k": (150, 50),
    "coco_stuff": (171, 50),
    "coco_lvis": (1284, 100),
}
# Widths of the backbone's maps, and keys.
SYSTEMS = {
    "deeplabv3_r101": (
        [256, 512, 1024, 2048],
        {
            "MODEL.SEM_SEG_HEAD.NAME": "ASPPHead",
            "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],
            "MODEL.SEM_SEG_HEAD.CONVS_DIM": 512,
            "MODEL.PIXEL.AUX_FEATURE": "res4",
            "MODEL.PIXEL.LABEL_POOL": 16,
            "MODEL.RANKSEG.HEAD": "separable",
            "MODEL.RANKSEG.SHARE_EMBEDDING": True,
        },
    ),
    "swin_b_upernet": (
        [128, 256, 512, 1024],
        {
            "MODEL.SEM_SEG_HEAD.NAME": "UPerHead",
            "MODEL.SEM_SEG_HEAD.CONVS_DIM": 512,
            "MODEL.PIXEL.AUX_FEATURE": "res4",
            "MODEL.RANKSEG.HEAD": "separable",
            "MODEL.RANKSEG.SHARE_EMBEDDING": True,
        },
    ),
    "beit_l_upernet": (
        [1024] * 4,
        {
            "MODEL.SEM_SEG_HEAD.NAME": "UPerHead",
            "MODEL.SEM_SEG_HEAD.CONVS_DIM": 1024,
            "MODEL.PIXEL.AUX_FEATURE": "res4",
            "MODEL.RANKSEG.HEAD": "separable",
            "MODEL.RANKSEG.HIDDEN_DIM": 1024,
        },
    ),
    "seg_b": ([768], {"MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"]}),
    "seg_l": ([1024], {"MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"]}),
}
# Words in names of Segmenter models, the last that fits counts.
SEGMENTERS = {
    "seg_": {"MODEL.SEM_SEG_HEAD.NAME": "SegmenterHead"},
    "rankseg": {
        "MODEL.SEM_SEG_HEAD.NAME": "RankedSegmenterHead",
        "MODEL.PIXEL.DECODER.DEPTH": 3,
        "MODEL.PIXEL.LABEL_POOL": 8,
    },
    "nodown": {"MODEL.PIXEL.LABEL_POOL": 0},
    "trandec": {
        "MODEL.SEM_SEG_HEAD.NAME": "SegmenterHead",
        "MODEL.PIXEL.DECODER.DEPTH": 2,
        "MODEL.RANKSEG.HEAD": "query2label",
        "MODEL.RANKSEG.HIDDEN_DIM": 768,
        "MODEL.RANKSEG.SHARE_EMBEDDING": True,
        "MODEL.PIXEL.LABEL_POOL": 16,
    },
    "gap": {
        "MODEL.SEM_SEG_HEAD.NAME": "SegmenterHead",
        "MODEL.PIXEL.DECODER.DEPTH": 2,
        "MODEL.RANKSEG.HEAD": "gap",
        "MODEL.PIXEL.LABEL_POOL": 16,
    },
    "encnet": {"MODEL.SEM_SEG_HEAD.NAME": "EncSegmenterHead"},
    "essnet_d12": {
        "MODEL.SEM_SEG_HEAD.NAME": "SampledSegmenterHead",
        "MODEL.PIXEL.DECODER.SCORE_WIDTH": 12,
    },
}
widths: dict[str, int] = {}  # of the maps of the backbone below


@BACKBONE_REGISTRY.register()
class Maps(Backbone):
    """Has shapes and no parameters."""

    def __init__(self, cfg, input_shape):
        super().__init__()

    def output_shape(self):
        return {name: ShapeSpec(channels=c) for name, c in widths.items()}

    def forward(self, images):
        raise NotImplementedError


def full_size(name):
    """The model of an official name such as "swin_b_upernet_rankseg_ade20k", on the meta device."""
    system = next(s for s in SYSTEMS if name.startswith(s))
    channels, keys = SYSTEMS[system]
    num_labels, kappa = next(sizes for d, sizes in DATASETS.items() if name.endswith(d))
    keys = {
        "MODEL.META_ARCHITECTURE": "PixelSegmentor",
        "MODEL.BACKBONE.NAME": "Maps",
        "MODEL.DEVICE": "meta",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": num_labels,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.SEM_SEG_HEAD.NORM": "SyncBN",
        "MODEL.RANKSEG.FLAG": "rankseg" in name,
        "MODEL.RANKSEG.TOPK": kappa,
        "MODEL.RANKSEG.LOSS_WEIGHT": 10.0,
        **keys,
    }
    if system.startswith("seg_"):
        for word, changes in SEGMENTERS.items():
            keys |= changes if word in name else {}
    widths.clear()
    widths.update({f"res{6 - len(channels) + i}": c for i, c in enumerate(channels)})
    if "oce" in name:
        widths["cls_emb"] = channels[-1]
    cfg = get_cfg()
    cfg.merge_from_list([x for pair in keys.items() for x in pair])
    with torch.device("meta"):
        return build_model(cfg)


def counted(model):
    """Parameters by the official parts."""
    counts = {"decode_head": 0, "auxiliary_head": 0}
    for name, parameter in model.named_parameters():
        part = "auxiliary_head" if name.startswith("aux_head.") else "decode_head"
        counts[part] += parameter.numel()
    return {part: count for part, count in counts.items() if count}


@pytest.mark.parametrize("name", [name for name in OFFICIAL["keys"] if " " not in name])
def test_names_and_shapes_are_the_official_ones(name):
    model = full_size(name)
    shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
    assert shapes == head_weights(OFFICIAL["keys"][name])


def test_names_of_the_original_segmenter():
    (name,) = (name for name in OFFICIAL["keys"] if name.startswith("original"))
    model = full_size("seg_l_mask_16_ade20k")
    shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
    assert shapes == head_weights(OFFICIAL["keys"][name])


@pytest.mark.parametrize("name", OFFICIAL["counts"])
def test_parameters_are_counted_as_officially(name):
    official = dict(OFFICIAL["counts"][name])
    total = official.pop("total")
    counts = counted(full_size(name))
    assert counts == official
    if name not in OFFICIAL["paper_millions"]:
        return
    paper = OFFICIAL["paper_millions"][name]
    if "rankseg" in name and not name.startswith("seg"):
        # The paper's models had one linear layer more, which its released code never calls.
        width = 1024 if name.startswith("beit") else 512
        total += width**2 + width
    # The DeepLabv3 figures of ADE20K and COCO-Stuff, and one digit of Swin's, fit nothing.
    unexplained = {
        "deeplabv3_r101_rankseg_ade20k": 91.87,
        "deeplabv3_r101_rankseg_coco_stuff": 91.75,
        "swin_b_upernet_coco_stuff": 121.34,
    }
    if unexplained.get(name) == paper:
        assert round(total / 1e6, 2) != paper
    else:
        # One of the paper's figures is rounded down.
        assert total / 1e6 == pytest.approx(paper, abs=0.0051)
