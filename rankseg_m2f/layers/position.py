"""Sine position encoding over time, height and width."""

import math

import torch
from torch import Tensor

_TEMPERATURE = 10000.0
_EPS = 1e-6


def sine_position(
    frames: int, height: int, width: int, channels: int, device: torch.device
) -> Tensor:
    """Position encoding of a T x H x W grid.

    Row and column take half of the channels each; time is added over all of them. A single frame
    gets no time term: attention reads position through its keys alone, where a constant changes
    nothing.

    Returns:
        (T, H, W, C) float32.
    """
    rows = _encode(height, channels // 2, device)[None, :, None].expand(1, height, width, -1)
    columns = _encode(width, channels // 2, device)[None, None].expand(1, height, width, -1)
    plane = torch.cat([rows, columns], dim=-1)
    if frames == 1:
        return plane
    return plane + _encode(frames, channels, device)[:, None, None]


def _encode(length: int, channels: int, device: torch.device) -> Tensor:
    """Interleaved sine and cosine of positions 1..length scaled to (0, 2π]: (length, channels)."""
    position = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    position = position / (length + _EPS) * (2 * math.pi)
    channel = torch.arange(channels, dtype=torch.float32, device=device)
    frequency = _TEMPERATURE ** (2 * (channel // 2) / channels)
    angle = position[:, None] / frequency
    return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)
