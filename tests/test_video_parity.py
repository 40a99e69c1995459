"""Every intermediate and result of the official video models; and an image as a one-frame clip.

One case is part of the project; the others, marked shared, are read from the golden data beside it.
"""

from dataclasses import replace

import pytest
import torch
from golden import load_case
from test_official_parity import check_layers, close

from rankseg_m2f.modeling.query.ranked_queries import rank_layer
from rankseg_m2f.structures.predictions import LabelMaps

CASES = [
    "video_vis_rankseg_k10",
    "video_vis_baseline",
    "video_vis_rankseg_kappaK",
    "video_vspw_rankseg",
]
cases = pytest.mark.parametrize(
    "name", [CASES[0], *(pytest.param(case, marks=pytest.mark.shared) for case in CASES[1:])]
)


@cases
def test_features_decoder_layers_and_ranks(name):
    case = load_case(name)
    official, model = case.outputs, case.model()
    layers = check_layers(case, model)
    if model.ml_head is None:
        return
    with torch.no_grad():
        presence_logits = model.presence_logits(layers)
        ranked = model.policy.train(presence_logits).with_void()
        close(presence_logits, official["img_pred"], 3e-6)
        assert torch.equal(ranked.index, official["topk_index"])
        for i, layer in enumerate(layers):
            key = "pred_logits" if layer is layers[-1] else f"aux_pred_logits.{i}"
            logits = rank_layer(layer, ranked, model.ml_norm).class_logits
            close(logits, official[f"ln_{key}"], 5e-5)


@cases
def test_instances_as_a_set(name):
    case = load_case(name)
    with torch.no_grad():
        (result,) = case.model()(case.inputs)
    assert list(result["image_size"]) == case.meta["vid.image_size"]
    assert result["pred_scores"] == sorted(result["pred_scores"], reverse=True)
    scores, labels, masks = (case.outputs[f"vid.{k}"] for k in ("scores", "labels", "masks"))
    left = list(range(len(scores)))
    found = zip(result["pred_scores"], result["pred_labels"], result["pred_masks"], strict=True)
    for score, label, mask in found:
        twin = next(
            j
            for j in left
            if labels[j] == label
            and abs(scores[j].item() - score) < 1e-5
            and torch.equal(masks[j], mask)
        )
        left.remove(twin)
    assert not left


@pytest.mark.shared
def test_semantic_maps():
    case = load_case("video_vspw_rankseg")
    official = case.outputs["sem_seg.0"]
    with torch.no_grad():
        (full,) = case.model("MODEL.RANKSEG.FULL_SEM_SEG", "True")(case.inputs)
        (lean,) = case.model()(case.inputs)
    close(full["sem_seg"], official, 3e-5)
    assert isinstance(lean["sem_seg"], LabelMaps)
    assert torch.equal(lean["sem_seg"].argmax(0), full["sem_seg"].argmax(0))
    with pytest.raises(ValueError, match="dim 0"):
        lean["sem_seg"].argmax(1)


@pytest.mark.parametrize("name", ["image_r50_rankseg", "image_r50_baseline"])
def test_one_frame_through_the_video_path_is_the_image(name):
    case = load_case(name)
    model = case.model("MODEL.RANKSEG.FULL_SEM_SEG", "True")
    options = model.inference_options
    model.inference_options = replace(options, panoptic=False, max_tracks=options.max_instances)
    image = case.inputs[0]
    with torch.no_grad():
        (still,) = model([image])
        (clip,) = model([{**image, "image": [image["image"]]}])
    assert torch.equal(clip["sem_seg"][:, 0], still["sem_seg"])
    assert torch.equal(torch.stack(clip["pred_masks"])[:, 0], still["instances"].pred_masks)
    assert clip["pred_labels"] == still["instances"].pred_classes.tolist()


def test_batches_of_clips_keep_their_clips_apart():
    case = load_case("video_vis_rankseg_k10")
    model = case.model()
    clip = case.inputs[0]
    other = {**clip, "image": [frame.flip(2) for frame in clip["image"]]}
    with torch.no_grad():
        together = model([clip, other])
        alone = [model([x])[0] for x in (clip, other)]
    for a, b in zip(together, alone, strict=True):
        assert a["pred_labels"] == b["pred_labels"]
        torch.testing.assert_close(
            torch.tensor(a["pred_scores"]), torch.tensor(b["pred_scores"]), atol=1e-5, rtol=0
        )
