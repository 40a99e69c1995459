"""Position tables of vision transformers, which fit one grid of patches each.

Shapes: h, w patches of the grid, C channels.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor


class PositionTable(NamedTuple):
    """What a table of a checkpoint is resized to, and how.

    `resize` is "bicubic" or "bilinear" for a position embedding (1, 1 + h * w, C), whose first row
    is the class token's; "geometric" for a table of relative position biases
    ((2h - 1)(2w - 1) + 3, heads), whose last three rows are the class token's.
    """

    grid: tuple[int, int]
    resize: str


@runtime_checkable
class HasPositionTables(Protocol):
    """A module some of whose parameters are position tables."""

    def position_tables(self) -> dict[str, PositionTable]:
        """Parameter name -> its grid and the way to resize it."""
        ...


def resize_position_embedding(
    embedding: Tensor, old: tuple[int, int], new: tuple[int, int], mode: str
) -> Tensor:
    """A position embedding for another grid; the class token's row stays.

    Args:
        embedding: (1, 1 + h * w, C), rows of the grid one after the other.
        old: its grid (h, w).
        new: the grid to reach (H, W).
        mode: "bicubic" or "bilinear".

    Returns:
        (1, 1 + H * W, C).

    Raises:
        ValueError: `embedding` has another number of rows than `old`.
    """
    if embedding.shape[1] != 1 + old[0] * old[1]:
        raise ValueError(f"{embedding.shape[1]} rows are not 1 + {old[0]} * {old[1]}")
    first, rest = embedding[:, :1], embedding[:, 1:]
    rest = rest.unflatten(1, old).permute(0, 3, 1, 2)  # (1, C, h, w)
    rest = F.interpolate(rest, new, mode=mode, align_corners=False)
    return torch.cat([first, rest.flatten(2).transpose(1, 2)], dim=1)
