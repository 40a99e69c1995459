"""Deformable attention as Triton kernels: CUDA without nvcc.

Loaded at first use. Sums are made in float32 whatever the type of the value.

Shapes: N images, S value tokens, M heads, D channels per head, Q queries, L levels, P points.
"""

import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

logger = logging.getLogger(__name__)

ABOUT = "Triton kernels, CUDA"
# Queries per program; a tile is BLOCK_Q x D numbers.
_BLOCK_Q = 32
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def problem(device_type: str, dtype: torch.dtype) -> str | None:
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
    # Whatever its compiler, linker or driver raises, other backends can serve.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        trouble = f"does not run on this GPU ({reason})"
    else:
        # In the middle of four pixels: their mean, and a quarter of the gradient each.
        right = torch.allclose(output.flatten(), value.mean(1).flatten())
        right &= torch.allclose(grads[0], torch.full_like(value, 0.25))
        trouble = None if right else "computes wrong values on this GPU"
    if trouble is not None:
        logger.warning("Deformable attention in Triton %s: a slower one is used", trouble)
    return trouble


@triton.jit
def _corner(level, x, y, width, height, stride, channels, live):
    """Values (BLOCK_Q, D) at pixels (x, y), zeros outside, and their offsets and mask."""
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & live
    offset = (y * width + x) * stride
    mask = inside[:, None] & (channels >= 0)[None, :]
    tile = tl.load(level + offset[:, None] + channels[None, :], mask=mask, other=0.0)
    return tile.to(tl.float32), offset, mask


@triton.jit
def _place(locations, point, live, width, height):
    """Top-left pixel of each point and its place between the pixels; far points count as dead."""
    x = tl.load(locations + 2 * point, mask=live, other=-1.0).to(tl.float32) * width - 0.5
    y = tl.load(locations + 2 * point + 1, mask=live, other=-1.0).to(tl.float32) * height - 0.5
    # NaN fails the comparisons, so nothing is read for it.
    near = (x > -1) & (x < width) & (y > -1) & (y < height) & live
    x, y = tl.where(near, x, 0.0), tl.where(near, y, 0.0)
    left, top = tl.floor(x), tl.floor(y)
    return left.to(tl.int32), top.to(tl.int32), x - left, y - top, near


@triton.jit
def _forward_kernel(
    value, shapes, locations, weights, output,
    S, M, Q, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    block, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    query = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    live = query < Q
    lanes = tl.arange(0, BLOCK_D)
    channels = tl.where(lanes < D, lanes, -1)
    row = (image.to(tl.int64) * Q + query) * M + head
    total = tl.zeros((BLOCK_Q, BLOCK_D), dtype=tl.float32)
    level = value + image.to(tl.int64) * S * M * D + head * D
    for level_id in tl.static_range(L):
        height, width = tl.load(shapes + 2 * level_id), tl.load(shapes + 2 * level_id + 1)
        for p in tl.static_range(P):
            point = (row * L + level_id) * P + p
            left, top, right, down, near = _place(locations, point, live, width, height)
            weight = tl.load(weights + point, mask=near, other=0.0).to(tl.float32)
            a, _, _ = _corner(level, left, top, width, height, M * D, channels, near)
            b, _, _ = _corner(level, left + 1, top, width, height, M * D, channels, near)
            c, _, _ = _corner(level, left, top + 1, width, height, M * D, channels, near)
            d, _, _ = _corner(level, left + 1, top + 1, width, height, M * D, channels, near)
            upper = a * (1 - right)[:, None] + b * right[:, None]
            lower = c * (1 - right)[:, None] + d * right[:, None]
            mixed = upper * (1 - down)[:, None] + lower * down[:, None]
            total += mixed * weight[:, None]
        level += height.to(tl.int64) * width * M * D
    target = output + row[:, None] * D + lanes[None, :]
    tl.store(target, total, mask=live[:, None] & (lanes < D)[None, :])


@triton.jit
def _backward_kernel(
    value, shapes, locations, weights, grad_output, grad_value, grad_locations, grad_weights,
    S, M, Q, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    block, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    query = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    live = query < Q
    lanes = tl.arange(0, BLOCK_D)
    channels = tl.where(lanes < D, lanes, -1)
    row = (image.to(tl.int64) * Q + query) * M + head
    given = live[:, None] & (lanes < D)[None, :]
    grad = tl.load(grad_output + row[:, None] * D + lanes[None, :], mask=given, other=0.0)
    grad = grad.to(tl.float32)
    start = image.to(tl.int64) * S * M * D + head * D
    for level_id in tl.static_range(L):
        height, width = tl.load(shapes + 2 * level_id), tl.load(shapes + 2 * level_id + 1)
        for p in tl.static_range(P):
            point = (row * L + level_id) * P + p
            left, top, right, down, near = _place(locations, point, live, width, height)
            weight = tl.load(weights + point, mask=near, other=0.0).to(tl.float32)
            level = value + start
            a, at, am = _corner(level, left, top, width, height, M * D, channels, near)
            b, bt, bm = _corner(level, left + 1, top, width, height, M * D, channels, near)
            c, ct, cm = _corner(level, left, top + 1, width, height, M * D, channels, near)
            d, dt, dm = _corner(level, left + 1, top + 1, width, height, M * D, channels, near)
            into = grad_value + start + channels[None, :]
            flow = grad * weight[:, None]
            # Nothing is read in between, so their order to other memory accesses is free.
            tl.atomic_add(
                into + at[:, None],
                flow * ((1 - down) * (1 - right))[:, None],
                mask=am,
                sem="relaxed",
            )
            tl.atomic_add(
                into + bt[:, None], flow * ((1 - down) * right)[:, None], mask=bm, sem="relaxed"
            )
            tl.atomic_add(
                into + ct[:, None], flow * (down * (1 - right))[:, None], mask=cm, sem="relaxed"
            )
            tl.atomic_add(
                into + dt[:, None], flow * (down * right)[:, None], mask=dm, sem="relaxed"
            )
            a, b = tl.sum(a * grad, axis=1), tl.sum(b * grad, axis=1)
            c, d = tl.sum(c * grad, axis=1), tl.sum(d * grad, axis=1)
            upper, lower = a + (b - a) * right, c + (d - c) * right
            tl.store(grad_weights + point, upper + (lower - upper) * down, mask=near)
            across = ((b - a) * (1 - down) + (d - c) * down) * width * weight
            along = (lower - upper) * height * weight
            tl.store(grad_locations + 2 * point, across, mask=near)
            tl.store(grad_locations + 2 * point + 1, along, mask=near)
        start += height.to(tl.int64) * width * M * D


def forward(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """See `rankseg_m2f.ops.dispatch.ms_deform_attn`; `shapes` is flat."""
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    output = value.new_empty(len(value), locations.shape[1], value.shape[2] * value.shape[3])
    if output.numel():
        grid, sizes = _launch(value, shapes, locations)
        levels = _on_device(tuple(shapes), value.device)
        with _current(value.device):
            _forward_kernel[grid](value, levels, locations, weights, output, **sizes)
    return output


def backward(
    grad_output: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights. Sums into value are atomic: not bitwise stable."""
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    grads = [torch.zeros_like(t, dtype=torch.float32) for t in (value, locations, weights)]
    if grad_output.numel():
        grid, sizes = _launch(value, shapes, locations)
        levels = _on_device(tuple(shapes), value.device)
        with _current(value.device):
            _backward_kernel[grid](
                value, levels, locations, weights, grad_output.contiguous(), *grads, **sizes,
            )  # fmt: skip
    inputs = (value, locations, weights)
    return tuple(g.to(t.dtype) for g, t in zip(grads, inputs, strict=True))


def _current(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _launch(value: Tensor, shapes: Sequence[int], locations: Tensor) -> tuple[tuple, dict]:
    """Grid and size arguments of a kernel."""
    batch, tokens, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    block = min(_BLOCK_Q, triton.next_power_of_2(queries))
    sizes = {
        "S": tokens, "M": heads, "Q": queries, "D": channels, "L": len(shapes) // 2, "P": points,
        "BLOCK_Q": block, "BLOCK_D": max(2, triton.next_power_of_2(channels)),
    }  # fmt: skip
    return (triton.cdiv(queries, block), heads, batch), sizes


@cache
def _on_device(shapes: tuple[int, ...], device: torch.device) -> Tensor:
    """The level sizes on the device; copied once, for a copy would stall the stream each call."""
    return torch.tensor(shapes, dtype=torch.int32, device=device)
