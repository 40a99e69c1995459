"""Sliding windows: the official grid and averages, and no more maps than of the labels selected."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from golden import load_case
from test_engine import SMALL
from test_pixel_segmentor import DEMO, PIXELS, K, kappas, picture, tiny, with_hints, words
from torch.utils._python_dispatch import TorchDispatchMode

from rankseg_m2f.config import get_cfg
from rankseg_m2f.engine.config_checks import check_model
from rankseg_m2f.engine.evaluate import evaluate
from rankseg_m2f.engine.main import load_config
from rankseg_m2f.engine.predictor import Predictor
from rankseg_m2f.engine.sweep import Setting, sweep
from rankseg_m2f.engine.windows import WindowedModel
from rankseg_m2f.errors import UserError
from rankseg_m2f.modeling.resize_part import resize_part, source_of
from rankseg_m2f.modeling.wrappers.sliding import SlidingSegmentor, spans, with_sliding
from rankseg_m2f.rankseg.hints import LabelHints
from rankseg_m2f.structures.predictions import LabelMaps, SelectedScores

CROP, STRIDE = (40, 48), (24, 32)


def rankseg(kappa, *overrides):
    return tiny("MODEL.RANKSEG.TOPK", str(kappa), *overrides).eval()


def large(**changes):
    """A picture of several windows, wanted at another size."""
    return {**picture([1, 4, 9], size=(75, 101)), "height": 150, "width": 130, **changes}


@pytest.mark.parametrize(
    ("length", "crop", "stride", "starts"),
    [
        (100, 64, 40, [0, 36]),
        (104, 64, 40, [0, 40]),
        (105, 64, 40, [0, 40, 41]),
        (64, 64, 40, [0]),
        (30, 64, 40, [0]),
        (128, 64, 64, [0, 64]),
    ],
)
def test_where_windows_lie(length, crop, stride, starts):
    found = spans(length, crop, stride)
    assert found == [range(start, start + min(crop, length)) for start in starts]


@pytest.mark.parametrize(
    "before, after", [((5, 7), (64, 33)), ((64, 90), (31, 90)), ((1, 3), (9, 2))]
)
def test_a_part_of_resized_maps(before, after):
    maps = torch.randn(3, *before, dtype=torch.float64)
    whole = F.interpolate(maps[None], after, mode="bilinear", align_corners=False)[0]
    rows, cols = range(after[0] // 3, after[0]), range(0, after[1] // 2 + 1)
    expected = whole[:, rows.start : rows.stop, cols.start : cols.stop]
    torch.testing.assert_close(resize_part(maps, after, rows, cols), expected)
    given = source_of(rows, before[0], after[0]), source_of(cols, before[1], after[1])
    part = maps[:, given[0].start : given[0].stop, given[1].start : given[1].stop]
    found = resize_part(part, after, rows, cols, before, given)
    torch.testing.assert_close(found, expected)


def reference(model, sample):
    """(K, height, width) averages, by the words of the official code."""
    _, height, width = sample["image"].shape
    total = torch.zeros(model.num_labels, height, width)
    count = torch.zeros(height, width)
    for top in sorted({min(i * STRIDE[0], height - CROP[0]) for i in range(9)}):
        for left in sorted({min(i * STRIDE[1], width - CROP[1]) for i in range(9)}):
            place = slice(top, top + CROP[0]), slice(left, left + CROP[1])
            clips = model.clips([{"image": sample["image"][(slice(None), *place)]}])
            prediction = model.predict(clips)
            ranked = model.policy.train(prediction.presence_logits)
            maps = ranked.scatter(model.ranked(prediction, ranked).logits.of_all(), 1)
            maps = F.interpolate(maps, clips.padded_size, mode="bilinear")[0]
            total[(slice(None), *place)] += maps[:, : CROP[0], : CROP[1]]
            count[place] += 1
    output = sample["height"], sample["width"]
    return F.interpolate((total / count)[None], output, mode="bilinear")[0]


@kappas
@torch.no_grad()
def test_windows_select_labels_of_their_own(kappa):
    model = rankseg(kappa)
    expected = reference(model, large())
    sliding = SlidingSegmentor(model, CROP, STRIDE)
    (result,) = sliding([large()])
    found = result["sem_seg"].argmax(0)
    # A pixel may have two labels that are equal but for rounding.
    best = expected.amax(0) - expected.gather(0, found[None])[0]
    assert best.max() < 1e-3
    assert (found == expected.argmax(0)).float().mean() > 0.999
    if kappa >= K:
        torch.testing.assert_close(result["sem_seg"], expected.softmax(0), atol=1e-5, rtol=1e-4)
    else:
        assert isinstance(result["sem_seg"], LabelMaps)
    sliding.inference_options = replace(sliding.inference_options, full_sem_seg=True)
    (full,) = sliding([large()])
    torch.testing.assert_close(full["sem_seg"], expected.softmax(0), atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_labels_are_selected_once_for_the_image():
    model = rankseg(3)
    (result,) = SlidingSegmentor(model, CROP, STRIDE, "image")([large()])
    assert isinstance(result["sem_seg"], SelectedScores)
    assert torch.equal(result["sem_seg"].ids, result["label_ranking"])
    assert result["sem_seg"].scores.shape == (3, 150, 130)
    # A label is in the image as surely as in the window that shows it best.
    logits = []
    for rows in spans(75, CROP[0], STRIDE[0]):
        for cols in spans(101, CROP[1], STRIDE[1]):
            part = large()["image"][:, rows.start : rows.stop, cols.start : cols.stop]
            logits.append(model.predict(model.clips([{"image": part}])).presence_logits)
    scores = torch.cat(logits).amax(0).sigmoid()
    torch.testing.assert_close(result["label_scores"], scores)


@kappas
@pytest.mark.parametrize("selection", ["window", "image"])
@torch.no_grad()
def test_an_image_within_one_window_is_as_without(kappa, selection):
    model = rankseg(kappa)
    inputs = [picture([1, 2]), {**picture([3]), "height": 80, "width": 61}]
    for one in inputs:
        (whole,) = model([one])
        (found,) = SlidingSegmentor(model, (64, 64), (32, 32), selection)([one])
        assert found.keys() == whole.keys()
        assert torch.equal(found["label_ranking"], whole["label_ranking"])
        agree = found["sem_seg"].argmax(0) == whole["sem_seg"].argmax(0)
        assert agree.float().mean() > 0.999
    # A batch is as its images alone.
    together = SlidingSegmentor(model, (64, 64), (32, 32), selection)(inputs)
    assert torch.equal(together[1]["sem_seg"].argmax(0), found["sem_seg"].argmax(0))


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


@pytest.mark.parametrize("selection", ["window", "image"])
@torch.no_grad()
def test_no_map_of_all_labels_is_made(selection):
    sliding = SlidingSegmentor(rankseg(1), CROP, STRIDE, selection)
    sliding.model.aux_head = None
    with Watch() as watch:
        sliding([large()])
    # Up to nine windows overlap in a tile, each with one label; a small side is no map.
    maps = [s for s in watch.shapes if len(s) >= 3 and min(s[-2:]) > 2]
    assert maps and not [s for s in maps if K in s[:-2]]


@torch.no_grad()
def test_hints_hold_in_every_window():
    sliding = SlidingSegmentor(rankseg(3), CROP, STRIDE)
    for hints, labels in ((LabelHints(labels=[2, 7]), {2, 7}), (LabelHints(labels=[]), None)):
        (result,) = sliding(with_hints([large()], hints))
        found = set(result["sem_seg"].argmax(0).unique().tolist())
        assert labels is None or found <= labels
    (free,) = sliding([large()])
    popular = free["sem_seg"].argmax(0).flatten().mode().values.item()
    (denied,) = sliding(with_hints([large()], LabelHints(deny=[popular])))
    assert popular not in denied["sem_seg"].argmax(0)
    plain = SlidingSegmentor(rankseg(3, "MODEL.RANKSEG.FLAG", "False"), CROP, STRIDE)
    (denied,) = plain(with_hints([large()], LabelHints(deny=[popular])))
    assert popular not in denied["sem_seg"].argmax(0) and len(denied["sem_seg"]) == K


@torch.no_grad()
def test_frames_of_a_clip():
    sliding = SlidingSegmentor(rankseg(3, "MODEL.RANKSEG.HEAD", "pooled"), CROP, STRIDE)
    image = large()["image"]
    (still,) = sliding([large()])
    clip = {"image": [image] * 3, "height": 150, "width": 130}
    (moving,) = sliding([clip])
    assert all(torch.equal(x, still["sem_seg"].argmax(0)) for x in moving["sem_seg"].labels)
    (windowed,) = WindowedModel(sliding, 2, 1)([clip])
    assert torch.equal(windowed["sem_seg"].labels.long(), moving["sem_seg"].labels)


@torch.no_grad()
def test_queries_are_averaged_by_their_semantic_scores():
    case = load_case("image_r50_rankseg")
    model = case.model()
    model.inference_options = replace(
        model.inference_options, semantic=True, panoptic=False, instance=False
    )
    sample = {"image": case.inputs[0]["image"]}
    _, height, width = sample["image"].shape
    left = {"image": sample["image"][:, :, : width - 8]}
    right = {"image": sample["image"][:, :, 8:]}
    scores = torch.zeros(2, model.num_labels, height, width)
    for i, (part, start) in enumerate(((left, 0), (right, 8))):
        own = model([part])[0]["sem_seg"].full(model.num_labels)
        scores[i, :, :, start : start + width - 8] = own
    count = torch.full((width,), 2.0)
    count[:8], count[-8:] = 1, 1
    expected = scores.sum(0) / count
    sliding = SlidingSegmentor(model, (height, width - 8), (height, 8))
    (result,) = sliding([sample])
    assert "panoptic_seg" not in result
    agree = result["sem_seg"].argmax(0) == expected.argmax(0)
    assert agree.float().mean() > 0.999


def sliding_config(*overrides):
    cfg = get_cfg()
    keys = PIXELS | {"MODEL.DEVICE": "cpu", "TEST.SLIDING.ENABLED": "True"}
    cfg.merge_from_list([*words(keys), *overrides])
    return cfg


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("TEST.SLIDING.CROP", "(0, 64)"), r"SLIDING.CROP=\(0, 64\) must be"),
        (("TEST.SLIDING.CROP", "(64,)"), r"SLIDING.CROP=\(64,\) must be"),
        (("TEST.SLIDING.STRIDE", "(64, 1.5)"), r"SLIDING.STRIDE=\(64, 1.5\) must be"),
        (("TEST.SLIDING.STRIDE", "(600, 64)"), "would leave gaps"),
        (("TEST.SLIDING.SELECTION", "pixel"), "'pixel' must be one of window, image"),
        (("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "True"), "semantic results alone"),
        (("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "False"), "semantic results alone"),
        (("MODEL.META_ARCHITECTURE", "LabelClassifier"), "LabelClassifier is MODEL.META"),
    ],
)
def test_values_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        check_model(sliding_config(*overrides))


def test_values_are_not_read_where_windows_are_off():
    off = sliding_config("TEST.SLIDING.ENABLED", "False", "TEST.SLIDING.SELECTION", "pixel")
    check_model(off)
    model = tiny()
    assert with_sliding(off, model) is model


@pytest.mark.parametrize("selection", ["window", "image"])
def test_evaluation_sweep_and_predictor_see_windows(scenes, tmp_path, monkeypatch, selection):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    keys = {"TEST.SLIDING.ENABLED": "True", "TEST.SLIDING.CROP": "(32, 32)"}
    keys |= {"TEST.SLIDING.STRIDE": "(24, 24)", "TEST.SLIDING.SELECTION": selection}
    overrides = [*SMALL, *words(PIXELS | keys), "OUTPUT_DIR", str(tmp_path)]
    cfg = load_config(str(DEMO), overrides)
    predictor = Predictor(cfg)
    assert isinstance(predictor.model, SlidingSegmentor)
    model = predictor.model.model
    image = torch.randint(256, (50, 70, 3), dtype=torch.uint8).numpy()
    assert predictor(image)["sem_seg"].argmax(0).shape == (50, 70)
    results = evaluate(cfg, model)
    own = Setting.from_model(model)
    (swept,) = sweep(cfg, model, cfg.DATASETS.TEST[0], [own]).values()
    assert swept["sem_seg"]["mIoU"] == pytest.approx(results["sem_seg"]["mIoU"])
