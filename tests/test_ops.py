"""Deformable attention: every backend against golden values and the definition, and the operator.

Triton's kernels run in its interpreter, in a process of their own (`test_triton_interpreted`).
"""

import importlib
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TESTS
from golden import FOLDER
from torch.utils.flop_counter import FlopCounterMode

import rankseg_m2f.ops
from rankseg_m2f.layers.ms_deform_attn import MSDeformAttn
from rankseg_m2f.ops import backends, native, reference
from rankseg_m2f.ops.dispatch import (
    available_backends,
    ms_deform_attn,
    ms_deform_attn_from_offsets,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
FAST = ["triton"] if INTERPRETED else [n for n, (ok, _) in available_backends().items() if ok]
GRADIENTS = ("value", "sampling_locations", "attention_weights")
OPERATORS = [ms_deform_attn, ms_deform_attn_from_offsets]


def golden_case(i: int) -> dict[str, torch.Tensor]:
    with np.load(FOLDER / "msda.npz") as arrays:
        prefix = f"msda.{i}."
        return {
            key.removeprefix(prefix): torch.from_numpy(value)
            for key, value in arrays.items()
            if key.startswith(prefix)
        }


def random_case(shapes, batch=2, heads=2, channels=8, queries=5, points=3, dtype=torch.float32):
    """Inputs of which about a third of the points lie outside."""
    tokens = sum(h * w for h, w in shapes)
    grid = (batch, queries, heads, len(shapes), points)
    return (
        torch.randn(batch, tokens, heads, channels, dtype=dtype),
        shapes,
        torch.rand(*grid, 2, dtype=dtype) * 1.6 - 0.3,
        torch.rand(*grid, dtype=dtype),
    )


def offset_case(shapes, batch=2, heads=2, channels=8, points=3, dtype=torch.float32):
    """Inputs of the operator that takes offsets and logits; some points lie outside."""
    tokens = sum(h * w for h, w in shapes)
    grid = (batch, tokens, heads, len(shapes), points)
    return (
        torch.randn(batch, tokens, heads, channels, dtype=dtype),
        shapes,
        torch.randn(*grid, 2, dtype=dtype) * 1.5,
        torch.randn(*grid, dtype=dtype) * 2,
    )


def run(case, backend, operator=ms_deform_attn):
    """Output and gradients."""
    value, shapes, locations, weights = case
    inputs = [t.detach().clone().requires_grad_() for t in (value, locations, weights)]
    output = operator(inputs[0], shapes, *inputs[1:], backend=backend)
    # Numbers that bfloat16 holds too.
    weight = torch.linspace(-1, 1, output.numel()).bfloat16().to(output.dtype).view_as(output)
    return [output, *torch.autograd.grad((output * weight).sum(), inputs)]


def assert_like_the_definition(case, backend, operator=ms_deform_attn, **tolerance):
    results = zip(run(case, backend, operator), run(case, "torch", operator), strict=True)
    for ours, expected in results:
        assert ours.dtype == expected.dtype and ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, **tolerance)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("i", [0, 1, 2])
def test_golden_values_and_gradients(i, backend):
    case = golden_case(i)
    dtype = torch.float32 if backend == "triton" else torch.float64
    tolerance = 2e-5 if backend == "triton" else 1e-9
    inputs = [case[name].to(dtype).requires_grad_() for name in GRADIENTS]
    output = ms_deform_attn(inputs[0], case["spatial_shapes"], *inputs[1:], backend=backend)
    torch.testing.assert_close(output.double(), case["output"], rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad(output, inputs, case["grad_output"].to(dtype))
    for name, gradient in zip(GRADIENTS, gradients, strict=True):
        expected = case[f"grad_{name}"]
        bound = 10 * tolerance * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-6, atol=bound)


@pytest.mark.parametrize("backend", [b for b in FAST if b != "torch"])
@pytest.mark.parametrize("channels", [1, 3, 8, 32, 40])
@pytest.mark.parametrize("shapes", [[(4, 5)], [(1, 1), (3, 2)], [(6, 3), (3, 2), (1, 1)]])
def test_sizes(backend, channels, shapes):
    case = random_case(shapes, channels=channels)
    assert_like_the_definition(case, backend, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("backend", [b for b in FAST if b != "torch"])
@pytest.mark.parametrize("channels, points", [(1, 1), (3, 9), (8, 4), (32, 4), (40, 5)])
@pytest.mark.parametrize("shapes", [[(4, 5)], [(1, 1), (3, 2)], [(1, 1), (1, 2), (2, 1), (2, 2)]])
def test_sizes_from_offsets(backend, channels, points, shapes):
    case = offset_case(shapes, channels=channels, points=points)
    assert_like_the_definition(case, backend, ms_deform_attn_from_offsets, rtol=1e-4, atol=4e-5)


def in_float64(case, operator):
    """Output and gradients of the definition in float64."""
    value, shapes, points, weights = case
    return run((value.double(), shapes, points.double(), weights.double()), "torch", operator)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("channels, levels", [(16, 3), (32, 3), (32, 4), (64, 3), (128, 3)])
def test_specialised_sizes_against_float64(backend, operator, dtype, bound, levels, channels):
    """The sizes that tests/test_triton_static.py compiles; points and weights stay in float32.

    Results in bfloat16 have 8 bits, and Triton's interpreter cuts off the rest.
    """
    shapes = [(1, 1), (2, 1), (2, 3), (3, 4)][:levels]
    make = offset_case if operator is ms_deform_attn_from_offsets else random_case
    heads = 8 if (channels, levels) == (32, 3) else 2
    value, *rest = make(shapes, batch=1, heads=heads, channels=channels, points=4)
    case = (value.to(dtype), *rest)
    results = zip(run(case, backend, operator), in_float64(case, operator), strict=True)
    for i, (ours, exact) in enumerate(results):
        error = (ours.double() - exact).abs().max() / exact.abs().max()
        # The mean that the softmax takes off the gradients of logits is read from the output.
        assert error < (3 * bound if i == 3 else bound)


def assert_softmax_and_centres(backend):
    value, shapes, offsets, logits = offset_case([(3, 4), (2, 2)], dtype=torch.float32)
    locations, weights = reference.located(offsets, logits, [3, 4, 2, 2], torch.float32)
    # The first token of the second level lies at (1/4, 1/4); offsets are pixels of the level read.
    expected = torch.tensor([0.25, 0.25]) + offsets[0, 12, 0, 0, 0] / torch.tensor([4.0, 3.0])
    torch.testing.assert_close(locations[0, 12, 0, 0, 0], expected)
    torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(2, 16, 2))
    torch.testing.assert_close(
        ms_deform_attn_from_offsets(value, shapes, offsets, logits, backend=backend),
        ms_deform_attn(value, shapes, locations, weights, backend=backend),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("backend", FAST)
def test_offsets_and_logits_are_locations_and_weights(backend):
    assert_softmax_and_centres(backend)


@pytest.mark.parametrize("backend", FAST)
def test_without_offsets_tokens_attend_to_their_own_pixel(backend):
    """On one level of 2 x 3, with logits that choose the second of two points."""
    value = torch.arange(6.0).view(1, 6, 1, 1)
    offsets = torch.zeros(1, 6, 1, 1, 2, 2)
    logits = torch.tensor([-200.0, 200.0]).expand(1, 6, 1, 1, 2)
    output = ms_deform_attn_from_offsets(value, [(2, 3)], offsets, logits, backend=backend)
    torch.testing.assert_close(output.flatten(), torch.arange(6.0))
    offsets[..., 1, 0] = 1.0  # one pixel to the right
    output = ms_deform_attn_from_offsets(value, [(2, 3)], offsets, logits, backend=backend)
    torch.testing.assert_close(
        output.flatten(), torch.tensor([1.0, 2, 0, 4, 5, 0]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("backend", [b for b in FAST if b != "torch"])
def test_offsets_that_are_no_numbers_read_nothing(backend):
    value, shapes, offsets, logits = offset_case([(3, 4)])
    offsets[0, 0] = float("nan")
    offsets[0, 1] = float("inf")
    case = (value, shapes, offsets, logits)
    output, grad_value, *_ = run(case, backend, ms_deform_attn_from_offsets)
    assert (output[0, :2] == 0).all() and output.isfinite().all() and grad_value.isfinite().all()


@pytest.mark.parametrize("backend", [b for b in FAST if b != "torch"])
def test_pixels_outside_are_not_read(backend):
    """Infinity beside the level, in the next one, does not leak into a point at the border."""
    value = torch.tensor([1.0, 1, 1, 1, float("inf"), float("nan")]).view(1, 6, 1, 1)
    locations = torch.tensor([0.9, 0.95]).expand(1, 3, 1, 2, 1, 2)
    weights = torch.tensor([1.0, 0.0]).view(2, 1).expand(1, 3, 1, 2, 1)
    output = ms_deform_attn(value[:, :5], [(2, 2), (1, 1)], locations, weights, backend=backend)
    assert output.isnan().all()  # 0 times infinity, as in the definition
    near = locations.clone()
    near[:, :, :, 1] = 9.0
    output = ms_deform_attn(value[:, :5], [(2, 2), (1, 1)], near, weights, backend=backend)
    torch.testing.assert_close(output.flatten(), torch.full((3,), 0.7 * 0.6), rtol=1e-4, atol=1e-5)


@pytest.fixture
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e25])
def test_triton_and_all_others_without_order(backend, operator, size, deterministic):
    """Deterministic sums are at least as exact, whatever the gradients' size; Inf stays Inf."""
    shapes = [(3, 2), (2, 2)]
    make = offset_case if operator is ms_deform_attn_from_offsets else random_case
    case = make(shapes, channels=16)
    inputs = [t.clone().requires_grad_() for t in (case[0], *case[2:])]
    output = operator(inputs[0], shapes, *inputs[1:], backend=backend)
    weight = torch.randn_like(output) * size
    gradient = torch.autograd.grad((output * weight).sum(), inputs[0], retain_graph=True)[0]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    exact = operator(wide[0], shapes, *wide[1:], backend="torch")
    exact = torch.autograd.grad((exact * weight.double()).sum(), wide[0])[0]
    assert (gradient - exact).abs().max() < 1e-6 * exact.abs().max()
    weight[0, 0, 0] = float("inf")
    broken = torch.autograd.grad(output, inputs[0], weight)[0]
    assert not broken.isfinite().all()


@pytest.mark.parametrize("backend", [b for b in FAST if b != "torch"])
def test_one_query_no_query_and_no_image(backend):
    for sizes in ({"batch": 1, "queries": 1}, {"queries": 0}, {"batch": 0}):
        case = random_case([(3, 4), (2, 2)], **sizes)
        assert_like_the_definition(case, backend, rtol=1e-4, atol=1e-5)
    case = offset_case([(1, 1)], batch=1)
    assert_like_the_definition(case, backend, ms_deform_attn_from_offsets, rtol=1e-4, atol=1e-5)
    case = offset_case([(2, 1)], batch=0)
    assert_like_the_definition(case, backend, ms_deform_attn_from_offsets, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", FAST)
def test_borders_and_far_points(backend):
    """On one level of 2 x 2 with values 1, 2, 3, 4: bilinear, zeros outside, by hand."""
    value = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
    places = {
        (0.25, 0.25): 1.0,
        (0.75, 0.75): 4.0,
        (0.5, 0.5): 2.5,
        (0.0, 0.25): 0.5,  # the border of the level: half a pixel is outside
        (1.0, 1.0): 1.0,
        (-0.25, 0.25): 0.0,  # one pixel outside
        (1.25, 0.75): 0.0,
        (1e30, 0.5): 0.0,
        (-1e30, -1e30): 0.0,
    }
    locations = torch.tensor(list(places)).view(1, -1, 1, 1, 1, 2)
    weights = torch.ones(locations.shape[:-1])
    output = ms_deform_attn(value, [(2, 2)], locations, weights, backend=backend)
    torch.testing.assert_close(output.flatten(), torch.tensor(list(places.values())))


@pytest.mark.parametrize("backend", [b for b in FAST if b != "torch"])
def test_points_that_are_no_numbers_read_nothing(backend):
    value, shapes, locations, weights = random_case([(3, 4)])
    locations[0, 0] = float("nan")
    locations[0, 1] = float("inf")
    output, grad_value, *_ = run((value, shapes, locations, weights), backend)
    assert (output[0, :2] == 0).all() and output.isfinite().all() and grad_value.isfinite().all()


@pytest.mark.parametrize("backend", [b for b in FAST if b != "torch"])
def test_inputs_need_not_be_contiguous(backend):
    value, shapes, locations, weights = random_case([(3, 4), (2, 1)])
    strided = (
        value.transpose(1, 3).contiguous().transpose(1, 3),
        shapes,
        locations.flip(1).transpose(0, 2).contiguous().transpose(0, 2),
        weights.flip(1).transpose(0, 2).contiguous().transpose(0, 2),
    )
    assert not strided[0].is_contiguous()
    plain = (value, shapes, locations.flip(1), weights.flip(1))
    for ours, expected in zip(run(strided, backend), run(plain, backend), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_summed_in_float32(backend, dtype):
    value, shapes, locations, weights = random_case([(4, 5), (2, 3)], points=4)
    # Locations stay in float32: half a pixel of a large level is beyond a half type.
    output = ms_deform_attn(value.to(dtype), shapes, locations, weights, backend=backend)
    assert output.dtype == dtype
    expected = ms_deform_attn(value.to(dtype).float(), shapes, locations, weights, backend="torch")
    torch.testing.assert_close(output, expected.to(dtype), rtol=1e-2, atol=1e-2)


def test_native_gradients_are_those_of_differences():
    value, shapes, locations, weights = random_case(
        [(3, 4), (2, 2)], batch=1, channels=3, queries=2, points=2, dtype=torch.float64
    )
    inputs = [t.requires_grad_() for t in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, x, w: ms_deform_attn(v, shapes, x, w, backend="native"), inputs
    )


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_gradients_from_offsets_are_those_of_differences(backend):
    shapes = [(2, 2), (1, 2)]
    value, _, offsets, logits = offset_case(
        shapes, batch=1, heads=1, channels=2, points=2, dtype=torch.float64
    )
    inputs = [t.requires_grad_() for t in (value, offsets, logits)]
    assert torch.autograd.gradcheck(
        lambda v, x, w: ms_deform_attn_from_offsets(v, shapes, x, w, backend=backend), inputs
    )


@pytest.mark.parametrize("operator", OPERATORS)
def test_native_gives_the_same_bits_with_any_number_of_threads(operator):
    make = offset_case if operator is ms_deform_attn_from_offsets else random_case
    sizes = {} if operator is ms_deform_attn_from_offsets else {"queries": 336}
    case = make([(16, 16), (8, 8), (4, 4)], channels=32, heads=4, **sizes)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(case, "native", operator)
        torch.set_num_threads(2)
        again = [run(case, "native", operator) for _ in range(3)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in again for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: None, "not built"),
        (lambda folder: (folder / "_native.so").write_bytes(b"no library"), "does not load"),
    ],
)
def test_a_binary_that_does_not_fit_is_passed_over(tmp_path, monkeypatch, caplog, make, message):
    make(tmp_path)
    monkeypatch.setattr(native, "HERE", tmp_path)
    with caplog.at_level(logging.WARNING):
        assert message in native.load.__wrapped__()
    assert bool(caplog.records) == (message != "not built")
    assert all("pip install --no-build-isolation" in r.getMessage() for r in caplog.records)


def test_a_binary_of_other_sources_is_passed_over(monkeypatch, caplog):
    monkeypatch.setattr(native, "source_hash", lambda: "another")
    with caplog.at_level(logging.WARNING):
        assert "built from other sources" in native.load.__wrapped__()
    assert "built from other sources" in caplog.text


def test_the_choice_can_be_overridden(monkeypatch):
    assert backends.choose("", "cpu", torch.float32).__name__ == backends.BACKENDS[FAST[0]]
    monkeypatch.setenv(backends.VARIABLE, "torch")
    assert backends.choose("", "cpu", torch.float32).__name__.endswith("reference")
    for name, message in (("abacus", "one of native, triton, torch"), ("native", "CPU only")):
        with pytest.raises(ValueError, match=f"^backend .*{message}"):
            backends.choose(name, "cuda", torch.float32)
    monkeypatch.setenv(backends.VARIABLE, "abacus")
    with pytest.raises(ValueError, match=f"^.{backends.VARIABLE}: backend 'abacus'"):
        ms_deform_attn(*random_case([(2, 2)]))


def test_a_missing_library_is_a_reason(monkeypatch):
    monkeypatch.setitem(backends.BACKENDS, "triton", "rankseg_m2f.ops.not_there")
    backends._problem.cache_clear()
    assert available_backends("cuda")["triton"] == (
        False,
        "rankseg_m2f.ops.not_there is not installed",
    )
    backends._problem.cache_clear()


def test_what_does_not_fit_is_named():
    case = golden_case(0)
    value, locations = case["value"], case["sampling_locations"]
    weights, shapes = case["attention_weights"], case["spatial_shapes"].tolist()
    with pytest.raises(ValueError, match="153 tokens"):
        ms_deform_attn(value, [(3, 3)], locations, weights)
    with pytest.raises(ValueError, match="sampling_locations"):
        ms_deform_attn(value, shapes, locations[:, :, :2], weights)
    with pytest.raises(ValueError, match="attention_weights"):
        ms_deform_attn(value, shapes, locations, weights[..., :2])
    with pytest.raises(ValueError, match="devices"):
        ms_deform_attn(value, shapes, locations.to("meta"), weights)
    with pytest.raises(ValueError, match="one of native, triton, torch"):
        ms_deform_attn(value, shapes, locations, weights, backend="abacus")
    value, shapes, offsets, logits = offset_case([(2, 3)])
    with pytest.raises(ValueError, match="sampling_offsets"):
        ms_deform_attn_from_offsets(value, shapes, offsets[:, :, :1], logits)
    with pytest.raises(ValueError, match="attention_logits"):
        ms_deform_attn_from_offsets(value, shapes, offsets, logits[..., :2])
    with pytest.raises(ValueError, match="5 queries are not the 6 tokens"):
        ms_deform_attn_from_offsets(value, shapes, offsets[:, :5], logits[:, :5])


@pytest.mark.parametrize("backend", [b for b in FAST if b != "triton"])
def test_the_operator_keeps_pytorchs_rules(backend):
    value, shapes, locations, weights = random_case([(3, 4), (2, 2)])
    inputs = [t.requires_grad_() for t in (value, locations, weights)]
    flat = [side for shape in shapes for side in shape]
    arguments = (inputs[0], flat, *inputs[1:], backend)
    torch.library.opcheck(torch.ops.rankseg_m2f.ms_deform_attn.default, arguments)
    value, shapes, offsets, logits = offset_case([(3, 4), (2, 2)])
    inputs = [t.requires_grad_() for t in (value, offsets, logits)]
    arguments = (inputs[0], flat, *inputs[1:], backend)
    torch.library.opcheck(torch.ops.rankseg_m2f.ms_deform_attn_from_offsets.default, arguments)


@pytest.mark.parametrize("places", [None, torch.rand(30, 2)], ids=["own pixel", "reference"])
def test_it_compiles_and_exports_as_one_operator(places):
    layer = MSDeformAttn(channels=16, levels=2, heads=4, points=2)
    shapes, tokens = [(4, 6), (2, 3)], torch.randn(2, 30, 16)
    arguments = (tokens, tokens, shapes, places)
    expected = layer(*arguments)
    expected.sum().backward()
    gradient = layer.value_proj.weight.grad.clone()
    layer.zero_grad()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    output = compiled(*arguments)
    output.sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(layer.value_proj.weight.grad, gradient)
    name = "ms_deform_attn" if places is not None else "ms_deform_attn_from_offsets"
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            exported = torch.export.export(layer, arguments)
        called = [n.target for n in exported.graph.nodes if "ms_deform_attn" in str(n.target)]
        assert called == [getattr(torch.ops.rankseg_m2f, name).default]
        torch.testing.assert_close(exported.module()(*arguments), expected)


@torch.no_grad()
def test_a_layer_reads_its_own_pixels_where_no_reference_is_given():
    layer = MSDeformAttn(channels=16, levels=2, heads=4, points=2)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    shapes, tokens = [(4, 6), (2, 3)], torch.randn(2, 30, 16)
    centres = [
        ((x + 0.5) / width, (y + 0.5) / height)
        for height, width in shapes
        for y in range(height)
        for x in range(width)
    ]
    expected = layer(tokens, tokens, shapes, torch.tensor(centres))
    torch.testing.assert_close(layer(tokens, tokens, shapes), expected, rtol=1e-4, atol=1e-4)


def test_autocast_runs_it_in_float32():
    value, shapes, locations, weights = random_case([(3, 4)])
    with torch.autocast("cpu", torch.bfloat16):
        output = ms_deform_attn(value.bfloat16(), shapes, locations, weights)
        value, shapes, offsets, logits = offset_case([(3, 4)], dtype=torch.bfloat16)
        from_offsets = ms_deform_attn_from_offsets(value, shapes, offsets, logits)
    assert output.dtype == from_offsets.dtype == torch.float32


def test_flops_are_counted():
    value, shapes, locations, weights = random_case(
        [(3, 4), (2, 2)], batch=2, heads=2, channels=8, queries=5, points=3
    )
    with FlopCounterMode(display=False) as counter:
        ms_deform_attn(value.requires_grad_(), shapes, locations, weights).sum().backward()
    # Samples x channels x (four pixels and one weight) x 2, and twice that backwards.
    forward = (2 * 5 * 2 * 2 * 3) * 8 * 5 * 2
    assert counter.get_total_flops() == 3 * forward
    value, shapes, offsets, logits = offset_case([(3, 4), (2, 2)])
    with FlopCounterMode(display=False) as counter:
        ms_deform_attn_from_offsets(value, shapes, offsets, logits)
    assert counter.get_total_flops() == (2 * 16 * 2 * 2 * 3) * 8 * 5 * 2


def test_it_is_where_the_documentation_says():
    assert rankseg_m2f.ops.ms_deform_attn is ms_deform_attn
    assert rankseg_m2f.ops.ms_deform_attn_from_offsets is ms_deform_attn_from_offsets


def test_layer_starts_by_averaging_rays():
    layer = MSDeformAttn(channels=16, levels=2, heads=4, points=3)
    offsets = layer.sampling_offsets.bias.view(4, 2, 3, 2)
    # Head 0 looks right, head 1 down; the p-th point lies p pixels away.
    assert torch.allclose(offsets[0, 1], torch.tensor([[1.0, 0], [2, 0], [3, 0]]), atol=1e-6)
    assert torch.allclose(offsets[1, 0], torch.tensor([[0.0, 1], [0, 2], [0, 3]]), atol=1e-6)
    shapes = [(4, 6), (2, 3)]
    tokens = torch.ones(1, 30, 16)
    output = layer(tokens, tokens, shapes, torch.full((30, 2), 0.5))
    assert output.shape == (1, 30, 16)
    with pytest.raises(ValueError, match="10 channels do not split into 4"):
        MSDeformAttn(channels=10, heads=4)


@pytest.mark.parametrize(
    "error, reason",
    [
        (subprocess.CalledProcessError(1, "gcc"), "Command 'gcc' returned non-zero"),
        (AssertionError(), "AssertionError"),
    ],
    ids=["compiler", "driver"],
)
def test_a_gpu_that_cannot_run_triton_falls_back(monkeypatch, caplog, error, reason):
    triton = importlib.import_module("rankseg_m2f.ops.triton")

    def fail(*_):
        raise error

    monkeypatch.setattr(triton, "forward", fail)
    made = {name: getattr(torch, name) for name in ("arange", "full", "ones")}
    for name, make in made.items():
        here = lambda *a, make=make, device, **k: make(*a, **k)  # noqa: E731
        monkeypatch.setattr(triton.torch, name, here)
    trouble = triton._trouble_on_gpu.__wrapped__()
    assert trouble.startswith(f"does not run on this GPU ({reason}")
    assert f"in Triton {trouble}: a slower one is used" in caplog.text


def test_triton_interpreted():
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-x",
                __file__,
                f"{TESTS}/interpreted_triton.py",
            ),
            *("-k", "triton and not test_triton_interpreted"),
        ],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
