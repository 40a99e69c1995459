"""Reading masks at points (PointRend's sampling).

Shapes: N masks, T frames, P points, H, W mask size. Points are (x, y) in [0, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of float maps at points, zeros outside.

    Args:
        maps: (N, C, H, W) float.
        points: (N, P, 2) in [0, 1].

    Returns:
        (N, C, P).
    """
    grid = (2 * points - 1).unsqueeze(2)
    return F.grid_sample(maps, grid.to(maps.dtype), align_corners=False).squeeze(3)


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """`sample_points` for boolean masks, without a float copy of them.

    Four reads per point instead of a conversion of all pixels: at 1024 x 1024 a float copy of
    50 masks is 200 MB, made for each decoder layer.

    Args:
        masks: (N, T, H, W) bool.
        points: (N, P, 2) in [0, 1], the same for all frames of a mask.

    Returns:
        (N, T, P) float32 in [0, 1].
    """
    height, width = masks.shape[-2:]
    # By plain numbers: a tensor of the two sides would be a copy that stops the GPU.
    x, y = points[..., 0].float() * width - 0.5, points[..., 1].float() * height - 0.5
    left, top = x.floor(), y.floor()
    pixels = masks.flatten(2)
    values = points.new_zeros(*masks.shape[:2], points.shape[1], dtype=torch.float32)
    for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            pixel = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            pixel = pixel.unsqueeze(1).expand(-1, masks.shape[1], -1)
            weight = (weight_x * weight_y * inside).unsqueeze(1)
            values += pixels.gather(2, pixel) * weight
    return values


def uncertain_points(
    logits: Tensor, num_points: int, oversample_ratio: float, importance_ratio: float
) -> Tensor:
    """Points where a mask is least decided, plus some anywhere.

    Args:
        logits: (N, 1, H, W) mask logits; the least certain have |logit| near 0.
        num_points: P.
        oversample_ratio: candidates per point.
        importance_ratio: share of the P points taken from the least certain candidates.

    Returns:
        (N, P, 2) in [0, 1].
    """
    count = len(logits)
    candidates = torch.rand(count, int(num_points * oversample_ratio), 2, device=logits.device)
    uncertainty = -sample_points(logits, candidates).squeeze(1).abs()
    num_uncertain = int(importance_ratio * num_points)
    chosen = uncertainty.topk(num_uncertain, dim=1).indices
    chosen = candidates.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 2))
    anywhere = torch.rand(count, num_points - num_uncertain, 2, device=logits.device)
    return torch.cat([chosen, anywhere], dim=1)
