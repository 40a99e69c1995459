"""Multi-scale deformable attention in plain PyTorch: the definition every backend must equal.

Shapes: N images, S value tokens of all levels, M heads, D channels per head, Q queries,
L levels, P points.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ABOUT = "pure PyTorch, any device and dtype"


def problem(device_type: str, dtype: torch.dtype) -> None:
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
