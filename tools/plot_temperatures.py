"""Learned 1/τ of each rank, of one or several checkpoints (Fig. 7 of the paper).

    python tools/plot_temperatures.py model_final.pth [NAME=other.pth ...] [--kappa κ] [--png FILE]

The form "layernorm" has standardised logits and a bias beside its 1/τ, so its values compare with
those of its own form alone; "shared" has one value for all ranks. A model whose κ shrank from K
while training has temperatures of later ranks too, which it left early: --kappa leaves them out.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from figures import COLOURS, INK, MARKERS, new_figure, save_figure

from rankseg_m2f.engine.load_report import temperature_form
from rankseg_m2f.engine.weights_file import UnsafeCheckpointError, read_weights

_WEIGHT = "ml_norm.weight"


@dataclass
class Temperatures:
    """Those of one model.

    Attributes:
        form: value of MODEL.RANKSEG.TEMPERATURE.
        weight: (κ + 1,) 1/τ of each rank, no-object last; (1,) when shared.
    """

    form: str
    weight: np.ndarray


def read(path: str | Path, trust: bool = False, kappa: int | None = None) -> Temperatures:
    """Of a checkpoint.

    Args:
        kappa: κ, ranks to keep; None: all.

    Raises:
        ValueError: it has none, or is broken.
        FileNotFoundError, UnsafeCheckpointError: see `read_weights`.
    """
    state = read_weights(path, trust)["model"]
    # Written by programs that save a DistributedDataParallel itself.
    state = {name.removeprefix("module."): value for name, value in state.items()}
    form = temperature_form(state)
    if form is None:
        raise ValueError(f"{path} has no {_WEIGHT}: its model selects no labels")
    weight = state[_WEIGHT].float().numpy()
    if len(weight) > 1:
        weight = np.append(weight[:-1][:kappa], weight[-1])
    return Temperatures(form, weight)


def plot_temperatures(
    runs: Mapping[str, Temperatures], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """1/τ over ranks, a line for each run; that of no-object apart, to the right."""
    figure, (axis,) = new_figure(1, 1, (8, 3.8))
    longest = max(max(len(run.weight) for run in runs.values()) - 1, 1)
    # Room between the ranks and no-object.
    void = longest * 1.06 + 1
    for number, (name, run) in enumerate(runs.items()):
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        label = f"{name} ({run.form})"
        if len(run.weight) == 1:
            axis.plot([1, void], run.weight.repeat(2), linestyle="--", label=label, **style)
            continue
        ranks = np.arange(1, len(run.weight))
        axis.plot(ranks, run.weight[:-1], markersize=4, label=label, **style)
        axis.plot(void, run.weight[-1], markersize=8, **style)
    axis.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    steps = max(1, -(-longest // 8))
    ticks = [1, *range(steps, longest + 1, steps)] if steps > 1 else [*range(1, longest + 1)]
    axis.set_xticks([*ticks, void], [*map(str, ticks), "no-\nobject"])
    axis.set(xlabel="rank of the label, most probable first", ylabel="1/τ (dotted: 1)")
    axis.legend(frameon=False)
    save_figure(figure, path, metadata)


def main(argv: list[str] | None = None) -> str | None:
    """Draw; returns what went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", metavar="[NAME=]FILE")
    parser.add_argument("--kappa", type=int, metavar="κ", help="ranks to show (default: all)")
    parser.add_argument("--png", type=Path, default=Path("temperatures.png"))
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="unpickle the files without restriction; they may run any code",
    )
    arguments = parser.parse_args(argv)
    runs = {}
    try:
        for word in arguments.checkpoints:
            name, _, path = word.rpartition("=")
            runs[name or Path(path).parent.name or path] = read(
                path, arguments.trust_checkpoint, arguments.kappa
            )
    except (OSError, ValueError, UnsafeCheckpointError) as error:
        return f"plot_temperatures: {error}"
    if len(runs) < len(arguments.checkpoints):
        return "plot_temperatures: two files have one name: give each a name as NAME=FILE"
    plot_temperatures(runs, arguments.png)
    for name, run in runs.items():
        print(f"{name}: {run.form}, 1/τ from {run.weight[0]:.3f} to {run.weight[-1]:.3f} (last)")
    print(arguments.png)
    return None


if __name__ == "__main__":
    sys.exit(main())
