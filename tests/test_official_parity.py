"""Every intermediate and result of the official models, from their weights.

Tolerances are those of fp32 noise, measured by running the official code with other thread counts
and without oneDNN.
"""

import pytest
import torch
from golden import IMAGE_CASES, SEM_SEG_STEP, load_case

from rankseg_m2f.modeling.query.ranked_queries import rank_layer
from rankseg_m2f.structures.clip import ClipBatch
from rankseg_m2f.structures.predictions import DecoderPrediction, SelectedScores

cases = pytest.mark.parametrize("name", IMAGE_CASES)


def close(ours, official, absolute: float, relative: float = 0.0):
    torch.testing.assert_close(ours, official, atol=absolute, rtol=relative)


@torch.no_grad()
def run_layers(case, model):
    clips = ClipBatch.from_inputs(
        case.inputs, model.normalise, model.size_divisibility, model.device
    )
    features = model.backbone(clips.frames)
    mask_features, maps, _ = model.sem_seg_head.pixel_decoder(features)
    layers = model.sem_seg_head.predictor(maps, mask_features, clips.num_frames)
    return clips, features, mask_features, maps, layers


@cases
def test_keys_are_the_official_ones(name):
    model = load_case(name).model()  # loads strictly
    assert "pixel_mean" not in model.state_dict()


def check_layers(case, model):
    """Compare features and every decoder layer with the official ones; the layers."""
    official = case.outputs
    _, features, mask_features, maps, layers = run_layers(case, model)
    for level, feature in features.items():
        close(feature, official[f"backbone.{level}"], 6e-6)
    close(mask_features, official["mask_features"], 1.5e-5)
    for level in range(3):
        close(maps[level], official[f"multi_scale.{level}"], 1.5e-5)
    assert len(layers) == 1 + sum(key.startswith("query_feature") for key in official)
    for i, layer in enumerate(layers):
        suffix = f"raw_aux_pred_logits.{i}", f"aux_pred_masks.{i}"
        logits, masks = suffix if layer is not layers[-1] else ("raw_pred_logits", "pred_masks")
        close(layer.class_logits, official[logits], 5e-5)
        # Officially, images have no T axis.
        close(layer.mask_logits.view_as(official[masks]), official[masks], 1e-4, 1e-4)
        if i:
            close(layer.queries.transpose(0, 1), official[f"query_feature.{i - 1}"], 1e-5)
    return layers


@cases
def test_features_and_decoder_layers(name):
    case = load_case(name)
    check_layers(case, case.model())


@pytest.mark.parametrize("name", ["image_r50_rankseg", "image_swin_rankseg_kappaK"])
def test_ranking_of_every_layer(name):
    case = load_case(name)
    official, model = case.outputs, case.model()
    layers = run_layers(case, model)[-1]
    with torch.no_grad():
        presence_logits = model.presence_logits(layers)
        ranked = model.policy.train(presence_logits).with_void()
        close(presence_logits, official["img_pred"], 3e-6)
        assert torch.equal(ranked.index, official["topk_index"])
        for i, layer in enumerate(layers):
            key = "pred_logits" if layer is layers[-1] else f"aux_pred_logits.{i}"
            close(ranked.gather(layer.class_logits, 2), official[f"gathered_{key}"], 5e-5)
            logits = rank_layer(layer, ranked, model.ml_norm).class_logits
            close(logits, official[f"ln_{key}"], 5e-5)
        close(ranked.scatter(logits, 2), official["final_pred_logits"], 5e-5)


def test_oracle_logits():
    case = load_case("image_r50_gt")
    model = case.model()
    clips, *_, layers = run_layers(case, model)
    prediction, presence = DecoderPrediction(None, layers), model.presence(clips)
    masked = model.mask_absent(prediction, presence).layers
    close(masked[-1].class_logits, case.outputs["final_pred_logits"], 5e-5)
    assert masked[0] is layers[0]  # officially, the auxiliary layers are spared
    model.oracle_aux = True
    assert (model.mask_absent(prediction, presence).layers[0].class_logits == -100).any()


@cases
def test_semantic_map(name):
    case = load_case(name)
    with torch.no_grad():
        results = case.model("MODEL.RANKSEG.FULL_SEM_SEG", "True")(case.inputs)
        compact = case.model()(case.inputs)
    for i, (result, lean) in enumerate(zip(results, compact, strict=True)):
        full = result["sem_seg"]
        close(full[:, ::SEM_SEG_STEP, ::SEM_SEG_STEP], case.outputs[f"sem_seg.{i}"], 3e-5)
        if name == "image_r50_rankseg":
            # κ < K: the map is not materialised unless asked for, and says the same.
            assert isinstance(lean["sem_seg"], SelectedScores)
            assert torch.equal(lean["sem_seg"].full(150), full)
            assert torch.equal(lean["sem_seg"].argmax(dim=0), full.argmax(dim=0))
        else:
            assert torch.equal(lean["sem_seg"], full)


@pytest.mark.parametrize("name", ["image_r50_rankseg", "image_swin_rankseg_kappaK", "image_r50_gt"])
def test_semantic_map_where_nothing_else_is_asked_for(name):
    """RankSeg's model resizes masks first whatever its config says."""
    case = load_case(name)
    switches = [f"MODEL.MASK_FORMER.TEST.{task}_ON" for task in ("PANOPTIC", "INSTANCE")]
    alone = (word for switch in switches for word in (switch, "False"))
    with torch.no_grad():
        results = case.model("MODEL.RANKSEG.FULL_SEM_SEG", "True", *alone)(case.inputs)
    for i, result in enumerate(results):
        assert not {"panoptic_seg", "instances"} & result.keys()
        scores = result["sem_seg"][:, ::SEM_SEG_STEP, ::SEM_SEG_STEP]
        close(scores, case.outputs[f"sem_seg.{i}"], 3e-5)


@cases
def test_panoptic_segments(name):
    case = load_case(name)
    with torch.no_grad():
        results = case.model()(case.inputs)
    for i, result in enumerate(results):
        segmentation, segments = result["panoptic_seg"]
        assert segments == case.meta[f"segments_info.{i}"]
        assert torch.equal(segmentation, case.outputs[f"panoptic_seg.{i}"])


@cases
def test_instances_as_a_set(name):
    case = load_case(name)
    with torch.no_grad():
        results = case.model()(case.inputs)
    for i, result in enumerate(results):
        ours = result["instances"]
        scores, classes, masks = (
            case.outputs[f"inst.{i}.{key}"] for key in ("scores", "classes", "masks")
        )
        assert len(ours) == len(scores)
        left = list(range(len(scores)))
        for score, label, mask in zip(ours.scores, ours.pred_classes, ours.pred_masks, strict=True):
            twin = next(
                j
                for j in left
                if classes[j] == label
                and abs(scores[j] - score) < 1e-5
                and torch.equal(masks[j], mask)
            )
            left.remove(twin)
        assert not left
        for box, mask in zip(ours.pred_boxes.tensor, ours.pred_masks, strict=True):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            expected = [0, 0, 0, 0]
            if len(rows):
                expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(x) for x in expected]


@pytest.mark.parametrize("name", ["image_r50_baseline", "image_r50_rankseg"])
def test_a_batch_of_two_sizes_gives_each_image_its_own_output_size(name):
    case = load_case(name)
    wide = dict(case.inputs[0], image=case.inputs[0]["image"][:, :50], height=31, width=47)
    with torch.no_grad():
        results = case.model()([case.inputs[0], wide])
    assert results[1]["panoptic_seg"][0].shape == (31, 47)
    assert results[1]["sem_seg"].argmax(dim=0).shape == (31, 47)
    assert results[0]["instances"].image_size == (40, 56)
