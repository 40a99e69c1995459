"""Long videos in windows: nothing is lost, one window changes nothing, tracks go on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from golden import load_case
from pycocotools import mask as coco_mask

from rankseg_m2f.engine.windows import WindowedModel, windows
from rankseg_m2f.evaluation.rle import encode
from rankseg_m2f.modeling.query.tracks import Track, Window, match


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 9, 17])
@pytest.mark.parametrize("window, overlap", [(2, 1), (5, 2), (6, 5)])
def test_windows_show_every_frame_once_as_new(length, window, overlap):
    new = []
    for frames, seen in windows(range(length), window, overlap):
        assert len(frames) == min(window, length)
        assert seen >= overlap or not new
        assert frames == list(range(frames[0], frames[0] + len(frames)))
        new += frames[seen:]
    assert new == list(range(length))


def decoded(masks, size):
    return np.stack([np.zeros(size) if m is None else coco_mask.decode(m) for m in masks])


@pytest.mark.parametrize("ranked", [True, False])
def test_one_window_gives_what_the_model_gives(ranked):
    case = load_case("video_vis_rankseg_k10")
    model = case.model("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "True")
    if not ranked:
        model.policy = replace(model.policy, selection=False)
    with torch.no_grad():
        (whole,) = model(case.inputs)
        (found,) = WindowedModel(model, window=3, overlap=1)(case.inputs)
    assert found.keys() == whole.keys()
    assert found["pred_labels"] == whole["pred_labels"]
    np.testing.assert_allclose(found["pred_scores"], whole["pred_scores"], rtol=1e-6)
    for runs, mask in zip(found["pred_masks"], whole["pred_masks"], strict=True):
        assert np.array_equal(decoded(runs, mask.shape[1:]), mask.numpy())
    assert torch.equal(found["sem_seg"].argmax(0).long(), whole["sem_seg"].argmax(0))
    assert torch.equal(found["label_ranking"], whole["label_ranking"])


@torch.no_grad()
def test_output_size_and_empty_videos_are_as_of_the_model():
    case = load_case("video_vis_rankseg_k10")
    model = case.model()
    windowed = WindowedModel(model, window=3, overlap=1)
    bare = {"image": case.inputs[0]["image"]}
    (whole,), (found,) = model([bare]), windowed([bare])
    assert found["image_size"] == whole["image_size"] == tuple(bare["image"][0].shape[-2:])
    for runs, mask in zip(found["pred_masks"], whole["pred_masks"], strict=True):
        assert np.array_equal(decoded(runs, mask.shape[1:]), mask.numpy())
    for refusing, frames in ((model, []), (windowed, []), (windowed, iter([]))):
        with pytest.raises(ValueError, match=r"at least one, got \[0\]"):
            refusing([{"image": frames}])


def test_an_object_that_stands_still_stays_one_track():
    case = load_case("video_vis_rankseg_k10")
    model = case.model()
    sample = dict(case.inputs[0])
    sample["image"] = [sample["image"][0]] * 4
    with torch.no_grad():
        (first,) = WindowedModel(model, window=4, overlap=2)([sample])
        sample["image"] = iter(sample["image"] * 3)  # read once, frame by frame
        (found,) = WindowedModel(model, window=4, overlap=2)([sample])
    assert found["pred_labels"] == first["pred_labels"]
    np.testing.assert_allclose(found["pred_scores"], first["pred_scores"], rtol=1e-5)
    for runs, once in zip(found["pred_masks"], first["pred_masks"], strict=True):
        assert len(runs) == 12 and runs[:4] == once


def coarse_masks(*columns, frames=2):
    """(M, frames, 4, 8) masks of one column each."""
    masks = torch.zeros(len(columns), frames, 4, 8, dtype=torch.bool)
    for mask, column in zip(masks, columns, strict=True):
        mask[:, :, column] = True
    return masks


def test_matching_is_by_place_and_class():
    logits = torch.eye(3) * 9
    tracks = [Track(logits[k], 1, 0.5, coarse_masks(c)[0]) for k, c in ((0, 1), (1, 5))]
    found = Window(logits[[1, 0, 2]], torch.ones(3), coarse_masks(5, 1, 7), [[]] * 3)
    assert match(tracks, found, seen=2) == {0: 1, 1: 0}
    assert match(tracks, found, seen=0) == match([], found, seen=2) == {}
    # The same class elsewhere is a new object.
    elsewhere = Window(logits[[0]], torch.ones(1), coarse_masks(7), [[]])
    assert match(tracks, elsewhere, seen=2) == {}


def test_a_track_without_successor_ends_and_a_new_one_begins():
    case = load_case("video_vis_rankseg_k10")
    tracks = case.model().tracks(encode)
    logits = torch.eye(3) * 9
    gone = Track(logits[0], 1, 0.9, coarse_masks(1)[0], [{"a": 1}, {"b": 2}])
    found = Window(logits[[1]], torch.tensor([0.8]), coarse_masks(6), [[{"c": 3}]])
    tracks.tracks, tracks.done = [gone], 2
    tracks.extend(found, seen=1)
    assert tracks.done == 3
    assert [track.rles for track in tracks.tracks] == [
        [{"a": 1}, {"b": 2}, None],
        [None, None, {"c": 3}],
    ]


def test_a_classifier_has_no_windows():
    with pytest.raises(ValueError, match=r"need a segmentor .*, and ReLU is not one"):
        WindowedModel(torch.nn.ReLU(), 4, 2)


def test_the_overlap_must_fit_the_window():
    model = load_case("video_vis_rankseg_k10").model()
    for overlap in (0, 4):
        with pytest.raises(ValueError, match=f"WINDOW_OVERLAP={overlap}"):
            WindowedModel(model, window=4, overlap=overlap)
