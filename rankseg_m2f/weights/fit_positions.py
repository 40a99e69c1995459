"""Position tables of a file, resized to the images of a model."""

from collections.abc import Mapping
from math import isqrt

from torch import Tensor, nn

from rankseg_m2f.layers.position_tables import (
    HasPositionTables,
    PositionTable,
    resize_position_embedding,
)
from rankseg_m2f.weights.relative_bias import CLASS_ROWS, resize_relative_bias


def fit_positions(
    theirs: Mapping[str, Tensor], model: nn.Module
) -> tuple[dict[str, Tensor], str | None]:
    """Position embeddings and relative position biases of ViT and BEiT, resized.

    Args:
        theirs: tensors of the file under our names; their grids are square.
        model: which says by `position_tables` what it needs.

    Returns:
        The file's tensors, and a sentence of what was resized; None: nothing was. What cannot be
        resized stays, so that a load report shows it.
    """
    fitted, sizes = dict(theirs), set()
    for name, table in _wanted(model).items():
        if name in theirs and (old := _square_grid(theirs[name], table)) is not None:
            fitted[name] = _resized(theirs[name], old, table)
            if fitted[name] is not theirs[name]:
                sizes.add((old, table.grid))
    if not sizes:
        return fitted, None
    changes = ", ".join(f"{a}x{b} to {c}x{d}" for (a, b), (c, d) in sorted(sizes))
    return fitted, f"Position tables are resized from patches of {changes}."


def _wanted(model: nn.Module) -> dict[str, PositionTable]:
    return {
        f"{prefix}.{name}" if prefix else name: table
        for prefix, module in model.named_modules()
        if isinstance(module, HasPositionTables)
        for name, table in module.position_tables().items()
    }


def _square_grid(tensor: Tensor, table: PositionTable) -> tuple[int, int] | None:
    """The grid of a file's table, if it has another number of rows than wanted and is square."""
    height, width = table.grid
    if tensor.ndim != (2 if table.resize == "geometric" else 3):
        return None
    if table.resize == "geometric":
        side, rest = isqrt(max(len(tensor) - CLASS_ROWS, 0)), len(tensor) - CLASS_ROWS
        same = rest == (2 * height - 1) * (2 * width - 1)
        grid = (side + 1) // 2 if side % 2 else 0
    else:
        rest = tensor.shape[1] - 1
        side = grid = isqrt(max(rest, 0))
        same = rest == height * width
    square = side > 0 and side * side == rest
    return (grid, grid) if square and grid and not same else None


def _resized(tensor: Tensor, old: tuple[int, int], table: PositionTable) -> Tensor:
    if table.resize == "geometric":
        return resize_relative_bias(tensor, old, table.grid)
    resized = resize_position_embedding(tensor.float(), old, table.grid, table.resize)
    return resized.to(tensor.dtype)
