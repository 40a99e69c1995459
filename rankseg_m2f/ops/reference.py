"""Multi-scale deformable attention in plain PyTorch: the definition every backend must equal.

Shapes: N images, S value tokens of all levels, M heads, D channels per head, Lq queries,
L levels, P points.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_torch(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """See `rankseg_m2f.ops.dispatch.ms_deform_attn` for the contract."""
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    levels = value.split([h * w for h, w in spatial_shapes], dim=1)
    # grid_sample reads coordinates in [-1, 1].
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)
    sampled = []
    for level, (height, width) in enumerate(spatial_shapes):
        image = levels[level].permute(0, 2, 3, 1).reshape(-1, channels, height, width)
        sampled.append(
            F.grid_sample(image, grids[:, :, level], mode="bilinear", align_corners=False)
        )
    weights = attention_weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    mixed = (torch.cat(sampled, dim=-1) * weights).sum(-1)
    return mixed.view(batch, heads * channels, queries).transpose(1, 2)
