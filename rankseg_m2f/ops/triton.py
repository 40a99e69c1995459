"""Deformable attention by Triton kernels: CUDA without nvcc.

Loaded at first use. Sums are made in float32 whatever the type of the value. Under
`torch.use_deterministic_algorithms` the gradient of the value is summed in whole numbers, whose
sum has no order; else its last bits depend on the order in which atomic additions arrive.

Shapes: N images, S value tokens, M heads, D channels per head, Q queries, L levels, P points.
"""

import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import triton
from torch import Tensor

from rankseg_m2f.ops.triton_kernels import _backward_kernel, _forward_kernel
from rankseg_m2f.ops.triton_launch import architecture_of, has_vector_atomics, launch

logger = logging.getLogger(__name__)

ABOUT = "Triton kernels, CUDA"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def unavailable_reason(device_type: str, dtype: torch.dtype) -> str | None:
    """Why it cannot serve such tensors; None if it can."""
    if dtype not in _DTYPES:
        return f"no {dtype}"
    # Triton's interpreter, for tests: it runs the kernels in NumPy.
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return _trouble_on_gpu() if device_type == "cuda" else "CUDA only"


@cache
def _trouble_on_gpu() -> str | None:
    """Try the kernels once on a small input: drivers and releases of Triton differ."""
    try:
        value = torch.arange(64, dtype=torch.float32, device="cuda").view(1, 4, 1, 16)
        locations = torch.full((1, 1, 1, 1, 1, 2), 0.5, device="cuda")
        weights = torch.ones(1, 1, 1, 1, 1, device="cuda")
        output = forward(value, (2, 2), locations, weights)
        grads = backward(torch.ones_like(output), value, (2, 2), locations, weights)
        still = torch.full((1, 4, 1, 1, 1, 2), 0.0, device="cuda")
        same = forward_from_offsets(value, (2, 2), still, still[..., 0])
    # Whatever its compiler, linker or driver raises, other backends can serve.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        trouble = f"does not run on this GPU ({reason})"
    else:
        # In the middle of four pixels: their mean, and a quarter of the gradient each.
        right = torch.allclose(output.flatten(), value.mean(1).flatten())
        right &= torch.allclose(grads[0], torch.full_like(value, 0.25))
        right &= torch.allclose(same.flatten(), value.flatten())
        trouble = None if right else "computes wrong values on this GPU"
    if trouble is not None:
        logger.warning("Deformable attention in Triton %s: a slower one is used", trouble)
    return trouble


def forward(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """See `rankseg_m2f.ops.dispatch.ms_deform_attn`; `shapes` is flat."""
    return _forward(value, shapes, locations, weights, offsets=False)


def forward_from_offsets(
    value: Tensor, shapes: Sequence[int], offsets: Tensor, logits: Tensor
) -> Tensor:
    """See `rankseg_m2f.ops.dispatch.ms_deform_attn_from_offsets`; `shapes` is flat."""
    return _forward(value, shapes, offsets, logits, offsets=True)


def backward(
    grad_output: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights."""
    return _backward(grad_output, value, shapes, locations, weights, None)


def backward_from_offsets(
    grad_output: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    offsets: Tensor,
    logits: Tensor,
    output: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, offsets and logits."""
    return _backward(grad_output, value, shapes, offsets, logits, output)


def _forward(
    value: Tensor, shapes: Sequence[int], points: Tensor, weights: Tensor, offsets: bool
) -> Tensor:
    value, points, weights = value.contiguous(), points.contiguous(), weights.contiguous()
    output = value.new_empty(len(value), points.shape[1], value.shape[2] * value.shape[3])
    if output.numel():
        tensors = (points, weights, output)
        kernel = "from_offsets" if offsets else "forward"
        _run(_forward_kernel, kernel, value, shapes, tensors, OFFSETS=offsets)
    return output


def _backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    points: Tensor,
    weights: Tensor,
    output: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`output` where points are offsets and weights are logits, else None."""
    offsets, grad_output = output is not None, grad_output.contiguous()
    output = output.contiguous() if offsets else grad_output
    value, points, weights = value.contiguous(), points.contiguous(), weights.contiguous()
    exact = torch.are_deterministic_algorithms_enabled()
    of_value = torch.zeros_like(value, dtype=torch.int64 if exact else torch.float32)
    of_points, of_weights = torch.empty_like(points), torch.empty_like(weights)
    if not grad_output.numel():
        return of_value.to(value.dtype), of_points, of_weights
    scale = _scale(grad_output, weights, output, offsets) if exact else grad_output
    tensors = (points, weights, output, grad_output, of_value, of_points, of_weights, scale)
    fused = has_vector_atomics(architecture_of(value.device)) and not exact
    for kernel in ("backward",) if fused else ("points", "value"):
        _run(
            _backward_kernel, kernel, value, shapes, tensors, OFFSETS=offsets,
            TO_VALUE=kernel != "points", TO_POINTS=kernel != "value", EXACT=exact,
        )  # fmt: skip
    if exact:
        of_value = of_value.to(torch.float32) / scale
    return of_value.to(value.dtype), of_points, of_weights


def _scale(grad_output: Tensor, weights: Tensor, output: Tensor, offsets: bool) -> Tensor:
    """What makes whole numbers of a gradient, as fine as the sum in 63 bits allows; (1,) float32.

    It is NaN where something is not finite, and so is then all that is divided by it.
    """
    largest = grad_output.abs().amax().float()
    if offsets:
        # Of logits that are no numbers the output tells; other weights are 1 at most.
        largest = largest.masked_fill(output.isnan().any(), float("nan"))
    else:
        largest = largest * weights.abs().amax().float()
    # All points of a level may read one pixel, each with a corner of weight 1 at most.
    most = weights.shape[1] * weights.shape[4]
    exponent = 62 - most.bit_length() - torch.frexp(largest).exponent
    scale = torch.ldexp(torch.ones_like(largest), exponent.clamp(-126, 126))
    return (scale + (largest - largest)).view(1)


def _run(
    kernel: triton.JITFunction,
    name: str,
    value: Tensor,
    shapes: Sequence[int],
    tensors: Sequence[Tensor],
    **flags: bool,
) -> None:
    """Launch a kernel, all images and rows; `name` is that in the table of launches.

    Raises:
        ValueError: an image so large that its numbers cannot be counted in 31 bits.
    """
    batch, tokens, heads, channels = value.shape
    queries, points = tensors[0].shape[1], tensors[0].shape[4]
    if max(value[0].numel(), tensors[0][0].numel()) >= 2**31 or tokens >= 2**21:
        raise ValueError(f"{tokens} tokens and {queries} queries an image are too many for Triton")
    lanes = max(2, triton.next_power_of_2(channels))
    plan = launch(name, value, architecture_of(value.device))
    rows = min(plan.rows(lanes), triton.next_power_of_2(queries * heads))
    grid = (triton.cdiv(queries * heads, rows), batch)
    with _current(value.device):
        kernel[grid](
            value, *_on_device(tuple(shapes), value.device), *tensors, tokens, queries,
            M=heads, D=channels, L=len(shapes) // 2, P=points, ROWS=rows, LANES=lanes,
            num_warps=plan.warps, **flags,
        )  # fmt: skip


def _current(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def _on_device(shapes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Level sizes, and sizes of a pixel; kept, and copied from memory that needs no waiting for."""
    sides = torch.tensor(shapes, dtype=torch.int32)
    tables = sides, 1 / sides.float()
    if device.type != "cuda":
        return tables
    sides, pixels = (table.pin_memory().to(device, non_blocking=True) for table in tables)
    return sides, pixels
