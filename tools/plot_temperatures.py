"""Learned 1/tau of each rank, of one or several checkpoints (Fig. 7 of the paper).

    python tools/plot_temperatures.py model_final.pth [NAME=other.pth ...] [--kappa N] [--png FILE]

The form "layernorm" has standardised logits and a bias beside its 1/tau, so its values compare
with those of its own form alone; "shared" has one value for all ranks. A model whose kappa shrank
while training has temperatures of later ranks too, which it left early: --kappa leaves them out.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from figures import COLOURS, INK, MARKERS, new_figure, save_figure

from rankseg_m2f.engine.outputs import check_file
from rankseg_m2f.errors import UserError, add_debug_flag, one_line_errors
from rankseg_m2f.weights.file import read_weights
from rankseg_m2f.weights.key_names import our_names
from rankseg_m2f.weights.load_report import temperature_form

_WEIGHT, _BIAS = "ml_norm.weight", "ml_norm.bias"
# Forms in words.
_FORMS = {
    "rank": "a learned 1/τ per rank",
    "layernorm": "LayerNorm over ranks",
    "shared": "one learned 1/τ for all",
}


@dataclass
class Temperatures:
    """Temperatures of one model.

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
        UserError: it has none, or is broken.
        MissingFileError, UnsafeCheckpointError: see `read_weights`.
    """
    state = our_names(read_weights(path, trust)["model"], known=(_WEIGHT, _BIAS))
    form = temperature_form(state)
    if form is None:
        raise UserError(f"{path} has no {_WEIGHT}: its model selects no labels")
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
        label = f"{name}: {_FORMS[run.form]}"
        if len(run.weight) == 1:
            axis.plot([1, void], run.weight.repeat(2), linestyle="--", label=label, **style)
            continue
        ranks = np.arange(1, len(run.weight))
        axis.plot(ranks, run.weight[:-1], markersize=4, label=label, **style)
        axis.plot(void, run.weight[-1], markersize=8, **style)
    axis.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    ticks = rank_ticks(longest)
    axis.set_xticks([*ticks, void], [*map(str, ticks), "no-\nobject"])
    axis.set(xlabel="rank of the label, most probable first", ylabel="1/τ (dotted: 1)")
    axis.legend(frameon=False)
    save_figure(figure, path, metadata)


def rank_ticks(longest: int, most: int = 8) -> list[int]:
    """Ranks to name on an axis: the first, the last, and some evenly between them."""
    return np.unique(np.linspace(1, longest, min(longest, most)).round().astype(int)).tolist()


def describe(run: Temperatures) -> str:
    """The form, and 1/τ of the first rank, the last, and no-object; or of all."""
    if len(run.weight) == 1:
        return f"{run.form}, 1/τ of all ranks and no-object {run.weight[0]:.3f}"
    last = len(run.weight) - 1
    return (
        f"{run.form}, 1/τ of rank 1 {run.weight[0]:.3f}, of rank {last} (last) "
        f"{run.weight[-2]:.3f}, of no-object {run.weight[-1]:.3f}"
    )


def main(argv: list[str] | None = None) -> None:
    """Draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", metavar="[NAME=]FILE")
    parser.add_argument("--kappa", type=int, metavar="N", help="ranks to show (default: all)")
    parser.add_argument("--png", type=Path, default=Path("temperatures.png"))
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="unpickle the files without restriction; they may run any code",
    )
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    runs = {}
    with one_line_errors("plot_temperatures"):
        check_file(arguments.png, "--png")
        for word in arguments.checkpoints:
            name, _, path = word.rpartition("=")
            runs[name or Path(path).parent.name or path] = read(
                path, arguments.trust_checkpoint, arguments.kappa
            )
        if len(runs) < len(arguments.checkpoints):
            raise UserError("two files have one name: give each a name as NAME=FILE")
        plot_temperatures(runs, arguments.png)
    for name, run in runs.items():
        print(f"{name}: {describe(run)}")
    print(arguments.png)


if __name__ == "__main__":
    main()
