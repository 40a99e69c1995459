"""Multi-scale deformable attention in plain PyTorch: the definition every backend must equal.

Shapes: N images, S value tokens of all levels, M heads, D channels per head, Q queries,
L levels, P points.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ABOUT = "pure PyTorch, any device and dtype"


def unavailable_reason(device_type: str, dtype: torch.dtype) -> None:
    """Nothing speaks against it anywhere."""
    return None


def forward(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """See `rankseg_m2f.ops.dispatch.ms_deform_attn`; `shapes` is flat (h, w, h, w, ...)."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    total = value.new_zeros(batch * heads, channels, queries, dtype=_wide(value))
    for image, grid, weight in _levels(value, shapes, locations, weights):
        total += (_sample(image, grid) * weight).sum(-1)
    merged = total.view(batch, heads * channels, queries).transpose(1, 2)
    return merged.to(value.dtype).contiguous()


def backward(
    grad_output: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights; samples are recomputed, not kept."""
    batch, _, heads, channels = value.shape
    grad = grad_output.to(_wide(value)).unflatten(-1, (heads, channels))
    grad = grad.permute(0, 2, 3, 1).flatten(0, 1).unsqueeze(-1)  # (N * M, D, Q, 1)
    grads_value, grads_grid, grads_weight = [], [], []
    for image, grid, weight in _levels(value, shapes, locations, weights):
        grads_weight.append((_sample(image, grid) * grad).sum(1))
        # Bilinear, zeros outside, align_corners False; both gradients.
        grad_image, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad * weight, image, grid, 0, 0, False, [True, True]
        )
        grads_value.append(grad_image.flatten(2))
        grads_grid.append(2 * grad_grid)
    of_value = torch.cat(grads_value, dim=2).unflatten(0, (batch, heads)).permute(0, 3, 1, 2)
    of_locations = torch.stack(grads_grid, dim=2).unflatten(0, (batch, heads)).transpose(1, 2)
    of_weights = torch.stack(grads_weight, dim=2).unflatten(0, (batch, heads)).transpose(1, 2)
    found = zip((of_value, of_locations, of_weights), (value, locations, weights), strict=True)
    return tuple(gradient.to(like.dtype).contiguous() for gradient, like in found)


def forward_from_offsets(
    value: Tensor, shapes: Sequence[int], offsets: Tensor, logits: Tensor
) -> Tensor:
    """See `rankseg_m2f.ops.dispatch.ms_deform_attn_from_offsets`; `shapes` is flat."""
    return forward(value, shapes, *located(offsets, logits, shapes, _wide(value)))


def backward_from_offsets(
    grad_output: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    offsets: Tensor,
    logits: Tensor,
    output: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, offsets and logits; `output` is not read."""
    locations, weights = located(offsets, logits, shapes, _wide(value))
    of_value, of_locations, of_weights = backward(grad_output, value, shapes, locations, weights)
    of_offsets = of_locations / _sides(shapes, of_locations)
    product = (weights * of_weights).flatten(-2)
    of_logits = product - weights.flatten(-2) * product.sum(-1, keepdim=True)
    of_logits = of_logits.view(logits.shape)
    return of_value, of_offsets.to(offsets.dtype), of_logits.to(logits.dtype)


def located(
    offsets: Tensor, logits: Tensor, shapes: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Sampling locations and attention weights of queries that are the tokens themselves.

    Args:
        offsets: (N, S, M, L, P, 2) in pixels of the level read.
        logits: (N, S, M, L, P).
        shapes: flat (h, w, h, w, ...).
        dtype: of the result.
    """
    offsets, logits = offsets.to(dtype), logits.to(dtype)
    centres = []
    for height, width in zip(shapes[::2], shapes[1::2], strict=True):
        y = (torch.arange(height, dtype=dtype, device=offsets.device) + 0.5) / height
        x = (torch.arange(width, dtype=dtype, device=offsets.device) + 0.5) / width
        centres.append(torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1))
    locations = torch.cat(centres)[:, None, None, None] + offsets / _sides(shapes, offsets)
    return locations, logits.flatten(-2).softmax(-1).view(logits.shape)


def _sides(shapes: Sequence[int], like: Tensor) -> Tensor:
    """(L, 1, 2) width and height of each level, filled in place: a copy would stop the GPU."""
    pairs = zip(shapes[::2], shapes[1::2], strict=True)
    sides = [like.new_full((1,), side) for height, width in pairs for side in (width, height)]
    return torch.cat(sides).view(-1, 1, 2)


def _levels(
    value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Per level: image (N * M, D, h, w), grid (N * M, Q, P, 2), weight (N * M, 1, Q, P)."""
    dtype, channels = _wide(value), value.shape[3]
    # grid_sample reads coordinates in [-1, 1].
    grids = (2 * locations.to(dtype) - 1).transpose(1, 2).flatten(0, 1)
    spread = weights.to(dtype).transpose(1, 2).flatten(0, 1).unsqueeze(1)
    start = 0
    for level, (height, width) in enumerate(zip(shapes[::2], shapes[1::2], strict=True)):
        tokens = value[:, start : start + height * width].to(dtype)
        image = tokens.permute(0, 2, 3, 1).reshape(-1, channels, height, width)
        yield image, grids[:, :, level], spread[:, :, :, level]
        start += height * width


def _sample(image: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(image, grid, mode="bilinear", align_corners=False)


def _wide(value: Tensor) -> torch.dtype:
    """The type sums are made in."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32
