"""MaskFormer of 2021: the official model's numbers, Hugging Face's, and RankSeg on top."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from conftest import TESTS
from data.compact_pixel_golden import load_weights
from detectron2.modeling import build_model
from detectron2.structures import Instances
from maskformer_golden import MaskFormerCase, compare
from torch import nn
from transformers import (
    DetrConfig,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    ResNetConfig,
    SwinConfig,
)

from rankseg_m2f.config import get_cfg
from rankseg_m2f.engine.config_checks import check_model
from rankseg_m2f.modeling.query.criteria import build_criterion
from rankseg_m2f.modeling.query.criterion import PointCriterion
from rankseg_m2f.modeling.query.focal_criterion import (
    FocalCriterion,
    FocalMatcher,
    focal_costs,
    focal_loss,
)
from rankseg_m2f.modeling.query.inference import panoptic
from rankseg_m2f.structures.predictions import ClipTargets, QueryPrediction, SelectedScores
from rankseg_m2f.weights.checkpoint import Checkpointer

GOLDEN = TESTS / "data" / "golden"
FOLDERS = sorted(GOLDEN.glob("pixel_maskformer_*"))
CASE = MaskFormerCase(GOLDEN / "pixel_maskformer_semantic")
ENCODER_CASE = MaskFormerCase(GOLDEN / "pixel_maskformer_panoptic")
K = 12
RANKSEG = [
    *("MODEL.RANKSEG.FLAG", True, "MODEL.RANKSEG.LOSS_WEIGHT", 10.0),
    *("MODEL.SEM_SEG_HEAD.USE_LAYERNORM", True, "MODEL.RANKSEG.HIDDEN_DIM", 64),
]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_all_outputs_are_the_official_ones(folder):
    rows = compare(folder)
    assert not [row for row in rows if not row[3]]
    kinds = {name.partition(".")[0] for name, *_ in rows}
    expected = {"backbone", "mask_features", "queries", "pred_logits", "pred_masks", "match"}
    expected |= {"aux_pred_logits", "aux_pred_masks", "train", "grad", "norm", "sem_seg"}
    if "panoptic" in folder.name:
        expected |= {"transformer_encoder_features", "panoptic_seg", "segments_info"}
    assert kinds == expected


def test_both_cases_are_there():
    assert [folder.name.rpartition("_")[2] for folder in FOLDERS] == ["panoptic", "semantic"]


@pytest.mark.parametrize("case", [CASE, ENCODER_CASE], ids=["plain", "encoder"])
def test_parameters_are_in_the_official_order(case):
    """Optimizer states in checkpoints go by it."""
    official = list(load_weights(case.folder / "weights.npz"))
    ours = list(case.model().state_dict())
    assert ours == [name for name in official if name in set(ours)] and len(ours) == len(official)


def test_focal_loss_by_hand():
    logits, masks = torch.tensor([[0.0, 2.0, -1.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    p = logits[0].sigmoid()
    each = [
        0.25 * (1 - p[0]) ** 2 * -p[0].log(),
        0.75 * p[1] ** 2 * -(1 - p[1]).log(),
        0.75 * p[2] ** 2 * -(1 - p[2]).log(),
    ]
    torch.testing.assert_close(focal_loss(logits, masks), torch.stack(each).mean()[None])
    # The cost of a pair is the loss it would have.
    logits, masks = torch.randn(4, 9), (torch.rand(3, 9) > 0.5).float()
    pairs = [[focal_loss(q[None], m[None])[0] for m in masks] for q in logits]
    expected = torch.stack([torch.stack(row) for row in pairs])
    torch.testing.assert_close(focal_costs(logits, masks), expected)


def objects(labels, frames, size=(64, 96)):
    masks = torch.rand(len(labels), frames, *size) > 0.5
    return ClipTargets(torch.tensor(labels).long(), masks)


def test_masks_shrink_to_the_nearest_pixel_for_matching():
    masks = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    masks[0, 0, 4, 4] = True  # the pixel that stands for the second of two
    masks[0, 1, 5:, 5:] = True  # none that does
    _, shrunk = FocalMatcher(1, 1, 1).compared(torch.zeros(3, 2, 2, 2), masks)
    assert shrunk.tolist() == [[0, 0, 0, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("frames", [1, 2])
def test_a_clip_costs_what_its_frames_cost(frames):
    """And a clip without objects nothing, in the graph still."""
    criterion = FocalCriterion(
        K,
        matcher=FocalMatcher(1, 20, 1),
        weights={"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 1.0},
        no_object_weight=0.1,
        deep_supervision=True,
    )
    masks = torch.randn(2, 5, frames, 16, 24, requires_grad=True)
    layer = QueryPrediction(torch.zeros(2, 5, 8), torch.randn(2, 5, K + 1), masks)
    targets = [objects([3, 1], frames), objects([], frames)]
    losses = criterion([layer], targets)
    ((query, chosen), (none, _)) = criterion.matcher([layer], targets)[0]
    assert len(query) == 2 and len(none) == 0
    large = F.interpolate(masks[0][query], (64, 96), mode="bilinear", align_corners=False)
    truth = targets[0].masks[chosen].float()
    expected = focal_loss(large.flatten(0, 1).flatten(1), truth.flatten(0, 1).flatten(1))
    torch.testing.assert_close(losses["loss_mask"], 20 * expected.sum() / 2)
    empty = criterion([layer], [objects([], frames)] * 2)
    assert empty["loss_mask"] == 0 and empty["loss_dice"] == 0
    sum(empty.values()).backward()
    assert masks.grad is not None


def test_segments_are_cut_as_published():
    """A pixel whose best mask is below 0.5 belongs to MaskFormer's segment alone."""
    masks = torch.tensor([[[4.0, -1.0, -9.0]], [[-9.0, -2.0, 4.0]]])
    scores = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]])
    ids = torch.arange(2)
    whole, segments = panoptic(scores, ids, masks, {0, 1}, 0.5, 0.8, whole_segments=True)
    assert whole.tolist() == [[1, 1, 2]] and len(segments) == 2
    assert panoptic(scores, ids, masks, {0, 1}, 0.5, 0.8)[0].tolist() == [[1, 0, 2]]
    # A mask that is nowhere 0.5 is no segment, though it wins pixels.
    masks[0] = -1.0
    whole, segments = panoptic(scores, ids, masks, {0, 1}, 0.5, 0.8, whole_segments=True)
    assert whole.tolist() == [[0, 0, 1]] and [s["category_id"] for s in segments] == [1]


def test_the_mask_loss_goes_with_the_decoder_or_its_key():
    cfg = get_cfg()
    node = cfg.MODEL.MASK_FORMER
    for feature, key, kind in (
        ("res5", "", FocalCriterion),
        ("multi_scale_pixel_decoder", "", PointCriterion),
        ("res5", "points", PointCriterion),
        ("multi_scale_pixel_decoder", "focal", FocalCriterion),
    ):
        node.TRANSFORMER_IN_FEATURE, node.MASK_LOSS = feature, key
        assert type(build_criterion(cfg)) is kind
    node.MASK_LOSS = "dice"
    with pytest.raises(ValueError, match=r"MASK_LOSS 'dice' must be one of|MASK_LOSS='dice'"):
        build_criterion(cfg)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            (
                *("TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder"),
                *("TRANSFORMER_IN_FEATURE", "multi_scale_pixel_decoder"),
            ),
            "reads one map, not 'multi_scale_pixel_decoder'",
        ),
        (("TRANSFORMER_IN_FEATURE", "transformer_encoder"), "has no encoder"),
        (("TRANSFORMER_IN_FEATURE", "res7"), "res7.* must be one of .*res5"),
        (("DEC_LAYERS", 0), "DEC_LAYERS=0 must be 1 or more"),
    ],
)
def test_parts_that_do_not_fit_are_named(overrides, message):
    keys = [w if i % 2 else f"MODEL.MASK_FORMER.{w}" for i, w in enumerate(overrides)]
    with pytest.raises(ValueError, match=message):
        build_model(CASE.config(*keys))


@pytest.mark.parametrize("place", [0, 4])
def test_the_head_reads_a_layer_that_is_there(place):
    with pytest.raises(ValueError, match=f"QUERY_LAYER={place} .*DEC_LAYERS=3 makes 3"):
        build_model(CASE.config(*RANKSEG, "MODEL.RANKSEG.TOPK", 3, *layer(place)))
    model = build_model(CASE.config(*RANKSEG, "MODEL.RANKSEG.TOPK", 3, *layer(2))).train()
    seen = []
    model.ml_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    prediction = model.predict(model.clips(CASE.inputs))
    assert [x.queries is seen[0] for x in prediction.layers] == [False, True, False]


def layer(place):
    return ("MODEL.RANKSEG.QUERY_LAYER", place)


@pytest.mark.parametrize("feature", ["transformer_encoder", "pixel_embedding", "res4"])
def test_the_decoder_reads_the_map_it_is_told(feature):
    model = build_model(ENCODER_CASE.config("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", feature))
    seen = []
    model.sem_seg_head.predictor.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.eval()(ENCODER_CASE.inputs)
    stride = {"transformer_encoder": 32, "pixel_embedding": 4, "res4": 16}[feature]
    assert seen[0].shape[-2:] == (64 // stride, 96 // stride)


def batch_of(sizes):
    inputs = []
    for height, width in sizes:
        found = Instances((height, width), gt_classes=torch.tensor([1, 7]))
        found.gt_masks = torch.rand(2, height, width) > 0.5
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        inputs.append({"image": image, "instances": found, "height": height, "width": width})
    return inputs


@pytest.mark.parametrize("kappa", [0, 1, 3, K, K + 17])
def test_a_batch_gives_what_its_images_give(kappa):
    """Without RankSeg (0), and for every κ; images of odd sizes, in batches of their own size."""
    ranking = [*RANKSEG, "MODEL.RANKSEG.TOPK", kappa, *layer(2)] if kappa else []
    torch.manual_seed(kappa)
    model = build_model(ENCODER_CASE.config(*ranking)).eval()
    inputs = batch_of([(51, 67)] * 3)
    with torch.no_grad():
        together, alone = model(inputs), [model([x])[0] for x in inputs]
    for a, b in zip(together, alone, strict=True):
        first, second = a["sem_seg"], b["sem_seg"]
        if isinstance(first, SelectedScores):
            assert torch.equal(first.ids, second.ids) and len(first.ids) == kappa
            first, second = first.scores, second.scores
        else:
            assert kappa in (0, K, K + 17)
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
        if kappa:
            assert torch.equal(a["label_ranking"], b["label_ranking"])
            assert len(a["label_ranking"]) == min(kappa, K)


@pytest.mark.parametrize("kappa", [0, 1, 3, K, K + 17])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training(kappa, precision):
    """Every parameter has a gradient, also where nothing is in the images or no label is known."""
    ranking = [*RANKSEG, "MODEL.RANKSEG.TOPK", kappa, *layer(2)] if kappa else []
    model = build_model(ENCODER_CASE.config(*ranking)).train()
    inputs = batch_of([(64, 96), (43, 59)])
    for labels in ([1, 7], [255, 255]):
        for x in inputs:
            x["instances"].gt_classes = torch.tensor(labels)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            losses = model(inputs)
        sum(losses.values()).backward()
        assert len(losses) == 9 + (kappa > 0)
        assert all(loss.isfinite() for loss in losses.values())
        assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_a_clip_is_a_batch_of_frames_to_the_pixel_decoder():
    """Its queries see all frames at once, and an image is a clip of one."""
    model = build_model(CASE.config("MODEL.META_ARCHITECTURE", "VideoMaskFormer")).eval()
    frames = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in range(2)]
    with torch.no_grad():
        (result,) = model([{"image": frames, "height": 64, "width": 96}])
        twice = model.predict(model.clips([{"image": [frames[0]] * 2}])).layers[-1]
        once = model.predict(model.clips([{"image": frames[0]}])).layers[-1]
    assert result["sem_seg"].argmax(0).shape == (2, 64, 96)
    assert twice.mask_logits.shape[2] == 2
    assert not torch.equal(twice.class_logits, once.class_logits)  # frames have times


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_layers_of_the_decoder_and_pre_norm(pre_norm):
    keys = ("MODEL.MASK_FORMER.ENC_LAYERS", 2, "MODEL.MASK_FORMER.PRE_NORM", pre_norm)
    model = build_model(CASE.config(*keys)).train()
    names = {n for n, _ in model.sem_seg_head.predictor.transformer.encoder.named_parameters()}
    assert len({n.split(".")[1] for n in names if n.startswith("layers.")}) == 2
    assert ("norm.weight" in names) == pre_norm
    sum(model(CASE.inputs).values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


OFFICIAL_YAML = """
MODEL:
  META_ARCHITECTURE: "MaskFormer"
  BACKBONE: {FREEZE_AT: 0, NAME: "build_resnet_backbone"}
  RESNETS: {DEPTH: 50, STEM_TYPE: "basic", STRIDE_IN_1X1: False,
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]}
  SEM_SEG_HEAD: {NAME: "MaskFormerHead", IN_FEATURES: ["res2", "res3", "res4", "res5"],
    IGNORE_VALUE: 255, NUM_CLASSES: 150, CONVS_DIM: 256, MASK_DIM: 256, NORM: "GN"}
  MASK_FORMER: {TRANSFORMER_IN_FEATURE: "res5", DEEP_SUPERVISION: True, NO_OBJECT_WEIGHT: 0.1,
    DICE_WEIGHT: 1.0, MASK_WEIGHT: 20.0, HIDDEN_DIM: 256, NUM_OBJECT_QUERIES: 100, NHEADS: 8,
    DROPOUT: 0.1, DIM_FEEDFORWARD: 2048, ENC_LAYERS: 0, DEC_LAYERS: 6, PRE_NORM: False}
INPUT:
  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 512) for x in range(5, 21)]"]
  CROP: {ENABLED: True, TYPE: "absolute", SIZE: [512, 512], SINGLE_CATEGORY_MAX_AREA: 1.0}
  COLOR_AUG_SSD: True
  SIZE_DIVISIBILITY: 512
  FORMAT: "RGB"
  DATASET_MAPPER_NAME: "mask_former_semantic"
VERSION: 2
"""


def test_a_file_of_maskformer_is_read_as_it_is(tmp_path):
    """It names neither the decoder nor a mask loss."""
    (tmp_path / "maskformer.yaml").write_text(OFFICIAL_YAML, encoding="utf-8")
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "maskformer.yaml"))
    cfg.MODEL.DEVICE = "meta"
    assert cfg.INPUT.MIN_SIZE_TRAIN[0] == 256
    with torch.device("meta"):
        model = build_model(cfg)
    assert type(model.sem_seg_head.predictor).__name__ == "StandardTransformerDecoder"
    assert type(model.criterion) is FocalCriterion
    assert model.criterion.weights == {"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
    cfg.MODEL.DEVICE = "cpu"
    check_model(cfg)


def test_an_official_file_of_weights_loads_whole(tmp_path):
    """Also of the first version, whose pixel decoder was the head itself."""
    model = ENCODER_CASE.model()
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    old = {
        name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): x for name, x in state.items()
    }
    for weights in (state, old):
        with (tmp_path / "model.pkl").open("wb") as file:
            pickle.dump({"model": weights, "__author__": "MaskFormer"}, file)
        again = build_model(ENCODER_CASE.config())
        checkpointer = Checkpointer(again, for_evaluation=True)
        checkpointer.load(str(tmp_path / "model.pkl"))
        assert checkpointer.report.complete
        assert all(torch.equal(again.state_dict()[n], x) for n, x in model.state_dict().items())


STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "resnet50": ResNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 32, 64, 128],
        depths=[3, 4, 6, 3],
        layer_type="bottleneck",
        out_features=STAGES,
    ),
    "swin": SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[2, 1, 2, 1],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        out_features=STAGES,
    ),
}
OURS = {
    "resnet50": ("MODEL.RESNETS.STEM_TYPE", "basic"),
    "swin": [
        *("MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", 16),
        *("MODEL.SWIN.DEPTHS", [2, 1, 2, 1], "MODEL.SWIN.NUM_HEADS", [1, 2, 4, 8]),
        *("MODEL.SWIN.WINDOW_SIZE", 4),
    ],
}


def their_model(backbone: str) -> nn.Module:
    """Hugging Face's, with weights that are not as tame as fresh ones."""
    decoder = DetrConfig(
        d_model=32,
        decoder_layers=3,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        num_queries=10,
    )
    config = MaskFormerConfig(
        backbone_config=copy.deepcopy(BACKBONES[backbone]),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=16,
        num_labels=K,
    )
    model = MaskFormerForInstanceSegmentation(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and name != "criterion.empty_weight":
                noise = torch.rand(value.shape, generator=generator) * 0.2
                value += noise if "running_var" in name else noise - 0.1
    return model


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_hugging_face_gives_the_same_logits(backbone, tmp_path):
    """With names of its models in memory and in files."""
    theirs = their_model(backbone)
    theirs.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "state.pth")
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = theirs(pixel_values=images)
    for path in (tmp_path, tmp_path / "state.pth"):
        model = build_model(CASE.config(*OURS[backbone])).eval()
        checkpointer = Checkpointer(model, for_evaluation=True)
        checkpointer.load(str(path))
        assert checkpointer.report.complete
        with torch.no_grad():
            final = model.sem_seg_head(model.backbone(images))[-1]
        close = {"atol": 1e-4, "rtol": 1e-4}
        torch.testing.assert_close(final.class_logits, expected.class_queries_logits, **close)
        masks = final.mask_logits.squeeze(2)
        torch.testing.assert_close(masks, expected.masks_queries_logits, **close)
        assert masks.std() > 0.1 and final.class_logits.std() > 0.1
