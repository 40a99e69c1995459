"""Triton's kernels in its interpreter: what `test_ops.py` does not ask of every backend.

Run by `test_ops.py::test_triton_interpreted`, in a process with TRITON_INTERPRET=1.
"""

import pytest
import torch
from test_ops import (
    OPERATORS,
    assert_like_the_definition,
    deterministic,  # noqa: F401  (a fixture)
    offset_case,
    random_case,
)

from rankseg_m2f.ops import triton
from rankseg_m2f.ops.dispatch import ms_deform_attn, ms_deform_attn_from_offsets


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("channels, dtype", [(32, torch.bfloat16), (5, torch.float32)])
def test_triton_launches_of_all_architectures(operator, architecture, channels, dtype, monkeypatch):
    monkeypatch.setattr(triton, "architecture_of", lambda device: architecture)
    shapes = [(3, 2), (2, 2)]
    make = offset_case if operator is ms_deform_attn_from_offsets else random_case
    value, *rest = make(shapes, heads=3, channels=channels)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    case = (value.to(dtype), *rest)
    assert_like_the_definition(case, "triton", operator, rtol=tolerance, atol=tolerance)


def value_gradients() -> list[torch.Tensor]:
    """That of the value, with the queries in order and in another."""
    queries = 64
    value, shapes, locations, weights = random_case([(4, 4)], batch=1, queries=queries, channels=16)
    grad = torch.randn(1, queries, 2 * 16)
    results = []
    for order in (torch.arange(queries), torch.randperm(queries)):
        leaf = value.clone().requires_grad_()
        output = ms_deform_attn(
            leaf, shapes, locations[:, order], weights[:, order], backend="triton"
        )
        results.append(torch.autograd.grad(output, leaf, grad[:, order])[0])
    return results


@pytest.mark.usefixtures("deterministic")
def test_triton_sums_queries_in_any_order_to_the_same_bits():
    assert torch.equal(*value_gradients())


def test_triton_without_that_sums_to_almost_the_same():
    one, other = value_gradients()
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other)


def test_triton_refuses_what_31_bits_cannot_count():
    value = torch.zeros(1, 1, 1, 1).expand(1, 2**21, 1, 2)
    points = torch.zeros(1, 1, 1, 1, 1, 2)
    with pytest.raises(ValueError, match="2097152 tokens and 1 queries an image are too many"):
        triton._run(None, "forward", value, [2**10, 2**11], [points])
