"""The figure of benchmarks/large_vocabulary.py: what many labels cost, κ of them and all."""

import itertools
from collections.abc import Mapping
from pathlib import Path

from figures import COLOURS, INK, new_figure, save_figure


def pairs(rows: list[dict]) -> dict[str, dict[int, list[dict]]]:
    """Image size -> K -> the row of κ and that of κ = K."""
    return {
        picture: {
            num_labels: list(found)
            for num_labels, found in itertools.groupby(same, lambda row: row["labels"])
        }
        for picture, same in itertools.groupby(rows, lambda row: row["size"])
    }


def draw_vocabulary_costs(
    content: dict, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Bars of peak memory and time, a panel for each image size.

    Args:
        content: what the benchmark writes.
        path: of the PNG.
        metadata: its text fields.
    """
    found = pairs(content["rows"])
    figure, axes = new_figure(2, len(found), (4.6 * len(found), 6))
    names = (f"κ = {content['kappa']}", "κ = K")
    quantities = (("peak_bytes", 2**30, "peak memory, GiB"), ("seconds", 1, "seconds an image"))
    panels = itertools.product(quantities, found.items())
    for axis, ((field, unit, title), (size, by_labels)) in zip(axes, panels, strict=True):
        for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
            places = [place + (i - 0.5) * 0.38 for place in range(len(by_labels))]
            values = [rows[i][field] / unit for rows in by_labels.values()]
            bars = axis.bar(places, values, width=0.36, color=colour, label=name)
            axis.bar_label(bars, fmt="%.1f", fontsize=8, color=INK, padding=2)
        axis.set_xticks(range(len(by_labels)), [f"K = {k:,}" for k in by_labels])
        axis.set_title(f"{size.replace('x', ' × ')}: {title}", fontsize=10, color=INK)
        axis.margins(y=0.12)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2, frameon=False)
    figure.supxlabel(content["machine"], fontsize=8, color=INK)
    save_figure(figure, path, metadata)
