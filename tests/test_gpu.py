"""What only a CUDA device can show: `make gpu-test`."""

import pytest
import torch
from detectron2.structures import Instances
from golden import load_case
from test_ops import (
    OPERATORS,
    assert_like_the_definition,
    deterministic,  # noqa: F401  (a fixture)
    offset_case,
    random_case,
    run,
)

from rankseg_m2f.ops.backends import available_backends
from rankseg_m2f.ops.dispatch import ms_deform_attn_from_offsets
from rankseg_m2f.rankseg.hints import LabelHints

pytestmark = pytest.mark.gpu
SHAPES = [(8, 12), (4, 6), (2, 3)]


def on_gpu(case, dtype=torch.float32):
    value, shapes, locations, weights = case
    return value.cuda().to(dtype), shapes, locations.cuda(), weights.cuda()


def test_triton_serves():
    assert available_backends("cuda")["triton"][0]


@pytest.mark.parametrize("channels", [3, 32, 40])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 2e-4), (torch.bfloat16, 5e-2)])
def test_triton_is_like_the_definition(channels, dtype, bound):
    case = on_gpu(random_case(SHAPES, channels=channels, queries=130, heads=4), dtype)
    assert_like_the_definition(case, "triton", rtol=bound, atol=bound)


@pytest.mark.parametrize("channels", [3, 16, 32, 40, 64, 128])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 2e-4), (torch.bfloat16, 5e-2)])
def test_triton_from_offsets_is_like_the_definition(channels, dtype, bound):
    case = on_gpu(offset_case(SHAPES, channels=channels, heads=4, points=4), dtype)
    assert_like_the_definition(case, "triton", ms_deform_attn_from_offsets, rtol=bound, atol=bound)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.usefixtures("deterministic")
def test_triton_gives_the_same_bits_where_that_is_asked_for(operator):
    shapes = [(64, 64), (32, 32), (16, 16)]
    if operator is ms_deform_attn_from_offsets:
        case = on_gpu(offset_case(shapes, channels=32, heads=8, points=4))
    else:
        case = on_gpu(random_case(shapes, channels=32, heads=8, queries=5376, points=4))
    first = run(case, "triton", operator)
    for _ in range(5):
        again = run(case, "triton", operator)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def with_objects(sample):
    """A sample with two objects, for training."""
    size = tuple(sample["image"].shape[1:])
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[0, : size[0] // 2] = masks[1, size[0] // 2 :] = True
    return {
        **sample,
        "instances": Instances(size, gt_classes=torch.tensor([3, 7]), gt_masks=masks),
    }


@pytest.mark.parametrize("amp", [None, torch.float16, torch.bfloat16])
def test_a_model_trains_with_finite_losses(amp, device="cuda"):
    case = load_case("image_r50_rankseg")
    model = case.model("MODEL.DEVICE", device).train()
    with torch.autocast(device, amp, enabled=amp is not None):
        losses = model([with_objects(sample) for sample in case.inputs])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def test_what_a_caller_knows_is_heeded(device="cuda"):
    case = load_case("image_r50_rankseg")
    model = case.model("MODEL.DEVICE", device, "MODEL.RANKSEG.EVAL_MASS", "0.5")
    for hints in (LabelHints(labels=[3, 7]), LabelHints(deny=[0], force=[149])):
        (result, *_) = model([{**sample, "label_hints": hints} for sample in case.inputs])
        ranking = result["label_ranking"].tolist()
        assert set(hints.labels or hints.force) <= set(ranking) and 0 not in ranking
        assert result["sem_seg"].argmax(0).is_cuda == (device == "cuda")
