"""Reading masks at points (PointRend's sampling).

Shapes: N masks, T frames, P points, H, W mask size. Points are (x, y) in [0, 1].
"""

from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

# Pixels turned to float at a time: 64 MB.
_CHUNK = 2**24


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of float maps at points, zeros outside.

    Args:
        maps: (N, C, H, W) float.
        points: (N, P, 2) in [0, 1]; or (1, P, 2), the same for all maps.

    Returns:
        (N, C, P).
    """
    grid = (2 * points - 1).unsqueeze(2).to(maps.dtype)
    if len(points) == len(maps):
        return F.grid_sample(maps, grid, align_corners=False).squeeze(3)
    # As channels of one map: where a point lies is computed once.
    values = F.grid_sample(maps.flatten(0, 1)[None], grid, align_corners=False)
    return values.view(*maps.shape[:2], points.shape[1])


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """`sample_points` for boolean masks, turned to float a few at a time.

    At 1024 x 1024 a float copy of 50 masks is 200 MB, made for each decoder layer.

    Args:
        masks: (N, T, H, W) bool.
        points: (N, P, 2) in [0, 1], the same for all frames of a mask; or (1, P, 2), for all masks.

    Returns:
        (N, T, P) float32 in [0, 1].
    """
    if not len(masks):
        return points.new_zeros(*masks.shape[:2], points.shape[1], dtype=torch.float32)
    parts = masks.split(max(1, _CHUNK // masks[0].numel()))
    shared = len(points) == 1 < len(masks)
    sets = repeat(points, len(parts)) if shared else points.split(len(parts[0]))
    return torch.cat([sample_points(m.float(), p) for m, p in zip(parts, sets, strict=True)])


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
    # Their order does not matter, and sorting them costs more than finding them.
    chosen = uncertainty.topk(num_uncertain, dim=1, sorted=False).indices
    chosen = candidates.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 2))
    anywhere = torch.rand(count, num_points - num_uncertain, 2, device=logits.device)
    return torch.cat([chosen, anywhere], dim=1)
