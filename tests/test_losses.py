"""Loss values and gradients of the official criterion, from given points."""

import pytest
import torch
from detectron2.utils import comm
from golden import losses

from rankseg_m2f.config import get_cfg
from rankseg_m2f.errors import UserError
from rankseg_m2f.layers import points as points_module
from rankseg_m2f.layers.points import sample_masks, sample_points, uncertain_points
from rankseg_m2f.modeling.query.criteria import build_criterion
from rankseg_m2f.modeling.query.criterion import (
    PointCriterion,
    dice_loss,
    mask_cross_entropy,
)
from rankseg_m2f.modeling.query.matcher import PointMatcher
from rankseg_m2f.modeling.query.ranked_queries import ranked_targets
from rankseg_m2f.rankseg.labels import RankedLabels
from rankseg_m2f.rankseg.loss import asymmetric_loss
from rankseg_m2f.structures.predictions import ClipTargets, QueryPrediction


def close(ours, official, relative=1e-5, absolute=1e-7):
    torch.testing.assert_close(ours, official, rtol=relative, atol=absolute, check_dtype=False)


def targets_of(case: str) -> list[ClipTargets]:
    golden = losses()
    targets = []
    for i in range(2):
        masks = golden[f"{case}.target.{i}.masks"]
        masks = masks if masks.ndim == 4 else masks.unsqueeze(1)
        targets.append(ClipTargets(golden[f"{case}.target.{i}.labels"], masks))
    return targets


def prediction(class_logits, mask_logits) -> QueryPrediction:
    mask_logits = mask_logits if mask_logits.ndim == 5 else mask_logits.unsqueeze(2)
    return QueryPrediction(torch.empty(0), class_logits, mask_logits)


@pytest.mark.parametrize("i", [0, 1, 2])
def test_asymmetric_loss_and_gradient(i):
    golden = losses()
    logits = golden[f"asl.{i}.logits"].clone().requires_grad_()
    truth = golden[f"asl.{i}.targets"].bool()
    loss = asymmetric_loss(logits, truth)
    close(loss.detach(), golden[f"asl.{i}.loss"])
    close(torch.autograd.grad(loss, logits)[0], golden[f"asl.{i}.grad"], absolute=1e-8)
    other = asymmetric_loss(logits, truth, gamma_neg=4, gamma_pos=1)
    close(other.detach(), golden[f"asl.{i}.loss_default"])


@pytest.mark.parametrize("i", [0, 1])
def test_point_losses_and_gradients(i):
    golden = losses()
    for key, function in (("dice", dice_loss), ("ce", mask_cross_entropy)):
        logits = golden[f"point.{i}.point_logits"].clone().requires_grad_()
        loss = function(logits, golden[f"point.{i}.point_labels"]).sum()
        loss = loss / golden[f"point.{i}.num_masks"]
        close(loss.detach(), golden[f"point.{i}.{key}"])
        close(torch.autograd.grad(loss, logits)[0], golden[f"point.{i}.{key}_grad"])


@pytest.mark.parametrize("case", ["matcher_image", "matcher_video"])
def test_matching_costs_and_assignment(case, monkeypatch):
    golden = losses()
    layer = prediction(golden[f"{case}.pred_logits"], golden[f"{case}.pred_masks"])
    targets = targets_of(case)
    matcher = PointMatcher(2.0, 5.0, 5.0, num_points=256)
    points = [golden[f"{case}.coords.{i}"] for i in range(2)]
    for i in range(2):
        monkeypatch.setattr(matcher, "points", lambda device, i=i: points[i])
        close(matcher.cost(layer, i, targets[i]), golden[f"{case}.cost.{i}"], absolute=1e-5)
    draws = iter(points)
    monkeypatch.setattr(matcher, "points", lambda device: next(draws))
    for i, (query, target) in enumerate(matcher([layer], targets)[0]):
        found = set(zip(query.tolist(), target.tolist(), strict=True))
        src, tgt = golden[f"{case}.src.{i}"], golden[f"{case}.tgt.{i}"]
        assert found == set(zip(src.tolist(), tgt.tolist(), strict=True))


def test_each_weight_is_of_its_cost(monkeypatch):
    cfg = get_cfg()
    node = cfg.MODEL.MASK_FORMER
    node.MASK_LOSS = "points"
    node.CLASS_WEIGHT, node.MASK_WEIGHT, node.DICE_WEIGHT = 2.0, 3.0, 7.0
    criterion = build_criterion(cfg)
    assert criterion.weights == {"loss_ce": 2.0, "loss_mask": 3.0, "loss_dice": 7.0}
    golden, case = losses(), "matcher_image"
    layer = prediction(golden[f"{case}.pred_logits"], golden[f"{case}.pred_masks"])
    target = targets_of(case)[0]

    def cost(matcher):
        monkeypatch.setattr(matcher, "points", lambda device: golden[f"{case}.coords.0"])
        return matcher.cost(layer, 0, target)

    alone = [cost(PointMatcher(*row, num_points=256)) for row in torch.eye(3).tolist()]
    expected = 2 * alone[0] + 3 * alone[1] + 7 * alone[2]
    close(cost(criterion.matcher), expected, absolute=1e-5)


def test_weights_that_are_all_zero_are_named():
    cfg = get_cfg()
    node = cfg.MODEL.MASK_FORMER
    node.CLASS_WEIGHT = node.MASK_WEIGHT = node.DICE_WEIGHT = 0.0
    with pytest.raises(UserError, match="MASK_WEIGHT and DICE_WEIGHT are all 0"):
        build_criterion(cfg)


def test_masks_are_counted_over_processes_and_never_less_than_one(monkeypatch):
    criterion = build_criterion(get_cfg())
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.add_(3))
    for objects, expected in ((0, 1.0), (1, 1.0), (9, 3.0)):
        masks = torch.zeros(objects, 1, 4, 4, dtype=torch.bool)
        targets = [ClipTargets(torch.zeros(objects, dtype=torch.int64), masks)]
        assert criterion.num_masks(targets).item() == expected


def test_uncertain_points(monkeypatch):
    golden = losses()
    draws = iter([golden["uncertain.rand_over"], golden["uncertain.rand_rest"]])

    def drawn(*size, device):
        points = next(draws)
        assert points.shape == size
        return points

    monkeypatch.setattr(torch, "rand", drawn)
    logits = golden["uncertain.mask_logits"]
    points = uncertain_points(logits, 64, 3.0, 0.75)
    for ours, official in zip(points, golden["uncertain.coords"], strict=True):
        assert set(map(tuple, ours.tolist())) == set(map(tuple, official.tolist()))
    close(sample_points(logits, golden["uncertain.coords"]), golden["uncertain.sampled"])


def test_masks_are_sampled_as_floats_would_be(monkeypatch):
    masks = torch.rand(5, 3, 17, 23) < 0.4
    # Beyond the border too, where the official sampling reads zeros.
    points = torch.rand(5, 500, 2) * 1.2 - 0.1
    expected = sample_points(masks.float(), points)
    close(sample_masks(masks, points), expected, absolute=2e-6)
    # A float copy of one mask at a time, of two, of all.
    for chunk in (1, 2 * masks[0].numel(), 2**20):
        monkeypatch.setattr(points_module, "_CHUNK", chunk)
        close(sample_masks(masks, points), expected, absolute=2e-6)
        shared = points[:1]
        wanted = sample_points(masks.float(), shared.expand(5, -1, -1))
        close(sample_masks(masks, shared), wanted, absolute=2e-6)
        close(sample_masks(masks[:1], shared), wanted[:1], absolute=2e-6)
    assert sample_masks(masks[:0], points[:1]).shape == (0, 3, 500)
    assert sample_points(masks[:0].float(), points[:0]).shape == (0, 3, 500)


def run_criterion(case: str, kappa: int | None, monkeypatch):
    """Our criterion on the official predictions and points: losses, gradients, kept objects."""
    golden = losses()
    layers = [
        prediction(
            golden[f"{case}.out.{i}.pred_logits"].clone().requires_grad_(),
            golden[f"{case}.out.{i}.pred_masks"].clone().requires_grad_(),
        )
        for i in (1, 0)  # officially the final layer comes first
    ]
    targets = targets_of(case)
    classes = layers[0].class_logits.shape[-1]
    num_labels = 30 if "image" in case else 40
    if kappa is not None:
        index = golden[f"{case}.topk_index"][:, :-1]
        targets = ranked_targets(targets, RankedLabels(index, num_labels))
        assert classes == kappa + 1
    matcher = PointMatcher(2.0, 5.0, 5.0, num_points=256)
    criterion = PointCriterion(
        num_labels,
        matcher=matcher,
        weights={"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0},
        no_object_weight=0.1,
        deep_supervision=True,
        num_points=256,
        oversample_ratio=3.0,
        importance_ratio=0.75,
    )
    draws = iter([golden[f"{case}.matcher_coords.{i}.{clip}"] for i in (1, 0) for clip in (0, 1)])
    monkeypatch.setattr(matcher, "points", lambda device: next(draws))
    with_points_of_official_order(criterion, case, monkeypatch)
    found = criterion(layers, targets)
    return layers, found, [len(t) for t in targets]


def with_points_of_official_order(criterion, case: str, monkeypatch):
    """Give each matched mask its official points: rows come by query there, by object here."""
    golden = losses()
    compute = criterion.mask_losses
    numbers = iter((1, 0))

    def mask_losses(layer, targets, match, num_masks):
        points = golden[f"{case}.loss_coords.{next(numbers)}"]
        frames = layer.mask_logits.shape[2]
        points = points.unflatten(0, (-1, frames)).split([len(query) for query, _ in match])
        # Row r of the official points belongs to the r-th smallest query.
        ordered = [
            p[query.argsort().argsort()] for p, (query, _) in zip(points, match, strict=True)
        ]
        monkeypatch.setattr(criterion, "points", lambda logits: torch.cat(ordered).flatten(0, 1))
        return compute(layer, targets, match, num_masks)

    monkeypatch.setattr(criterion, "mask_losses", mask_losses)


@pytest.mark.parametrize(
    ("case", "kappa"),
    [("criterion_image", None), ("criterion_image_topk10", 10), ("criterion_video_topk12", 12)],
)
def test_whole_criterion(case, kappa, monkeypatch):
    golden = losses()
    layers, found, kept = run_criterion(case, kappa, monkeypatch)
    assert kept == golden[f"{case}.kept"].tolist()
    weights = {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    assert len(found) == 6
    for key, loss in found.items():
        official = golden[f"{case}.loss.{key}"] * weights[key.removesuffix("_0")]
        close(loss.detach(), official)
    total = sum(found.values())
    close(total.detach(), golden[f"{case}.total_weighted"])
    total.backward()
    for layer, i in zip(layers, (1, 0), strict=True):
        for ours, name in ((layer.class_logits, "pred_logits"), (layer.mask_logits, "pred_masks")):
            official = golden[f"{case}.grad.{i}.{name}"]
            leaf = ours if ours.is_leaf else ours._base
            close(leaf.grad.view_as(official), official, relative=1e-4, absolute=1e-6)


LABEL_CASES = ["labels_topk50", "labels_topkK", "labels_topk5_all_dropped_in_last"]


@pytest.mark.parametrize("case", [*LABEL_CASES, "labels_video_topk10"])
def test_labels_become_ranks(case):
    golden = losses()
    index = golden[f"{case}.topk_index"]
    num_labels = int(index[0, -1])
    ranked = RankedLabels(index[:, :-1], num_labels)
    labels = [golden[f"{case}.labels.{i}"] for i in range(2)]
    targets = [ClipTargets(x, torch.zeros(len(x), 1, 4, 4, dtype=torch.bool)) for x in labels]
    seen = ranked_targets(targets, ranked)
    criterion = PointCriterion(
        num_labels,
        matcher=PointMatcher(1, 1, 1, 16),
        weights={},
        no_object_weight=0.1,
        deep_supervision=True,
        num_points=16,
        oversample_ratio=3.0,
        importance_ratio=0.75,
    )
    match = [(golden[f"{case}.src.{i}"], golden[f"{case}.tgt.{i}"]) for i in range(2)]
    for i in range(2):
        assert torch.equal(seen[i].labels, golden[f"{case}.remapped.{i}"])
        rank = ranked[i].rank_of(labels[i][None], missing=-1)[0]
        assert torch.equal(rank >= 0, golden[f"{case}.kept.{i}"])
    logits = golden[f"{case}.logits"].clone().requires_grad_()
    loss = criterion.label_loss(prediction(logits, torch.zeros(2, 1, 1, 1, 1)), seen, match)
    close(loss.detach(), golden[f"{case}.loss_ce"])
    close(torch.autograd.grad(loss, logits)[0], golden[f"{case}.grad"])
    assert criterion.num_masks(seen) == golden[f"{case}.num_masks"]
