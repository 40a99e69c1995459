"""What must hold of every pixel head, whatever its numbers."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import TESTS
from detectron2.modeling import build_model
from pixel_official import GivenFeatures, build_segmentor
from torch.utils._python_dispatch import TorchDispatchMode

from rankseg_m2f.config import get_cfg
from rankseg_m2f.errors import UserError
from rankseg_m2f.modeling.pixel.heads.sampled import sampled_logits
from rankseg_m2f.modeling.pixel.heads.segmenter import PositionNorm
from rankseg_m2f.rankseg.head import tokens_of_map
from rankseg_m2f.rankseg.presence import presence_of_map
from rankseg_m2f.rankseg.query2label import Query2LabelHead, sine_position
from rankseg_m2f.structures.predictions import PixelTargets

K = 12
SYSTEMS = (
    "deeplabv3_baseline",
    "deeplabv3_rankseg",
    "swin_upernet_baseline",
    "swin_upernet_rankseg",
    "beit_upernet_rankseg",
    "encnet_head",
    "segmenter_baseline",
    "segmenter_encnet",
    "segmenter_essnet",
    "segmenter_gt",
    "segmenter_q2l",
    "segmenter_q2l_shared",
    "segmenter_rankseg",
    "segmenter_rankseg_gap",
    "segmenter_rankseg_nodown",
    "segmenter_rankseg_oce",
    "segmenter_original_linear",
)
RANKED = tuple(name for name in SYSTEMS if "rankseg" in name or "q2l" in name)
systems = pytest.mark.parametrize("name", SYSTEMS)
ranked_systems = pytest.mark.parametrize("name", RANKED)
# Widths and strides of the maps that heads of the tiny systems read.
MAPS = {
    "deeplabv3": {"res4": (64, 8), "res5": (128, 8)},
    "encnet_head": {"res4": (64, 8), "res5": (128, 8)},
    "swin": {"res2": (8, 4), "res3": (16, 8), "res4": (32, 16), "res5": (64, 32)},
    "beit": {"res2": (32, 4), "res3": (32, 8), "res4": (32, 16), "res5": (32, 32)},
    "segmenter": {"last_feat": (48, 16)},
}


def config_of(name, kappa=None):
    text = (TESTS / "data" / "golden" / f"pixel_{name}" / "config.yaml").read_text()
    config = yaml.safe_load(text)
    if kappa is not None:
        node = config["decode_head"]
        node.get("mlseg", node)["topk_cls"] = kappa
    return config


def features_of(name, batch, size, seed=0):
    """Random maps of images of that size; the maps of an image do not depend on the batch."""
    maps = next(maps for system, maps in MAPS.items() if name.startswith(system))
    features = {}
    for key, (channels, stride) in maps.items():
        shape = (channels, *(-(-side // stride) for side in size))
        features[key] = torch.stack(
            [
                torch.randn(shape, generator=torch.Generator().manual_seed(seed + i))
                for i in range(batch)
            ]
        )
    if "oce" in name:
        generator = torch.Generator().manual_seed(99)
        features["cls_emb"] = torch.randn(batch, K, 48, generator=generator)
    return features


def tiny(name, kappa=None, batch=3, size=(96, 80)):
    """A model, and targets for its features."""
    torch.manual_seed(1)
    backbone = GivenFeatures(features_of(name, batch, size))
    model = build_segmentor(config_of(name, kappa), backbone).eval()
    label_maps = torch.randint(-1, K, (batch, *size), generator=torch.Generator().manual_seed(5))
    # Labels differ from image to image, and so does their number.
    for i, label_map in enumerate(label_maps):
        label_map[label_map >= K - 2 - 3 * i] = i
    return model, PixelTargets(presence_of_map(label_maps, K), label_maps)


def predicted(model, targets):
    """Prediction of the network, told the truth if it is an oracle."""
    prediction = model.network(Clips())
    if model.policy.oracle_train:
        prediction = model.mask_absent(prediction, targets.presence)
    return prediction


class Clips:
    """Of one frame each; the maps are those the model was made with."""

    frames = None
    num_frames = 1


def losses_of(model, targets):
    prediction = predicted(model, targets)
    ranked = model.policy.train(prediction.presence_logits, targets.presence)
    final = model.ranked(prediction, ranked)
    if model.aux_head is not None:
        # Made while training alone; here dropout is off, and batch norms stay as they are.
        final.auxiliary = model.aux_head(model.backbone.features, 1).logits
    return model.losses(final, targets, ranked) | model.label_loss(prediction, targets)


def picked(targets, i):
    return PixelTargets(targets.presence[i : i + 1], targets.label_maps[i : i + 1])


@systems
@pytest.mark.parametrize("size", [(96, 80), (71, 103)])
@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(name, size):
    model, targets = tiny(name, size=size)
    prediction = predicted(model, targets)
    ranked = model.policy.train(prediction.presence_logits, targets.presence)
    together = model.ranked(prediction, ranked).logits.of_all()
    for i in range(3):
        for key, value in features_of(name, 3, size).items():
            model.backbone.features[key] = value[i : i + 1]
        alone = predicted(model, picked(targets, i))
        if alone.presence_logits is not None:
            torch.testing.assert_close(
                alone.presence_logits, prediction.presence_logits[i : i + 1], atol=1e-5, rtol=1e-5
            )
        rank = model.policy.train(alone.presence_logits, None)
        assert rank is None or torch.equal(rank.index, ranked.index[i : i + 1])
        maps = model.ranked(alone, rank).logits.of_all()
        torch.testing.assert_close(maps, together[i : i + 1], atol=2e-5, rtol=1e-5)
        sliced = model.ranked(prediction[i], rank).logits.of_all()
        torch.testing.assert_close(sliced, together[i : i + 1], atol=2e-5, rtol=1e-5)


@ranked_systems
@pytest.mark.parametrize("kappa", [1, 3, K, K + 17])
def test_kappa_maps_are_made_and_every_parameter_learns(name, kappa):
    model, targets = tiny(name, kappa)
    prediction = predicted(model, targets)
    ranked = model.policy.train(prediction.presence_logits, targets.presence)
    maps = prediction.logits.of_labels(ranked.index)
    assert maps.shape[:2] == (3, min(kappa, K))
    if name.startswith(("swin", "beit", "deeplab")):
        # Weights score alike, whichever others are selected; tokens of Segmenter see each other.
        torch.testing.assert_close(maps, ranked.gather(prediction.logits.of_all(), 1))
    losses = losses_of(model, targets)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]
    seen = ranked.rank_of(targets.label_maps, missing=-1) >= 0
    assert (losses["loss_seg"] == 0) == (kappa == 1 or not seen.any())


class Watch(TorchDispatchMode):
    """Keeps the shapes of all tensors that are made."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        outputs = output if isinstance(output, (tuple, list)) else [output]
        self.shapes |= {tuple(x.shape) for x in outputs if isinstance(x, torch.Tensor)}
        return output


def maps_of_all_labels(name, train):
    """Shapes of tensors with a value for every label and pixel, at any size."""
    model, targets = tiny(name, 3 if name in RANKED else None)
    model.aux_head = None  # that one is of all labels, at a low weight
    with Watch() as watch, torch.set_grad_enabled(train):
        if train:
            sum(losses_of(model, targets).values()).backward()
        else:
            prediction = predicted(model, targets)
            ranked = model.policy.train(prediction.presence_logits)
            model.ranked(prediction, ranked).logits.of_all()
    height, width = next(iter(model.backbone.features.values())).shape[2:]
    sizes = [(height, width), (height * width,), (96, 80), (96 * 80,)]
    return {
        shape for shape in watch.shapes for size in sizes if shape[1:] in ((K, *size), (*size, K))
    }


@systems
@pytest.mark.parametrize("train", [False, True])
def test_no_map_of_all_labels_is_made_where_labels_are_selected(name, train):
    assert bool(maps_of_all_labels(name, train)) == (name not in RANKED)


@systems
@pytest.mark.parametrize("mean", ["all", "counted"])
def test_label_maps_all_ignored(name, mean):
    model, targets = tiny(name)
    model.pixel_loss.keywords["mean"] = mean
    targets = PixelTargets(
        torch.zeros_like(targets.presence), torch.full_like(targets.label_maps, -1)
    )
    losses = losses_of(model, targets)
    assert losses["loss_seg"] == 0
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), key


@systems
def test_bfloat16(name):
    model, targets = tiny(name)
    full = {k: v.item() for k, v in losses_of(model, targets).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, targets)
    assert losses.keys() == full.keys()
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        # Ranks may change places.
        assert loss.item() == pytest.approx(full[key], rel=0.1, abs=0.05), key
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@ranked_systems
@torch.no_grad()
def test_frames_of_a_clip_are_ranked_together(name):
    model, _ = tiny(name, batch=4)

    class TwoFrames(Clips):
        num_frames = 2

    prediction = model.network(TwoFrames())
    assert prediction.presence_logits.shape == (2, K) and prediction.num_frames == 2
    ranked = model.policy.train(prediction.presence_logits)
    assert model.ranked(prediction, ranked).logits.of_all().shape[:2] == (4, 5)
    second = model.ranked(prediction[1], ranked[1]).logits.of_all()
    torch.testing.assert_close(second, model.ranked(prediction, ranked).logits.of_all()[2:])
    # A clip of equal frames is an image, to all but the layer in which tokens of frames add up.
    for value in model.backbone.features.values():
        value[1::2] = value[::2]
    twice = model.network(TwoFrames()).presence_logits
    for key, value in model.backbone.features.items():
        model.backbone.features[key] = value[::2]
    once = model.network(Clips()).presence_logits
    if "q2l" in name or "gap" in name:
        torch.testing.assert_close(twice, once, atol=1e-5, rtol=1e-5)
    assert twice.shape == once.shape


@systems
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_it_compiles(name, backend):
    model, targets = tiny(name, batch=2)

    def maps(features):
        prediction = model.sem_seg_head(features, 1)
        if model.policy.oracle_train:
            prediction = model.mask_absent(prediction, targets.presence)
        if model.ml_head is not None:
            tokens = tokens_of_map(
                F.adaptive_avg_pool2d(features[model.label_feature], model.label_pool or 2)
            )
            shared = None if model.ml_head.share is None else model.sem_seg_head.label_embeddings
            prediction = replace(prediction, presence_logits=model.ml_head(tokens, shared))
        ranked = model.policy.train(prediction.presence_logits)
        return model.ranked(prediction, ranked).logits.of_all(), prediction.presence_logits

    torch._dynamo.reset()
    # How many labels an image has is only known at run time, so the oracle is not one graph.
    compiled = torch.compile(maps, backend=backend, fullgraph=name != "segmenter_gt")
    with torch.no_grad():
        expected = maps(model.backbone.features)
        torch.testing.assert_close(
            compiled(model.backbone.features), expected, atol=2e-5, rtol=1e-5
        )


def test_positions_are_those_of_detr():
    position = sine_position(8, 3)
    assert position.shape == (1, 8, 3, 3)
    place = 2 * math.pi * 2 / (3 + 1e-6)
    # Channels: sine and cosine of the row at two periods, then the same of the column.
    row = [math.sin(place), math.cos(place), math.sin(place / 100), math.cos(place / 100)]
    torch.testing.assert_close(position[0, :4, 1, 2], torch.tensor(row))
    torch.testing.assert_close(position[0, 4:, 0, 1], torch.tensor(row))
    with pytest.raises(ValueError, match="multiple of 4 channels, got 6"):
        sine_position(6, 3)
    with pytest.raises(ValueError, match="grid of 4 x 4 cells and met 15 tokens"):
        Query2LabelHead(K, 8, 8, heads=2, side=4)(torch.randn(2, 15, 8))


def test_the_oracle_sees_the_labels_present_alone():
    model, targets = tiny("segmenter_gt", batch=3)
    targets.presence[1] = False
    targets.presence[2] = False
    targets.presence[2, 7] = True
    logits = predicted(model, targets).logits.of_all()
    for maps, present in zip(logits, targets.presence, strict=True):
        shown = (maps != -100).flatten(1).any(1)
        # An image without labels shows the first; of one label alone only the mean is taken off.
        assert torch.equal(shown, present if present.any() else torch.arange(K) == 0)
        if present.sum() <= 1:
            torch.testing.assert_close(maps[shown], torch.zeros_like(maps[shown]))


def test_the_oracles_norm_by_hand():
    norm = PositionNorm(5)
    with torch.no_grad():
        norm.gamma.copy_(torch.arange(1.0, 6))
        norm.beta.fill_(0.5)
    maps = torch.tensor([1.0, 4.0, 7.0]).view(1, 3, 1, 1)
    expected = torch.tensor([-1 + 0.5, 0.5, 3 + 0.5]).view(1, 3, 1, 1)
    torch.testing.assert_close(norm(maps), expected, atol=1e-5, rtol=1e-5)


def test_essnet_compares_the_true_label_with_the_best_others():
    logits = torch.tensor([0.1, 0.9, 0.5, 0.7]).view(1, 4, 1, 1).expand(1, 4, 1, 3)
    labels = torch.tensor([[[1, 0, -1]]])
    sampled = sampled_logits(logits, labels, best=2)[0, :, 0]
    torch.testing.assert_close(sampled[:, 0], torch.tensor([0.9, 0.7, 0.5]))
    torch.testing.assert_close(sampled[:, 1], torch.tensor([0.1, 0.9, 0.7]))
    # With all others compared it is the usual cross-entropy.
    model, targets = tiny("segmenter_essnet")
    model.sem_seg_head.training = True  # its layers are not: no dropout
    model.sem_seg_head.best = K
    logits = predicted(model, targets).logits.of_all()
    usual = model.pixel_loss(logits, targets.label_maps)
    torch.testing.assert_close(losses_of(model, targets)["loss_seg"], usual)


TINY = {
    "MODEL.META_ARCHITECTURE": "PixelSegmentor",
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "D2SwinTransformer",
    "MODEL.SWIN.EMBED_DIM": 16,
    "MODEL.SWIN.DEPTHS": [1, 1, 1, 1],
    "MODEL.SWIN.NUM_HEADS": [1, 1, 1, 1],
    "MODEL.SWIN.WINDOW_SIZE": 4,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": K,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 16,
    "MODEL.SEM_SEG_HEAD.NORM": "BN",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],
    "MODEL.RANKSEG.TOPK": 3,
    "MODEL.RANKSEG.LOSS_WEIGHT": 10.0,
    "MODEL.RANKSEG.HIDDEN_DIM": 32,
}
SEGMENTER = {"MODEL.PIXEL.DECODER.WIDTH": 32, "MODEL.PIXEL.LABEL_POOL": 4}
CONFIGS = {
    "ASPPHead": {},
    "UPerHead": {"MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"]},
    "EncHead": {"MODEL.RANKSEG.LABEL_LOSS": "binary"},
    "LinearSegmenterHead": {},
    "SegmenterHead": SEGMENTER,
    "RankedSegmenterHead": SEGMENTER,
    "OracleSegmenterHead": {**SEGMENTER, "MODEL.RANKSEG.USE_GT": True},
    "EncSegmenterHead": SEGMENTER,
    "SampledSegmenterHead": {**SEGMENTER, "MODEL.PIXEL.DECODER.SCORE_WIDTH": 4},
}
PLAIN = ("EncHead", "OracleSegmenterHead", "EncSegmenterHead", "SampledSegmenterHead")


def configured(head, rankseg, **changes):
    keys = TINY | CONFIGS[head] | {"MODEL.SEM_SEG_HEAD.NAME": head, "MODEL.RANKSEG.FLAG": rankseg}
    cfg = get_cfg()
    cfg.merge_from_list([x for pair in (keys | changes).items() for x in pair])
    return build_model(cfg)


def pictures(batch):
    label_map = torch.arange(K).repeat_interleave(8).expand(64, -1).clone()
    label_map[:10] = 255
    return [
        {"image": torch.randint(256, (3, 64, 96), dtype=torch.uint8), "sem_seg": label_map}
        for _ in range(batch)
    ]


@pytest.mark.parametrize(
    ("head", "rankseg"),
    [
        *((head, False) for head in CONFIGS if head != "RankedSegmenterHead"),
        *((head, True) for head in CONFIGS if head not in PLAIN),
    ],
)
def test_heads_made_from_config_train_and_predict(head, rankseg):
    model = configured(head, rankseg).train()
    losses = model(pictures(3))
    assert losses["loss_seg"] > 0 and ("loss_ml" in losses) == (rankseg or "Enc" in head)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        (result,) = model.eval()(pictures(1))
    scores = result["sem_seg"]
    assert scores.argmax(0).shape == (64, 96)
    assert len(scores.scores if rankseg else scores) == (3 if rankseg else K)


@pytest.mark.parametrize("form", ["separable", "query2label", "gap"])
@pytest.mark.parametrize("selection", [True, False])
@pytest.mark.parametrize("head", ["ASPPHead", "SegmenterHead"])
def test_label_heads_serve_pixel_heads(head, form, selection):
    changes = {
        "MODEL.RANKSEG.HEAD": form,
        "MODEL.RANKSEG.SELECTION": selection,
        "MODEL.PIXEL.LABEL_POOL": 16,
    }
    model = configured(head, True, **changes).train()
    sum(model(pictures(2)).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    (result,) = model.eval()(pictures(1))
    assert result["label_scores"].shape == (K,)


@pytest.mark.parametrize(
    ("head", "rankseg", "changes", "message"),
    [
        ("RankedSegmenterHead", False, {}, "without it MODEL.SEM_SEG_HEAD.NAME is SegmenterHead"),
        ("OracleSegmenterHead", False, {"MODEL.RANKSEG.USE_GT": False}, "USE_GT is False"),
        *((head, True, {}, f"the head {head} .*set it False") for head in PLAIN),
        ("UPerHead", False, {"MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2"]}, "two or more maps"),
        ("ASPPHead", False, {"MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res9"]}, "one map of the backb"),
        ("ASPPHead", True, {"MODEL.RANKSEG.LABEL_LOSS": "hinge"}, "one of asymmetric, binary"),
    ],
)
def test_settings_that_do_not_fit_are_named(head, rankseg, changes, message):
    with pytest.raises(UserError, match=message):
        configured(head, rankseg, **changes)
