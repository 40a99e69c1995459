"""Hugging Face's Mask2Former with the same weights gives the same logits, in both directions."""

import copy
import json
import re
import sys

import export_huggingface
import pytest
import torch
from detectron2.modeling import build_model
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetBackbone,
    ResNetConfig,
    ResNetForImageClassification,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
)

import rankseg_m2f.registration  # noqa: F401
from rankseg_m2f.config import get_cfg
from rankseg_m2f.weights.checkpoint import Checkpointer
from rankseg_m2f.weights.huggingface import from_huggingface, is_huggingface, to_huggingface
from rankseg_m2f.weights.huggingface_export import export
from rankseg_m2f.weights.key_names import our_names

STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "swin": SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[2, 1, 2, 1],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        out_features=STAGES,
    ),
    "resnet50": ResNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 32, 64, 128],
        depths=[3, 4, 6, 3],
        layer_type="bottleneck",
        out_features=STAGES,
    ),
}
OURS = {
    "swin": [
        *("MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", "16"),
        *("MODEL.SWIN.DEPTHS", "[2, 1, 2, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2, 4, 8]"),
        *("MODEL.SWIN.WINDOW_SIZE", "4"),
    ],
    "resnet50": [
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.STEM_TYPE", "basic"),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.RESNETS.STRIDE_IN_1X1", "False"),
        *("MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
    ],
}
HEAD = [
    *("MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "MaskFormer", "INPUT.FORMAT", "RGB"),
    *("MODEL.SEM_SEG_HEAD.NAME", "MaskFormerHead", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.MASK_DIM", "24"),
    *("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
    *("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "MSDeformAttnPixelDecoder"),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "2"),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.NHEADS", "4"),
    *("MODEL.MASK_FORMER.DIM_FEEDFORWARD", "64", "MODEL.MASK_FORMER.DEC_LAYERS", "5"),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "12", "MODEL.MASK_FORMER.DROPOUT", "0.0"),
    *("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "multi_scale_pixel_decoder"),
]


CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def stirred(model: nn.Module) -> nn.Module:
    """Freshly initialised offsets, biases and norm statistics are too tame to tell models apart."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and name != "criterion.empty_weight":
                noise = torch.rand(value.shape, generator=generator) * 0.2
                value += noise if "running_var" in name else noise - 0.1
    return model.eval()


def their_model(backbone: str) -> Mask2FormerForUniversalSegmentation:
    config = Mask2FormerConfig(
        backbone_config=BACKBONES[backbone],
        feature_size=32,
        mask_feature_size=24,
        hidden_dim=32,
        encoder_feedforward_dim=1024,
        encoder_layers=2,
        decoder_layers=5,
        num_attention_heads=4,
        dim_feedforward=64,
        num_queries=12,
        num_labels=7,
    )
    return stirred(Mask2FormerForUniversalSegmentation(config))


def our_config(backbone: str, *overrides: object):
    cfg = get_cfg()
    cfg.merge_from_list([*HEAD, *OURS[backbone], *overrides])
    return cfg


def load(model, path):
    """The report of an evaluation's weights."""
    checkpointer = Checkpointer(model, for_evaluation=True)
    checkpointer.load(str(path))
    return checkpointer.report


def assert_same_logits(ours, theirs):
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = theirs(pixel_values=images)
        final = ours.sem_seg_head(ours.backbone(images), num_frames=1)[-1]
    masks = final.mask_logits.squeeze(2)
    torch.testing.assert_close(final.class_logits, expected.class_queries_logits, **CLOSE)
    torch.testing.assert_close(masks, expected.masks_queries_logits, **CLOSE)
    assert masks.std() > 0.1 and final.class_logits.std() > 0.1


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_same_weights_same_logits(backbone):
    theirs = their_model(backbone)
    state = theirs.state_dict()
    ours = build_model(our_config(backbone)).eval()
    assert is_huggingface(state) and not is_huggingface(ours.state_dict())
    missing, unexpected = ours.load_state_dict(our_names(state, ours.state_dict()), strict=False)
    assert not unexpected
    assert all("relative_position_index" in key for key in missing)
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize(
    ("backbone", "norm"), [("swin", "FrozenBN"), ("resnet50", "FrozenBN"), ("resnet50", "BN")]
)
def test_an_exported_model_gives_the_same_logits_and_comes_back(tmp_path, backbone, norm):
    cfg = our_config(backbone, "MODEL.RESNETS.NORM", norm)
    model = stirred(build_model(cfg))
    counters = [x for n, x in model.named_buffers() if n.endswith("num_batches_tracked")]
    assert bool(counters) == (norm == "BN")
    for counter in counters:
        counter.fill_(5)
    names = [f"thing {i}" for i in range(7)]
    assert export(cfg, model, tmp_path / "new" / "model", names) == []
    folder = tmp_path / "new" / "model"
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    theirs, info = Mask2FormerForUniversalSegmentation.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    # The last norm of Swin, which only a classifier reads.
    assert all(re.search(r"encoder\.swin\.layernorm\.", key) for key in info["missing_keys"])
    assert theirs.config.id2label[6] == "thing 6" and theirs.config.num_labels == 7
    assert_same_logits(model, theirs.eval())

    again = build_model(cfg)
    report = load(again, folder)
    assert report.complete
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_their_files_come_back_bitwise(tmp_path, backbone):
    their_model(backbone).save_pretrained(tmp_path / "theirs")
    cfg = our_config(backbone)
    model = build_model(cfg)
    assert load(model, tmp_path / "theirs").complete
    export(cfg, model, tmp_path / "ours")
    before, after = (load_file(tmp_path / n / "model.safetensors") for n in ("theirs", "ours"))
    assert set(after) == {name for name in before if ".swin.layernorm." not in name}
    assert all(torch.equal(before[name], after[name]) for name in after)


@pytest.mark.parametrize("whole", [True, False])
def test_weights_in_parts(tmp_path, whole):
    model = their_model("swin")
    model.save_pretrained(tmp_path, max_shard_size="5GB" if whole else "100KB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (not whole)
    ours = build_model(our_config("swin"))
    assert load(ours, tmp_path).complete
    expected = from_huggingface(model.state_dict())
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in expected.items())
    if not whole:
        again = build_model(our_config("swin"))
        assert load(again, tmp_path / "model.safetensors.index.json").complete


def test_pictures_are_prepared_alike(tmp_path):
    cfg = our_config("swin", "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 128)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    model = build_model(cfg)
    export(cfg, model, tmp_path / "model")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    theirs = processor(images=[image], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(theirs, (image - model.pixel_mean) / model.pixel_std, **CLOSE)


RANKSEG = ["MODEL.RANKSEG.FLAG", True, "MODEL.RANKSEG.TOPK", 5, "MODEL.RANKSEG.TEMPERATURE", "rank"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*RANKSEG], "no place for RankSeg's ml_head and ml_norm; --without-ranking"),
        (["MODEL.SEM_SEG_HEAD.USE_LAYERNORM", True], "cosine classifier .*theirs is linear"),
        (["MODEL.SWIN.APE", True], r"MODEL\.SWIN\.APE is True, and must be False"),
        (["MODEL.META_ARCHITECTURE", "VideoMaskFormer"], "VideoMaskFormer, and must be MaskFormer"),
        (["INPUT.FORMAT", "BGR"], "FORMAT is BGR"),
    ],
)
def test_what_theirs_cannot_be_is_not_written(tmp_path, overrides, message):
    cfg = our_config("swin", *overrides)
    with pytest.raises(ValueError, match=message):
        export(cfg, build_model(cfg), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_the_ranking_is_left_out_when_asked_for(tmp_path):
    cfg = our_config("swin", *RANKSEG)
    model = stirred(build_model(cfg))
    left = export(cfg, model, tmp_path / "model", without_ranking=True)
    assert left == [name for name in model.state_dict() if name.startswith("ml_")] and left
    theirs = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "model").eval()
    assert_same_logits(model, theirs)
    with pytest.raises(FileExistsError, match="never replaced"):
        export(cfg, model, tmp_path / "model", without_ranking=True)


def test_the_tool_exports_and_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    cfg = our_config("swin", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save(build_model(cfg).state_dict(), tmp_path / "w.pth")
    words = ["export", "--config-file", str(tmp_path / "config.yaml"), "--output"]
    for output, weights in (("a", "w.pth"), ("a", "w.pth"), ("b", "absent.pth")):
        path = str(tmp_path / weights)
        monkeypatch.setattr(sys, "argv", [*words, str(tmp_path / output), "MODEL.WEIGHTS", path])
        if output == "b" or (tmp_path / "a").exists():
            with pytest.raises(SystemExit, match=r"export_huggingface: .*(replaced|no weights)"):
                export_huggingface.main()
        else:
            export_huggingface.main()
    assert capsys.readouterr().out == f"{tmp_path / 'a'}\n"
    assert json.loads((tmp_path / "a" / "config.json").read_text())["id2label"]["0"] == "LABEL_0"
    assert not (tmp_path / "b").exists()


def test_names_without_a_counterpart_are_told():
    value = torch.ones(3, 2)
    theirs, left = to_huggingface({"neck.weight": value, "backbone.norm0.weight": value})
    assert left == ["neck.weight"] and len(theirs) == 1


@pytest.mark.parametrize(
    ("backbone", "kind"),
    [
        ("swin", SwinModel),
        ("swin", SwinForImageClassification),
        ("swin", SwinBackbone),
        ("resnet50", ResNetForImageClassification),
        ("resnet50", ResNetBackbone),
    ],
)
def test_their_backbones_alone(tmp_path, backbone, kind):
    theirs = stirred(kind(BACKBONES[backbone]))
    ours = build_model(our_config(backbone)).eval()
    for state in ("in memory", "file"):
        if state == "file":
            theirs.save_pretrained(tmp_path)
        else:
            torch.save(theirs.state_dict(), tmp_path / "model.pth")
        checkpointer = Checkpointer(copy.deepcopy(ours))
        checkpointer.load(str(tmp_path / ("model.pth" if state == "in memory" else "")))
        report = checkpointer.report
        assert not report.unexpected and not report.mismatched
        assert report.coverage()["backbone"] > 0.99
        missing = {name for name in report.missing if name.startswith("backbone.")}
        # Norms of its outputs are not part of a classifier.
        output_norm = r"backbone\.norm\d\..+|.+relative_position_index"
        assert all(re.fullmatch(output_norm, name) for name in missing)
        if kind in (SwinBackbone, ResNetBackbone):
            images = torch.randn(1, 3, 64, 96)
            with torch.no_grad():
                expected = theirs(images).feature_maps
                found = checkpointer.model.backbone(images)
            for i, features in enumerate(expected):
                torch.testing.assert_close(found[f"res{i + 2}"], features, **CLOSE)
