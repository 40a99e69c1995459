"""Swin weights for windows of another size.

Shapes: W window side, M heads.
"""

import re
from collections.abc import Mapping
from math import isqrt

import torch.nn.functional as F
from torch import Tensor

_TABLE = re.compile(r".+\.relative_position_bias_table")
_INDEX = re.compile(r".+\.relative_position_index")


def fit_windows(
    theirs: dict[str, Tensor], ours: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str | None]:
    """Position biases of a file, resized to the windows of a model.

    A table ((2W - 1)², M) is a square map of biases by relative position; it is interpolated
    bicubically, as Swin's authors do when they fine-tune with larger windows.

    Args:
        theirs: tensors of the file under our names.
        ours: state of the model.

    Returns:
        The file's tensors, and a sentence of what was resized; None: nothing was.
    """
    fitted, sizes = dict(theirs), set()
    for name, table in theirs.items():
        wanted = ours[name].shape if name in ours else table.shape
        if _TABLE.fullmatch(name) and _resizable(table.shape, wanted):
            fitted[name] = _resized(table, isqrt(wanted[0]))
            sizes.add(tuple((isqrt(rows) + 1) // 2 for rows in (len(table), wanted[0])))
        elif _INDEX.fullmatch(name) and table.shape != wanted:
            # It follows from the window's size alone; the model has computed its own.
            del fitted[name]
    if not sizes:
        return fitted, None
    changes = ", ".join(f"{before} to {after}" for before, after in sorted(sizes))
    return fitted, f"Position biases of Swin are resized from windows of {changes}."


def _resizable(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return (
        len(shape) == 2
        and shape[0] != wanted[0]
        and shape[1] == wanted[1]
        and isqrt(shape[0]) ** 2 == shape[0] > 0
    )


def _resized(table: Tensor, side: int) -> Tensor:
    """((2W - 1)², M) to (side², M)."""
    old = isqrt(len(table))
    maps = table.float().T.reshape(1, -1, old, old)
    maps = F.interpolate(maps, (side, side), mode="bicubic", align_corners=False)
    return maps.flatten(2).squeeze(0).T.contiguous()
