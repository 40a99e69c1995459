"""Selection, oracle and ablations in whole models, images and clips."""

import json
import logging
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from detectron2.modeling import build_model
from detectron2.structures import Instances
from golden import load_case
from PIL import Image

from rankseg_m2f.config import get_cfg
from rankseg_m2f.engine.predictor import Predictor, VideoPredictor
from rankseg_m2f.engine.windows import WindowedModel
from rankseg_m2f.rankseg.head import HEADS
from rankseg_m2f.rankseg.selection import TRAIN_SELECTIONS, Selection

IMAGES = ("image_r50_baseline", "image_r50_rankseg", "image_swin_rankseg_kappaK")
VIDEO = "video_vis_rankseg_k10"
# Results that all cases can give, in one form.
SEMANTIC = ("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "True", "MODEL.RANKSEG.FULL_SEM_SEG", "True")
ABLATIONS = json.loads((ROOT / "configs" / "ablations.json").read_text())
ROWS = {name: row for rows in ABLATIONS.values() for name, row in rows.items()}
DEMO = ROOT / "configs" / "scenes" / "panoptic" / "demo-rankseg.yaml"


def inputs_with_truth(case, labels, masks=False):
    """A case's inputs with objects of the given labels in them."""
    inputs = []
    for x in case.inputs:
        frames = x["image"] if isinstance(x["image"], list) else [x["image"]]
        truth = []
        for frame in frames:
            found = Instances(tuple(frame.shape[-2:]), gt_classes=torch.tensor(labels).long())
            if masks:
                found.gt_masks = torch.rand(len(labels), *frame.shape[-2:]) > 0.5
                found.gt_ids = torch.arange(len(labels))
            truth.append(found)
        whole = truth if isinstance(x["image"], list) else truth[0]
        inputs.append({**x, "instances": whole})
    return inputs


def with_selection(inputs, selection):
    return [{**x, "selection": selection} for x in inputs]


def leaves(value):
    """All tensors and numbers of a result, in order."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in leaves(value[key])]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in leaves(item)]
    if isinstance(value, Instances):
        return leaves({k: getattr(v, "tensor", v) for k, v in value.get_fields().items()})
    return leaves(vars(value)) if hasattr(value, "__dataclass_fields__") else [value]


def assert_same(ours, theirs, atol=0.0):
    ours, theirs = leaves(ours), leaves(theirs)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("name", [*IMAGES, VIDEO])
@pytest.mark.parametrize("labels", [[2, 7, 7, 31], []])
@torch.no_grad()
def test_an_exact_set_is_the_oracle_to_the_bit(name, labels):
    case = load_case(name)
    inputs = inputs_with_truth(case, [*labels, 255])
    oracle = case.model(*SEMANTIC, "MODEL.RANKSEG.USE_GT_EVAL", "True")(inputs)
    exact = case.model(*SEMANTIC)(with_selection(case.inputs, Selection(labels=set(labels))))
    assert_same(exact, oracle)
    for result in exact:
        allowed = set(labels)
        assert set(result.get("label_ranking", torch.tensor(sorted(allowed))).tolist()) == allowed
        if labels:
            assert set(result["sem_seg"].argmax(0).unique().tolist()) <= allowed


@pytest.mark.parametrize("name", ["image_r50_gt", VIDEO])
@torch.no_grad()
def test_the_trained_oracle_of_plain_models(name):
    """USE_GT, official, closes labels on the logits; a plain model has nothing after them."""
    case = load_case(name)
    plain = ("MODEL.RANKSEG.FLAG", "False")
    labels = [1, 4, 9]
    inputs = inputs_with_truth(case, labels)
    models = [
        case_model(case, *SEMANTIC, *plain, "MODEL.RANKSEG.USE_GT", str(use_gt))
        for use_gt in (True, False)
    ]
    trained = models[0](inputs)
    exact = models[1](with_selection(case.inputs, Selection(labels=labels)))
    # Of closed labels the official oracle leaves a probability of e⁻¹⁰⁰, a selection none.
    assert_same(trained, exact, atol=1e-40)


def case_model(case, *overrides):
    """The case's model with its weights where they fit."""
    cfg = case.cfg.clone()
    cfg.merge_from_list(list(overrides))
    model = build_model(cfg).eval()
    weights = case.model().state_dict()
    own = model.state_dict()
    model.load_state_dict({k: weights.get(k, v) for k, v in own.items()})
    return model


@pytest.mark.parametrize("windowed", [False, True])
@torch.no_grad()
def test_video_oracle_with_and_without_windows(windowed):
    case = load_case(VIDEO)
    labels = [3, 17, 30]
    inputs = inputs_with_truth(case, labels)
    for key in ("USE_GT", "USE_GT_EVAL"):
        model = case.model(*SEMANTIC, f"MODEL.RANKSEG.{key}", "True", "MODEL.RANKSEG.TOPK", "10")
        (result,) = (WindowedModel(model, 2, 1) if windowed else model)(inputs)
        assert set(result["sem_seg"].argmax(0).unique().tolist()) <= set(labels)
        best = [k for k, s in zip(result["pred_labels"], result["pred_scores"], strict=True) if s]
        assert best and (set(best) <= set(labels) or key == "USE_GT")
    with pytest.raises(ValueError, match="oracle need 'instances'"):
        model(case.inputs)


@pytest.mark.parametrize("name", [*IMAGES, VIDEO])
@torch.no_grad()
def test_denied_labels_never_win_and_forced_ones_are_ranked(name):
    case = load_case(name)
    model = case.model(*SEMANTIC)
    free = model(case.inputs)[0]
    popular = free["sem_seg"].argmax(0).flatten().mode().values.item()
    (denied, *_) = model(with_selection(case.inputs, Selection(deny=[popular])))
    assert not (denied["sem_seg"].argmax(0) == popular).any()
    if model.ml_head is None:
        return
    assert popular not in denied["label_ranking"]
    assert torch.equal(denied["label_scores"], free["label_scores"])
    last = free["label_scores"].argmin().item()
    (forced, *_) = model(with_selection(case.inputs, Selection(force=[last])))
    assert last in forced["label_ranking"]
    assert len(forced["label_ranking"]) == len(free["label_ranking"])


@pytest.mark.parametrize("name", ["image_r50_baseline", "image_r50_rankseg", VIDEO, "windows"])
@torch.no_grad()
def test_instances_are_of_allowed_labels_alone(name):
    case = load_case(VIDEO if name == "windows" else name)
    keys = ("INSTANCE_ON", "True", "PANOPTIC_ON", "False")
    keys = [f"MODEL.MASK_FORMER.TEST.{key}" if "ON" in key else key for key in keys]
    # More pairs are asked for than there are with one label.
    keys += ["TEST.DETECTIONS_PER_IMAGE", "1000"]
    keys += ["MODEL.MASK_FORMER.TEST.DETECTIONS_PER_VIDEO", "1000"]
    model = case.model(*keys)
    model = WindowedModel(model, 2, 1) if name == "windows" else model

    def labels(selection):
        result = model(with_selection(case.inputs, selection))[0]
        if "instances" not in result:
            assert len(result["pred_masks"]) == len(result["pred_scores"])
            return result["pred_labels"]
        found = result["instances"]
        assert len(found.pred_masks) == len(found.scores) == len(found.pred_boxes)
        return found.pred_classes.tolist()

    queries = case.cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
    found = labels(Selection(allow=[1]))
    assert set(found) == {1} and (name == "windows" or len(found) == queries)
    assert set(labels(Selection(deny=[0, 2]))) & {0, 1, 2} <= {1}
    assert labels(Selection(labels=[])) == []


@torch.no_grad()
def test_inputs_of_a_batch_are_selected_apart():
    case = load_case("image_r50_rankseg")
    model = case.model("MODEL.RANKSEG.EVAL_MASS", "0.5")
    wishes = (Selection(), Selection(labels=range(60)), Selection(deny=[0], force=[9]))
    batch = [{**case.inputs[0], "selection": wish} for wish in wishes]
    batch[0].pop("selection")
    together, alone = model(batch), [model([x])[0] for x in batch]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a["label_ranking"], b["label_ranking"])
        torch.testing.assert_close(a["sem_seg"].scores, b["sem_seg"].scores, atol=1e-5, rtol=1e-4)
    assert [len(x["sem_seg"].ids) for x in together] == [50, 60, 50]
    lengths = [len(x["label_ranking"]) for x in together]
    assert lengths[1] == 60 and lengths[0] < 50


@torch.no_grad()
def test_dynamic_kappa_lies_between_one_and_kappa():
    case = load_case("image_r50_rankseg")
    for key, low, high in (("EVAL_MIN_SCORE", 1.0, 0.0), ("EVAL_MASS", 1e-6, 1.0)):
        (one, *_), (all_, *_) = (
            case.model(f"MODEL.RANKSEG.{key}", value)(case.inputs) for value in (low, high)
        )
        assert len(one["label_ranking"]) == 1 and len(all_["label_ranking"]) == 50
        assert (one["sem_seg"].argmax(0) == one["label_ranking"]).all()
        assert torch.equal(one["label_ranking"], all_["label_ranking"][:1])


@pytest.mark.parametrize("kappa", [1, 5, 10, 25, 40, 57])
@torch.no_grad()
def test_kappa_at_evaluation(kappa):
    case = load_case(VIDEO)
    model = case.model("MODEL.RANKSEG.TOPK_EVAL", str(kappa))
    (result,) = model(case.inputs)
    assert len(result["label_ranking"]) == min(kappa, 40)
    _, (layer,), presence_logits = model.decode(case.inputs)
    selected = model.select_labels(presence_logits, Selection())
    weight, bias = model.ml_norm.weight, model.ml_norm.bias
    columns = [min(i, 9) for i in range(len(selected.ids))] + [10]
    logits = layer.class_logits[0][:, [*selected.ids.tolist(), 40]]
    logits = torch.nn.functional.layer_norm(logits, (len(columns),), weight[columns], bias[columns])
    torch.testing.assert_close(model.class_scores(layer, selected), logits.softmax(-1))


@pytest.mark.parametrize(
    ("name", "head", "selection"),
    [
        *(("image_r50_rankseg", "encoder", selection) for selection in TRAIN_SELECTIONS),
        *((VIDEO, head, "schedule") for head in HEADS),
    ],
)
def test_each_selection_and_head_trains(name, head, selection):
    case = load_case(name)
    settings = ("TOPK", "3", "HEAD", head, "TEMPERATURE", "rank", "TRAIN_SELECTION", selection)
    keys = [f"MODEL.RANKSEG.{w}" if i % 2 == 0 else w for i, w in enumerate(settings)]
    cfg = case.cfg.clone()
    cfg.merge_from_list(keys)
    model = build_model(cfg).train()
    for labels in ([1, 2, 30, 31, 32], []):
        for progress, kappa in ((0.0, model.num_labels), (1.0, 3)):
            used = {"schedule": kappa, "all": model.num_labels}.get(selection, 3)
            model.progress = progress
            model.zero_grad()
            losses = model(inputs_with_truth(case, labels, masks=True))
            sum(losses.values()).backward()
            assert all(torch.isfinite(loss) for loss in losses.values())
            grad = model.ml_norm.weight.grad != 0
            expected = torch.arange(len(grad)) < used
            expected[-1] = True
            assert torch.equal(grad, expected)
            assert all(p.grad.abs().sum() > 0 for p in model.ml_head.parameters() if p.numel() > 1)


ONE_LAYER = ("MODEL.MASK_FORMER.DEC_LAYERS", 2, "MODEL.RANKSEG.QUERY_LAYER", 1)


@pytest.mark.parametrize(
    "overrides",
    [
        ("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 0),
        (*ONE_LAYER, "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", True),
    ],
    ids=["no encoder", "one decoder layer"],
)
def test_small_models_have_a_gradient_for_each_parameter(overrides):
    """As DDP needs it."""
    case = load_case("image_r50_rankseg")
    cfg = case.cfg.clone()
    cfg.merge_from_list(list(overrides))
    model = build_model(cfg).train()
    sum(model(inputs_with_truth(case, [1, 2], masks=True)).values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_a_head_that_does_not_learn_is_named(caplog):
    cfg = load_case("image_r50_rankseg").cfg.clone()
    cfg.MODEL.RANKSEG.LOSS_WEIGHT = 0.0
    build_model(cfg)
    assert "MODEL.RANKSEG.LOSS_WEIGHT is 0: while training, the multi-label head" in caplog.text
    cfg.MODEL.RANKSEG.LOSS_WEIGHT = -1.0
    with pytest.raises(ValueError, match=r"MODEL\.RANKSEG\.LOSS_WEIGHT=-1\.0 must not be negative"):
        build_model(cfg)


def test_kept_labels_have_a_loss():
    case = load_case("image_r50_rankseg")
    inputs = inputs_with_truth(case, [4, 9, 77], masks=True)
    dice = {}
    for selection in ("official", "keep_present"):
        model = case.model("MODEL.RANKSEG.TRAIN_SELECTION", selection)
        clips, layers, presence_logits = model.train().decode(inputs)
        with torch.no_grad():
            # No present label is among the 50 best.
            presence_logits[:, [4, 9, 77]] = -1000.0
        targets = clips.targets(model.num_labels)
        ranked = model.rank(presence_logits, targets)
        layers = [model.rank_layer(layer, ranked.with_void()) for layer in layers]
        dice[selection] = model.losses(layers, targets, presence_logits, ranked)["loss_dice"]
    assert dice["official"] == 0 and dice["keep_present"] > 0


@pytest.mark.parametrize("place", range(5))
def test_the_head_reads_the_queries_of_its_layer(place):
    case = load_case("image_r50_rankseg")
    model = case.model("MODEL.RANKSEG.QUERY_LAYER", str(place)).train()
    seen = []
    model.ml_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    _, layers, presence_logits = model.decode(case.inputs)
    queries = [layer.queries for layer in layers]
    assert len(queries) == 5
    assert [torch.equal(x, seen[0]) for x in queries] == [i == place for i in range(5)]
    grads = torch.autograd.grad(presence_logits.square().sum(), queries, allow_unused=True)
    assert grads[place].abs().sum(2).gt(0).all()
    assert all(grad is None for grad in grads[place + 1 :])


@pytest.mark.parametrize("place", [-1, 5])
def test_the_decoder_has_the_heads_layer(place):
    message = f"QUERY_LAYER={place} needs a decoder of that many layers; .*DEC_LAYERS=5 makes 4"
    with pytest.raises(ValueError, match=message):
        load_case("image_r50_rankseg").model("MODEL.RANKSEG.QUERY_LAYER", str(place))


def test_cosines_with_a_scale():
    case = load_case("image_r50_baseline")
    cosine = ("MODEL.SEM_SEG_HEAD.USE_LAYERNORM", "True")
    model, bare = (
        case_model(case, *cosine, *scale)
        for scale in (("MODEL.SEM_SEG_HEAD.COSINE_SCALE", "12"), ())
    )
    added = model.state_dict().keys() - bare.state_dict().keys()
    assert added == {"sem_seg_head.predictor.class_embed.scale"}
    queries = torch.randn(2, 32)
    heads = [m.sem_seg_head.predictor.class_embed for m in (model, bare)]
    torch.testing.assert_close(heads[0](queries), 12 * heads[1](queries))
    heads[0](queries).sum().backward()
    assert heads[0].scale.grad.abs() > 0
    with pytest.raises(ValueError, match=r"COSINE_SCALE=12\.0.*USE_LAYERNORM is False"):
        case_model(case, "MODEL.SEM_SEG_HEAD.COSINE_SCALE", "12")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TRAIN_SELECTION", "none", "'none' must be one of official, keep_present, schedule, all"),
        ("TRAIN_SCHEDULE", "(0.5, 0.5)", "TRAIN_SCHEDULE="),
        ("TRAIN_SCHEDULE", "(0.5, 1.5)", "TRAIN_SCHEDULE="),
        ("TOPK_EVAL", "-1", "TOPK_EVAL=-1 must be 0 or more"),
        ("EVAL_MIN_SCORE", "1.5", r"EVAL_MIN_SCORE=1\.5 in \[0, 1\]"),
        ("EVAL_MASS", "0.0", r"EVAL_MASS=0\.0 in \(0, 1\]"),
        ("HEAD", "guess", "HEAD='guess'"),
    ],
)
def test_values_out_of_range_are_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        load_case("image_r50_rankseg").model(f"MODEL.RANKSEG.{key}", value)


@pytest.mark.parametrize("name", ROWS)
def test_each_ablation_is_one_override(name, caplog):
    cfg = get_cfg()
    cfg.merge_from_file(str(DEMO))
    cfg.merge_from_list(ROWS[name])
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    with torch.device("meta"), caplog.at_level(logging.WARNING):
        model = build_model(cfg)
    # Keys that do not fit each other; labels without a loss are that row's subject.
    assert bool(caplog.records) == (name == "train-selection-official")
    assert (model.ml_head is not None) == cfg.MODEL.RANKSEG.FLAG


def test_ablations_of_one_kind_differ():
    for rows in ABLATIONS.values():
        assert len({tuple(row) for row in rows.values()}) == len(rows)


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    """(of images, of videos), with weights of a golden case."""
    case = load_case("image_r50_rankseg")
    path = str(tmp_path_factory.mktemp("predictors") / "model.pth")
    torch.save({"model": case.model().state_dict()}, path)
    cfg = case.cfg.clone()
    cfg.merge_from_list(["MODEL.WEIGHTS", path, "INPUT.MIN_SIZE_TEST", "64"])
    return Predictor(cfg), VideoPredictor(cfg)


@torch.no_grad()
def test_predictors_take_a_selection(predictors):
    image = load_case("image_r50_rankseg").inputs[0]["image"].byte().permute(1, 2, 0).numpy()
    for predict, thing in zip(predictors, (image, [image] * 2), strict=True):
        free = predict(thing)["label_ranking"]
        assert predict(thing, Selection(labels=[5, 6]))["label_ranking"].sort().values.tolist() == [
            5,
            6,
        ]
        predict.selection = Selection(deny=[free[0].item()])
        assert free[0] not in predict(thing)["label_ranking"]
        assert free[0] in predict(thing, Selection())["label_ranking"]
        predict.selection = Selection()


COLOUR = np.full((64, 80, 3), 90, dtype=np.uint8)


@pytest.mark.parametrize(
    "image, error, got",
    [
        (COLOUR / np.float32(255), ValueError, "float32 of shape (64, 80, 3)"),
        (COLOUR.astype(float), ValueError, "float64 of shape (64, 80, 3)"),
        (COLOUR.astype(np.uint16), ValueError, "uint16 of shape (64, 80, 3)"),
        (COLOUR[:, :, 0], ValueError, "uint8 of shape (64, 80)"),
        (COLOUR.repeat(2, axis=2)[:, :, :4], ValueError, "uint8 of shape (64, 80, 4)"),
        (COLOUR[None], ValueError, "uint8 of shape (1, 64, 80, 3)"),
        (COLOUR[:0], ValueError, "uint8 of shape (0, 80, 3)"),
        (Image.fromarray(COLOUR), TypeError, "Image"),
        (torch.from_numpy(COLOUR), TypeError, "Tensor"),
        ("photo.jpg", TypeError, "str"),
    ],
)
def test_predictors_take_rgb_of_bytes_alone(predictors, image, error, got):
    of_images, of_videos = predictors
    message = f"takes (H, W, 3) uint8 RGB, got {got}; rankseg_m2f.images.read_image reads any image"
    for call in (
        lambda: of_images(image),
        lambda: of_videos([image]),
        lambda: of_videos([COLOUR, image]),
    ):
        with pytest.raises(error, match=re.escape(message)):
            call()
