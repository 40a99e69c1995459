"""Segmentors of pixels: κ maps alone, losses, schedule, hints, oracle, clips, a run of training."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from detectron2.modeling import build_model
from detectron2.structures import Instances
from test_engine import SMALL

from rankseg_m2f.config import get_cfg
from rankseg_m2f.engine import main as engine
from rankseg_m2f.engine.evaluate import evaluate, evaluation_sets
from rankseg_m2f.engine.sweep import Setting, grid, sweep
from rankseg_m2f.engine.windows import WindowedModel
from rankseg_m2f.rankseg.head import HEADS
from rankseg_m2f.rankseg.hints import LabelHints
from rankseg_m2f.rankseg.labels import RankedLabels
from rankseg_m2f.rankseg.loss import pixel_cross_entropy
from rankseg_m2f.rankseg.policy import TRAIN_SELECTIONS
from rankseg_m2f.structures.pixel_logits import DenseLogits, EmbeddedLogits, PixelLogits
from rankseg_m2f.structures.predictions import LabelMaps, SelectedScores

K = 12
DEMO = ROOT / "configs" / "scenes" / "panoptic" / "demo-rankseg.yaml"
kappas = pytest.mark.parametrize("kappa", [1, 3, K, K + 17])
PIXELS = {
    "MODEL.META_ARCHITECTURE": "PixelSegmentor",
    "MODEL.SEM_SEG_HEAD.NAME": "FCNHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": "['res4']",
    "MODEL.SEM_SEG_HEAD.NORM": "BN",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": "24",
    "MODEL.PIXEL.AUX_FEATURE": "res3",
    "MODEL.PIXEL.AUX_CHANNELS": "16",
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": "False",
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": "False",
    "MODEL.RANKSEG.HIDDEN_DIM": "32",
}
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "D2SwinTransformer",
    "MODEL.SWIN.EMBED_DIM": "16",
    "MODEL.SWIN.DEPTHS": "[1, 1, 1, 1]",
    "MODEL.SWIN.NUM_HEADS": "[1, 1, 1, 1]",
    "MODEL.SWIN.WINDOW_SIZE": "4",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": str(K),
    "MODEL.RANKSEG.FLAG": "True",
    "MODEL.RANKSEG.LOSS_WEIGHT": "10",
    "MODEL.RANKSEG.TOPK": "3",
}


def words(settings):
    return [word for pair in settings.items() for word in pair]


def tiny(*overrides):
    cfg = get_cfg()
    cfg.merge_from_list([*words(PIXELS | TINY), *overrides])
    torch.manual_seed(0)
    return build_model(cfg)


def picture(labels, frames=None, size=(37, 50)):
    """A random image, or a clip of as many frames, whose columns are of `labels`."""
    height, width = size
    label_map = torch.full(size, 255)
    columns = label_map.tensor_split(max(len(labels), 1), dim=1)
    for label, part in zip(labels, columns, strict=False):
        part[3:] = label
    masks = torch.stack([label_map == x for x in labels]) if labels else torch.zeros(0, *size) > 0
    truth = Instances(size, gt_classes=torch.tensor(labels).long(), gt_masks=masks)
    truth.gt_ids = torch.arange(len(labels))
    generator = torch.Generator().manual_seed(len(labels))
    images = [
        torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        for _ in range(frames or 1)
    ]
    if frames is None:
        return {"image": images[0], "instances": truth}
    return {"image": images, "instances": [truth] * frames}


def with_hints(inputs, hints):
    return [{**x, "label_hints": hints} for x in inputs]


@kappas
@pytest.mark.parametrize("batch", [1, 3])
def test_gathered_embeddings_are_gathered_logits(kappa, batch):
    embedded = EmbeddedLogits(torch.randn(batch, 8, 5, 7), torch.randn(K, 8), torch.randn(K))
    ranked = RankedLabels.top(torch.randn(batch, K), kappa)
    dense = DenseLogits(embedded.of_all())
    assert dense.of_all() is dense.maps
    torch.testing.assert_close(embedded.of_labels(ranked.index), ranked.gather(dense.maps, 1))
    assert torch.equal(dense.of_labels(ranked.index), ranked.gather(dense.maps, 1))
    for logits in (embedded, dense):
        torch.testing.assert_close(logits[1:].of_all(), logits.of_all()[1:])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("selection", TRAIN_SELECTIONS)
def test_every_parameter_learns_and_ranks_follow_the_schedule(head, selection):
    keys = ("MODEL.RANKSEG.HEAD", head, "MODEL.RANKSEG.TRAIN_SELECTION", selection)
    model = tiny(*keys, "MODEL.RANKSEG.TEMPERATURE", "rank").train()
    for batch in ([picture([1, 2, 5, 7]), picture([3])], [picture([3, 4], 2), picture([], 2)]):
        for progress, kappa in ((0.0, K), (1.0, 3)):
            model.progress = progress
            model.zero_grad()
            losses = model(batch)
            assert losses.keys() == {"loss_seg", "loss_aux", "loss_ml"}
            assert all(torch.isfinite(loss) for loss in losses.values())
            sum(losses.values()).backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
            used = {"schedule": kappa, "all": K}.get(selection, 3)
            # Official selection may leave no present label at all.
            if losses["loss_seg"] > 0:
                grad = model.ml_norm.weight.grad != 0
                assert torch.equal(grad, torch.arange(len(grad)) < used)
                assert model.sem_seg_head.conv_seg.weight.grad.any()


@pytest.mark.parametrize("mean", ["all", "counted"])
def test_the_pixel_loss_by_hand(mean):
    logits, labels = torch.randn(2, 3, 4, 6), torch.randint(-1, 3, (2, 9, 11))
    large = F.interpolate(logits, (9, 11), mode="bilinear", align_corners=False)
    each = [
        -large[n, :, y, x].log_softmax(0)[labels[n, y, x]]
        for n, y, x in (labels >= 0).nonzero().tolist()
    ]
    count = labels.numel() if mean == "all" else len(each)
    torch.testing.assert_close(pixel_cross_entropy(logits, labels, mean), sum(each) / count)
    nothing = pixel_cross_entropy(logits, labels.fill_(-1), mean)
    assert nothing == 0
    with pytest.raises(ValueError, match="'some' must be one of all, counted"):
        pixel_cross_entropy(logits, labels, "some")


def test_the_mean_is_a_setting():
    batch = [picture([1, 2])]
    losses = [
        tiny("MODEL.PIXEL.LOSS_MEAN", mean, "MODEL.PIXEL.DROPOUT", "0.0", *keep).train()(batch)[
            "loss_seg"
        ]
        for mean in ("all", "counted")
        for keep in [("MODEL.RANKSEG.TRAIN_SELECTION", "keep_present")]
    ]
    counted = 34 * 50 / (64 * 64)  # the padded input is 64 x 64; three rows are not labelled
    torch.testing.assert_close(losses[0], losses[1] * counted)


@pytest.mark.parametrize("frames", [None, 2])
def test_pixels_of_labels_not_selected_are_ignored(frames):
    model = tiny("MODEL.PIXEL.DROPOUT", "0.0").train()
    batch = [picture([4, 9], frames)]
    clips = model.clips(batch)
    prediction, targets = model.predict(clips), model.targets(clips)
    assert targets.presence.nonzero()[:, 1].tolist() == [4, 9]
    order = torch.arange(K).roll(-5)[None]  # 5, 6, 7, ...: without 4
    for index, seen in ((order[:, :3], False), (order[:, 4:7], True)):
        ranked = RankedLabels(index, K)
        losses = model.losses(model.ranked(prediction, ranked), targets, ranked)
        assert (losses["loss_seg"] > 0) == seen and losses["loss_aux"] > 0


def test_label_maps_come_from_objects_or_as_they_are():
    model, sample = tiny(), picture([3, 250, 7])
    sample["instances"].gt_classes[1] = 250
    painted = model.clips([sample]).label_maps(K)
    assert painted.shape == (1, 64, 64) and painted.unique().tolist() == [-1, 3, 7]
    assert (painted[:, 37:] == -1).all() and (painted[:, :3] == -1).all()
    plain = {"image": sample["image"], "sem_seg": painted[0, :37, :50].clone()}
    plain["sem_seg"][plain["sem_seg"] < 0] = 255
    assert torch.equal(model.clips([plain]).label_maps(K), painted)
    assert model.presence(model.clips([plain]))[0].nonzero().flatten().tolist() == [3, 7]
    losses = [model.train()([x])["loss_ml"] for x in (sample, plain)]
    assert torch.isfinite(torch.stack(losses)).all()
    with pytest.raises(ValueError, match="need 'instances'"):
        model([{"image": sample["image"]}])


@kappas
@torch.no_grad()
def test_maps_of_the_selected_labels_alone(kappa, monkeypatch):
    model = tiny("MODEL.RANKSEG.TOPK", str(kappa), "MODEL.RANKSEG.TEMPERATURE", "rank").eval()
    sample = picture([1, 2]) | {"height": 41, "width": 29}
    (full,) = replaced(model, full_sem_seg=True)([sample])
    # What would make maps of all labels is never called.
    monkeypatch.setattr(EmbeddedLogits, "of_all", None)
    model.inference_options = replace(model.inference_options, full_sem_seg=False)
    (result,) = model([sample])
    ranking = result["label_scores"].topk(min(kappa, K)).indices
    assert torch.equal(result["label_ranking"], ranking)
    scores = result["sem_seg"]
    assert torch.equal(scores.argmax(0), full["sem_seg"].argmax(0))
    if kappa >= K:
        torch.testing.assert_close(scores, full["sem_seg"])
        return
    assert isinstance(scores, SelectedScores) and scores.scores.shape == (kappa, 41, 29)
    torch.testing.assert_close(scores.scores.sum(0), torch.ones(41, 29))
    torch.testing.assert_close(scores.full(K), full["sem_seg"])


def replaced(model, **options):
    model.inference_options = replace(model.inference_options, **options)
    return model


@torch.no_grad()
def test_inputs_of_a_batch_do_not_see_each_other():
    model = tiny().eval()
    batch = [picture([1]), picture([2, 3, 4]), picture([])]
    batch[1]["label_hints"] = LabelHints(labels=[0, 5, 6, 7, 8])
    together, alone = model(batch), [model([x])[0] for x in batch]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a["label_ranking"], b["label_ranking"])
        torch.testing.assert_close(a["sem_seg"].scores, b["sem_seg"].scores, atol=1e-5, rtol=1e-4)
    assert [len(x["sem_seg"].ids) for x in together] == [3, 5, 3]


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("frames", [None, 3])
@torch.no_grad()
def test_hints_and_oracle(flag, frames):
    keys = ("MODEL.RANKSEG.FLAG", str(flag))
    labels, bare = [2, 5, 7, 9], picture([2, 5, 7, 9], frames)
    bare.pop("instances")
    told = tiny(*keys).eval()(with_hints([bare], LabelHints(labels=labels)))
    oracle = tiny(*keys, "MODEL.RANKSEG.USE_GT_EVAL", "True").eval()([picture(labels, frames)])
    trained = tiny(*keys, "MODEL.RANKSEG.USE_GT", "True").eval()([picture(labels, frames)])
    maps = [x["sem_seg"].argmax(0) for x in (told[0], oracle[0])]
    assert torch.equal(*maps)
    assert set(maps[0].unique().tolist()) <= set(labels)
    present = set(trained[0]["sem_seg"].argmax(0).unique().tolist())
    # With USE_GT the κ selected labels may all be absent.
    assert present <= set(labels) or flag
    popular = maps[0].flatten().mode().values.item()
    (denied,) = tiny(*keys).eval()(with_hints([bare], LabelHints(deny=[popular])))
    assert popular not in denied["sem_seg"].argmax(0)
    (nothing,) = tiny(*keys).eval()(with_hints([bare], LabelHints(labels=[])))
    assert nothing["sem_seg"].argmax(0).isfinite().all()


def test_the_trained_oracle_masks_absent_labels_before_they_are_ranked():
    keys = ("MODEL.RANKSEG.USE_GT", "True", "MODEL.RANKSEG.TOPK", str(K))
    model = tiny(*keys, "MODEL.RANKSEG.TEMPERATURE", "rank").train()
    clips = model.clips([picture([2, 5], 2), picture([7], 2)])
    prediction = model.predict(clips)
    ranked = model.policy.train(prediction.presence_logits)
    maps = ranked.repeat(2).scatter(model.ranked(prediction, ranked).logits.of_all(), 1)
    masked = (maps == -100).flatten(2).all(2)
    assert torch.equal(~masked, model.presence(clips).repeat_interleave(2, 0))


@torch.no_grad()
def test_clips_windows_and_images():
    # Its mean over tokens is that of one frame where all frames are the same.
    model = tiny("MODEL.RANKSEG.HEAD", "pooled").eval()
    image = picture([1, 2])
    clip = {"image": [image["image"]] * 4}
    (still,), (moving,) = model([image]), model([clip])
    assert isinstance(moving["sem_seg"], LabelMaps)
    assert all(torch.equal(x, still["sem_seg"].argmax(0)) for x in moving["sem_seg"].labels)
    (windowed,) = WindowedModel(model, 3, 1)([{"image": iter(clip["image"])}])
    assert torch.equal(windowed["sem_seg"].labels.long(), moving["sem_seg"].labels)
    assert torch.equal(windowed["label_ranking"], moving["label_ranking"])
    (full,) = replaced(model, full_sem_seg=True)([clip])
    assert full["sem_seg"].shape == (K, 4, 37, 50)
    assert torch.equal(full["sem_seg"].argmax(0), moving["sem_seg"].labels)


class TokenLogits(PixelLogits):
    """Of a decoder that label tokens enter once they are selected, as Segmenter's."""

    def __init__(self, pixels, tokens, mixer):
        self.pixels, self.tokens, self.mixer = pixels, tokens, mixer

    def of_all(self):
        everything = torch.arange(self.tokens.shape[1]).expand(len(self.tokens), -1)
        return self.of_labels(everything)

    def of_labels(self, index):
        tokens = self.tokens.gather(1, index[:, :, None].expand(-1, -1, self.tokens.shape[2]))
        tokens = self.mixer(tokens, tokens, tokens)[0]
        return torch.einsum("nkc,nchw->nkhw", tokens, self.pixels)

    def __getitem__(self, frames):
        return TokenLogits(self.pixels[frames], self.tokens[frames], self.mixer)


@torch.no_grad()
def test_the_seam_carries_decoders_of_selected_tokens():
    model = tiny().eval()
    mixer = torch.nn.MultiheadAttention(24, 1, batch_first=True)
    bare = model.sem_seg_head.forward

    def forward(features, num_frames):
        prediction = bare(features, num_frames)
        tokens = prediction.logits.labels.expand(len(prediction.logits.pixels), -1, -1)
        return replace(prediction, logits=TokenLogits(prediction.logits.pixels, tokens, mixer))

    model.sem_seg_head.forward = forward
    batch = [picture([1]), picture([2, 3])]
    together, alone = model(batch), [model([x])[0] for x in batch]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a["sem_seg"].scores, b["sem_seg"].scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "True"), "TEST.PANOPTIC_ON is True"),
        (("MODEL.PIXEL.LOSS_MEAN", "some"), "LOSS_MEAN='some' must be one of all, counted"),
        (("MODEL.PIXEL.AUX_FEATURE", "res9"), "AUX_FEATURE='res9' must be a map of the backbone"),
        (("MODEL.PIXEL.LABEL_FEATURE", "p2"), "LABEL_FEATURE='p2' must be a map of the backbone"),
        (("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res2', 'res3']"), "FCNHead reads one map"),
        (("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2']"), "FCNHead reads one map"),
        (("MODEL.RANKSEG.TOPK", "0"), "TOPK=0: selection needs at least one"),
        (("MODEL.SEM_SEG_HEAD.NAME", "MaskFormerHead"), "'MaskFormerHead' is not a pixel head"),
    ],
)
def test_settings_that_do_not_fit_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny(*overrides)


def test_scores_that_come_with_inputs_rank_labels():
    deepest = ("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res5']")
    model = tiny("MODEL.RANKSEG.SCORES", "['planted.npz']", *deepest)
    assert model.ml_head is None and model.scores_labels
    sample = picture([1, 2]) | {"label_scores": torch.arange(K) / K}
    losses = model.train()([sample])
    assert losses.keys() == {"loss_seg", "loss_aux"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        (result,) = model.eval()([sample])
    assert result["label_ranking"].tolist() == result["sem_seg"].ids.tolist() == [11, 10, 9]


def test_half_precision_ranks_and_learns():
    model = tiny("MODEL.RANKSEG.TRAIN_SELECTION", "keep_present").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([picture([1, 2]), picture([], size=(64, 31))])
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()


@pytest.mark.parametrize("share", [True, False])
def test_label_embeddings_are_shared(share):
    keys = ("MODEL.RANKSEG.SHARE_EMBEDDING", str(share), "MODEL.PIXEL.LABEL_POOL", "4")
    model = tiny(*keys, "MODEL.RANKSEG.LOSS_WEIGHT", "1").train()
    assert (model.ml_head.cls_emb is None) == share
    model([picture([1, 2])])["loss_ml"].backward()
    assert (model.sem_seg_head.conv_seg.weight.grad is not None) == share


def test_it_trains_and_is_evaluated(scenes, tmp_path, monkeypatch):
    """Through the trainer: schedule, checkpoints, evaluation, multi-scale, sweep."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    settings = PIXELS | {
        "INPUT.DATASET_MAPPER_NAME": "mask_former_panoptic",
        "SOLVER.MAX_ITER": "3",
        "TEST.EVAL_PERIOD": "3",
        "TEST.AUG.MIN_SIZES": "(48,)",
        "OUTPUT_DIR": str(tmp_path),
    }
    words_ = [*SMALL, *words(settings)]
    run = ["--config-file", str(DEMO), *words_]
    engine.main(engine.argument_parser().parse_args(run))
    weights = ("MODEL.WEIGHTS", str(tmp_path / "model_final.pth"))
    results = engine.main(
        engine.argument_parser().parse_args([*run[:2], "--eval-only", *run[2:], *weights])
    )
    assert results.keys() == {"sem_seg", "labels"} and results["labels"]["coverage"] > 0
    cfg = engine.load_config(str(DEMO), [*words_, *weights])
    model, _ = engine.load_model(cfg)
    twice = evaluate(cfg, model, evaluation_sets(cfg, multi_scale=True))
    assert twice["sem_seg"]["mIoU"] == results["sem_seg"]["mIoU"] and "sem_seg_TTA" in twice
    settings, _ = grid(model, [2, 20])
    found = sweep(cfg, model, cfg.DATASETS.TEST[0], settings)
    own = found[Setting.from_model(model)]
    assert own["sem_seg"]["mIoU"] == results["sem_seg"]["mIoU"] and len(found) > 8
    # An evaluation does without the auxiliary head, and without nothing else.
    state = torch.load(weights[1], weights_only=True)["model"]
    for name, fits in (("aux_head.", True), ("sem_seg_head.conv_seg", False)):
        torch.save(
            {"model": {k: v for k, v in state.items() if not k.startswith(name)}},
            tmp_path / "part.pth",
        )
        part = cfg.clone()
        part.defrost()
        part.MODEL.WEIGHTS = str(tmp_path / "part.pth")
        if fits:
            engine.load_model(part)
            continue
        with pytest.raises(ValueError, match=r"nothing for sem_seg_head\.conv_seg"):
            engine.load_model(part)
