"""BEiT's tables of relative position biases for another number of patches.

Shapes: h, w patches, M heads.
"""

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

# Rows of the class token: to patches, from patches, to itself.
CLASS_ROWS = 3
# Bounds and precision of the ratio that is searched for, as in the official code.
_RATIOS = (1.01, 1.5)
_PRECISION = 1e-6


def resize_relative_bias(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table of biases by relative position, resampled.

    Distances of the old table are spread geometrically over those of the new: near ones stay
    apart by one patch, far ones by ever more. A cubic spline gives the biases between.

    Args:
        table: ((2h - 1)(2w - 1) + 3, M); the last three rows, the class token's, stay.
        old: its grid (h, w).
        new: the grid to reach (H, W).

    Returns:
        ((2H - 1)(2W - 1) + 3, M), of the table's dtype.

    Raises:
        ValueError: the table is not of the grid, or the grid is too small for a cubic spline.
    """
    sides = [2 * side - 1 for side in old]
    if len(table) != sides[0] * sides[1] + CLASS_ROWS:
        raise ValueError(f"{len(table)} rows are not those of a table for {old[0]}x{old[1]}")
    if tuple(old) == tuple(new):
        return table
    if min(sides) <= 3:
        raise ValueError(f"a table for {old[0]}x{old[1]} patches is too small to be resized")
    rows, columns = (geometric_positions(a, b) for a, b in zip(old, new, strict=True))
    wanted = [np.arange(-(side - 1), side, dtype=np.float64) for side in new]
    maps = table[:-CLASS_ROWS].double().cpu().T.unflatten(1, sides).numpy()
    resized = [RectBivariateSpline(rows, columns, x)(*wanted) for x in maps]
    biases = torch.from_numpy(np.stack(resized)).flatten(1).T
    return torch.cat([biases.to(table), table[-CLASS_ROWS:]])


def geometric_positions(old: int, new: int) -> np.ndarray:
    """Where the 2 · old - 1 distances of an axis lie among those of `new` patches, in float64.

    0, ±1, ±(1 + q), ±(1 + q + q²), ...; q such that the last one reaches new - 1.
    """
    q = 1.0
    if old != new:
        low, high = _RATIOS
        while high - low > _PRECISION:
            q = (low + high) / 2
            if (1 - q ** (old - 1)) / (1 - q) > new - 1:
                high = q
            else:
                low = q
    reach = np.cumsum(q ** np.arange(old - 1, dtype=np.float64))
    return np.concatenate([-reach[::-1], [0.0], reach])
