"""The deformable attention layer, with the official keys.

Shapes: N images, Lq queries, S tokens of all levels, C channels, M heads, L levels, P points.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rankseg_m2f.layers.linear import apply_linear
from rankseg_m2f.ops.dispatch import ms_deform_attn, ms_deform_attn_from_offsets


class MSDeformAttn(nn.Module):
    """Each query reads P points per level and head around its reference point."""

    def __init__(
        self,
        channels: int = 256,
        levels: int = 3,
        heads: int = 8,
        points: int = 4,
        value_channels: int | None = None,
    ):
        """`value_channels`: width of what is read, over all heads; None: `channels`."""
        super().__init__()
        value_channels = value_channels or channels
        if value_channels % heads:
            raise ValueError(f"{value_channels} channels do not split into {heads} heads")
        self.grid = (heads, levels, points)
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, value_channels)
        self.output_proj = nn.Linear(value_channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start on rays, one direction per head, and attention is uniform."""
        heads, levels, points = self.grid
        angle = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
        ray = torch.stack([angle.cos(), angle.sin()], dim=-1)
        ray = ray / ray.abs().amax(-1, keepdim=True)
        reach = torch.arange(1, points + 1, dtype=torch.float32)
        bias = (ray[:, None, None] * reach[:, None]).expand(heads, levels, points, 2)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Tensor,
        tokens: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        reference: Tensor | None = None,
    ) -> Tensor:
        """Attend from `query` to `tokens`.

        Args:
            query: (N, Lq, C).
            tokens: (N, S, C).
            spatial_shapes: L pairs (height, width).
            reference: (Lq, 2), reference points (x, y) in [0, 1], the same on all levels. None:
                queries are the tokens themselves, Lq = S, each at the centre of its pixel.

        Returns:
            (N, Lq, C).
        """
        heads, levels, points = self.grid
        value = apply_linear(self.value_proj, tokens).unflatten(-1, (heads, -1))
        offsets = apply_linear(self.sampling_offsets, query).unflatten(
            -1, (heads, levels, points, 2)
        )
        logits = apply_linear(self.attention_weights, query).unflatten(-1, (heads, levels, points))
        if reference is None:
            mixed = ms_deform_attn_from_offsets(value, spatial_shapes, offsets, logits)
        else:
            weights = logits.flatten(-2).softmax(-1).view_as(logits)
            # Offsets are in pixels of their level.
            locations = reference[:, None, None, None] + offsets / _sizes(spatial_shapes, query)
            mixed = ms_deform_attn(value, spatial_shapes, locations, weights)
        return apply_linear(self.output_proj, mixed)


def _sizes(spatial_shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(L, 1, 2) width and height of each level, filled in place: a copy would stop the GPU."""
    sides = [
        like.new_full((1,), side) for height, width in spatial_shapes for side in (width, height)
    ]
    return torch.cat(sides).view(-1, 1, 2)
