"""Official weights of pixel segmentors through MODEL.WEIGHTS, with the load report."""

import numpy as np
import pytest
import torch
from conftest import TESTS
from detectron2.modeling import build_model
from pixel_golden import Case

import rankseg_m2f.registration  # noqa: F401
from rankseg_m2f.config import get_cfg
from rankseg_m2f.errors import UserError
from rankseg_m2f.weights.checkpoint import Checkpointer, load_model

GOLDEN = TESTS / "data" / "golden"
INITIAL = TESTS / "data" / "backbones" / "pixel_pretrained_init"
SEGMENTER = {
    "MODEL.META_ARCHITECTURE": "PixelSegmentor",
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "ViT",
    "MODEL.VIT.IMG_SIZE": [16, 16],
    "MODEL.VIT.PATCH_SIZE": 4,
    "MODEL.VIT.EMBED_DIM": 8,
    "MODEL.VIT.DEPTH": 2,
    "MODEL.VIT.LABEL_TOKENS_FROM": 1,
    "MODEL.VIT.NUM_HEADS": 2,
    "MODEL.VIT.MLP_RATIO": 2.0,
    "MODEL.SEM_SEG_HEAD.NAME": "SegmenterHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["last_feat"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 12,
}


def config(**changes):
    cfg = get_cfg()
    cfg.merge_from_list([x for pair in (SEGMENTER | changes).items() for x in pair])
    return cfg


def load(cfg, path, **kwargs):
    model = build_model(cfg)
    checkpointer = Checkpointer(model, **kwargs)
    checkpointer.load(str(path))
    return model, checkpointer.report


def google():
    inputs = np.load(INITIAL / "inputs.npz")
    return {k.removeprefix("jax_vit/"): v for k, v in inputs.items() if k.startswith("jax_vit/")}


def tensors(arrays):
    return {k: torch.from_numpy(v) for k, v in arrays.items()}


def mmseg():
    outputs = np.load(INITIAL / "outputs.npz")
    return tensors(
        {k.removeprefix("mmseg_vit/"): v for k, v in outputs.items() if k.startswith("mmseg_vit/")}
    )


@pytest.mark.parametrize("form", ["google", "mmseg", "timm", "wrapped"])
def test_a_pretrained_vit_fills_the_backbone_and_its_positions_are_resized(tmp_path, form):
    path = tmp_path / "vit.pth"
    if form == "google":
        path = tmp_path / "vit.npz"
        np.savez(path, **google())
    elif form == "mmseg":
        torch.save({"state_dict": mmseg()}, path)
    else:
        reference, _ = load_google(tmp_path)
        state = {
            f"module.{k}" if form == "wrapped" else k: v
            for k, v in reference.backbone.state_dict().items()
        }
        torch.save({"model": state}, path)
    model, report = load(config(), path)
    assert report.counts()["backbone"]["matched"] == len(model.backbone.state_dict())
    assert not report.unexpected and not report.mismatched
    if form in ("google", "mmseg"):
        assert "Position tables are resized from patches of 2x2 to 4x4." in report.notes
    reference, _ = load_google(tmp_path)
    for name, value in reference.backbone.state_dict().items():
        torch.testing.assert_close(model.backbone.state_dict()[name], value)


def load_google(folder):
    np.savez(folder / "google.npz", **google())
    return load(config(), folder / "google.npz")


def test_the_features_of_googles_vit(tmp_path):
    np.savez(tmp_path / "vit.npz", **google())
    # The official one had images of 8x8.
    model, report = load(config(**{"MODEL.VIT.IMG_SIZE": [8, 8]}), tmp_path / "vit.npz")
    assert report.notes == []
    image = torch.from_numpy(np.load(INITIAL / "inputs.npz")["jax_vit_input"])
    with torch.no_grad():
        features = model.eval().backbone(image)["last_feat"]
    expected = torch.from_numpy(np.load(INITIAL / "outputs.npz")["jax_vit_output"])
    torch.testing.assert_close(features, expected, atol=5e-6, rtol=0)


def test_an_evaluation_needs_the_head(tmp_path):
    np.savez(tmp_path / "vit.npz", **google())
    cfg = config(**{"MODEL.VIT.IMG_SIZE": [8, 8], "MODEL.WEIGHTS": str(tmp_path / "vit.npz")})
    with pytest.raises(UserError, match=r"only 0\.0% of sem_seg_head is in the file"):
        load_model(cfg)


def test_the_report_names_heads_for_other_labels_by_their_own_names(tmp_path):
    """The weights of a segmentor start one of other labels, but for its classifiers."""
    case = Case(GOLDEN / "pixel_deeplabv3_rankseg")
    model = case.model()
    other = {k: v[:7] if v.shape[:1] == (12,) else v for k, v in case.weights.items()}
    other["decode_head.cls_emb"] = case.weights["decode_head.cls_emb"][:, :7]
    torch.save({"meta": {"CLASSES": ("a",)}, "state_dict": other}, tmp_path / "other.pth")
    checkpointer = Checkpointer(model)
    checkpointer.load(tmp_path / "other.pth")
    report = checkpointer.report
    assert not report.unexpected
    assert {"sem_seg_head.cls_emb", "aux_head.conv_seg.weight"} <= report.mismatched.keys()
    assert any("The file is for other labels" in note for note in report.notes)
