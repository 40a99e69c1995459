"""What our figures share: no display, quiet axes, colours that everyone can tell apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rankseg_m2f.files import replacing

# Okabe and Ito's colours, made for colour blindness; black and yellow left out.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, GREY, RULE = "#23272f", "#9aa4b2", "#e6e9ee"
# Beside the colours, for prints in grey.
MARKERS = ("o", "s", "^", "D", "v", "P")


def new_figure(rows: int, columns: int, size: Sequence[float]):
    """A figure and its axes, in one list; `size` is (width, height) in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color=RULE)
        axis.set_axisbelow(True)
    return figure, axes


def save_figure(figure, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a PNG, whole or not at all; `metadata` are its text fields."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata=metadata)
