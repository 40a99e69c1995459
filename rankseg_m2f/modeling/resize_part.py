"""Bilinear resizing of which only a part is made, and of which only a part needs to be there.

Shapes: C maps; h, w size before, H, W after.
"""

import torch
from torch import Tensor


def resize_part(
    maps: Tensor,
    size: tuple[int, int],
    rows: range,
    cols: range,
    whole: tuple[int, int] | None = None,
    given: tuple[range, range] | None = None,
) -> Tensor:
    """(C, len(rows), len(cols)): what lies there in the maps once resized.

    Equal to `torch.nn.functional.interpolate`, bilinear, align_corners False.

    Args:
        maps: (C, h, w), or the part of them that is `given`.
        size: (H, W).
        rows, cols: of the result, in [0, H) and [0, W).
        whole: (h, w); None: that of `maps`.
        given: the rows and columns that `maps` has of the whole; None: all.
    """
    whole = tuple(maps.shape[1:]) if whole is None else whole
    given = tuple(map(range, whole)) if given is None else given
    for i, wanted in enumerate((rows, cols)):
        maps = _resize_axis(maps, whole[i], size[i], wanted, given[i].start, dim=1 + i)
    return maps


def source_of(wanted: range, before: int, after: int) -> range:
    """What of a side of length `before` is read to make a part of it at length `after`."""
    if before == after:
        return wanted
    low, high, _ = _neighbours(wanted, before, after, torch.device("cpu"))
    return range(int(low[0]), int(high[-1]) + 1)


def _resize_axis(
    maps: Tensor, before: int, after: int, wanted: range, start: int, dim: int
) -> Tensor:
    if before == after:
        return maps.narrow(dim, wanted.start - start, len(wanted))
    low, high, share = _neighbours(wanted, before, after, maps.device)
    shape = [1] * maps.ndim
    shape[dim] = len(wanted)
    share = share.to(maps.dtype).view(shape)
    return maps.index_select(dim, low - start).lerp(maps.index_select(dim, high - start), share)


def _neighbours(
    wanted: range, before: int, after: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """For each wanted place the two it lies between, and how far it is from the first."""
    places = torch.arange(wanted.start, wanted.stop, dtype=torch.float64, device=device)
    places = ((places + 0.5) * (before / after) - 0.5).clamp(0, before - 1)
    low = places.long()
    return low, (low + 1).clamp(max=before - 1), places - low
