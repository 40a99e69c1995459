"""Deformable attention as two PyTorch operators: autograd, fake tensors, autocast, FLOPs.

`attend` takes locations and weights, `attend_from_offsets` what makes them: offsets and logits.

Shapes as in `dispatch`.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from rankseg_m2f.ops.backends import choose

NAME = "rankseg_m2f::ms_deform_attn"
FROM_OFFSETS = f"{NAME}_from_offsets"


@torch.library.custom_op(
    NAME,
    mutates_args=(),
    schema="(Tensor value, int[] shapes, Tensor locations, Tensor weights, str backend) -> Tensor",
)
def attend(
    value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor, backend: str
) -> Tensor:
    """The forward pass by whichever backend serves."""
    chosen = choose(backend, value.device.type, value.dtype)
    return chosen.forward(value, shapes, locations, weights)


@torch.library.custom_op(
    f"{NAME}_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor value, int[] shapes, Tensor locations, Tensor weights, "
    "str backend) -> (Tensor, Tensor, Tensor)",
)
def attend_backward(
    grad: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights."""
    chosen = choose(backend, value.device.type, value.dtype)
    return chosen.backward(grad, value, shapes, locations, weights)


@attend.register_fake
def _(
    value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor, backend: str
) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@attend_backward.register_fake
def _(
    grad: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    backend: str,
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (value, locations, weights))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.shapes, locations, weights, ctx.backend = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    grads = torch.ops.rankseg_m2f.ms_deform_attn_backward(
        grad, value, ctx.shapes, locations, weights, ctx.backend
    )
    return grads[0], None, grads[1], grads[2], None


attend.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op(
    FROM_OFFSETS,
    mutates_args=(),
    schema="(Tensor value, int[] shapes, Tensor offsets, Tensor logits, str backend) -> Tensor",
)
def attend_from_offsets(
    value: Tensor, shapes: Sequence[int], offsets: Tensor, logits: Tensor, backend: str
) -> Tensor:
    """The forward pass by whichever backend serves."""
    chosen = choose(backend, value.device.type, value.dtype)
    return chosen.forward_from_offsets(value, shapes, offsets, logits)


@torch.library.custom_op(
    f"{FROM_OFFSETS}_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor value, int[] shapes, Tensor offsets, Tensor logits, "
    "Tensor output, str backend) -> (Tensor, Tensor, Tensor)",
)
def attend_from_offsets_backward(
    grad: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    offsets: Tensor,
    logits: Tensor,
    output: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, offsets and logits."""
    chosen = choose(backend, value.device.type, value.dtype)
    return chosen.backward_from_offsets(grad, value, shapes, offsets, logits, output)


@attend_from_offsets.register_fake
def _(
    value: Tensor, shapes: Sequence[int], offsets: Tensor, logits: Tensor, backend: str
) -> Tensor:
    return value.new_empty(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3])


@attend_from_offsets_backward.register_fake
def _(
    grad: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    offsets: Tensor,
    logits: Tensor,
    output: Tensor,
    backend: str,
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (value, offsets, logits))


def _setup_context_from_offsets(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.shapes, offsets, logits, ctx.backend = inputs
    # The layer's next projection keeps the output anyway; with it the softmax needs no second pass.
    ctx.save_for_backward(value, offsets, logits, output)


def _backward_from_offsets(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, *saved = ctx.saved_tensors
    grads = torch.ops.rankseg_m2f.ms_deform_attn_from_offsets_backward(
        grad, value, ctx.shapes, *saved, ctx.backend
    )
    return grads[0], None, grads[1], grads[2], None


attend_from_offsets.register_autograd(
    _backward_from_offsets, setup_context=_setup_context_from_offsets
)


def _flops(
    value: Sequence[int],
    shapes: Sequence[int],
    locations: Sequence[int],
    *args: object,
    **kwargs: object,
) -> int:
    # Per point and channel one product with each of four pixels and one with the weight.
    return 2 * 5 * prod(locations[:-1]) * value[3]


for _operator, _of_backward in (
    (torch.ops.rankseg_m2f.ms_deform_attn, torch.ops.rankseg_m2f.ms_deform_attn_backward),
    (
        torch.ops.rankseg_m2f.ms_deform_attn_from_offsets,
        torch.ops.rankseg_m2f.ms_deform_attn_from_offsets_backward,
    ),
):
    register_flop_formula(_operator)(_flops)
    register_flop_formula(_of_backward)(lambda grad, *args, **kwargs: 2 * _flops(*args, **kwargs))
# As in the official code: bfloat16 cannot resolve half a pixel on a 128-wide level.
for _device in ("cpu", "cuda"):
    if hasattr(torch.library, "register_autocast"):  # torch >= 2.7
        torch.library.register_autocast(NAME, _device, torch.float32)
        torch.library.register_autocast(FROM_OFFSETS, _device, torch.float32)
