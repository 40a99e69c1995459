"""Whether run A is better than run B, or the difference is noise.

    python tools/compare_runs.py --a output/rankseg --b output/baseline
    python tools/compare_runs.py --a output/rankseg/seed* --b output/baseline/seed*

Reads the statistics per image that an evaluation leaves in OUTPUT_DIR/inference/DATASET (or a
sweep in a setting's folder), draws images with replacement, the same for all runs, and computes
the metrics anew from each draw by the evaluators' own code. With several runs (seeds) on a side
the intervals hold for other seeds too; with one, for other images alone. Are both sides the same
trained models, in the same order, judged in two ways? Say --same-models: intervals are narrower.
"""

import argparse
import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from figures import COLOURS, GREY, INK, new_figure, save_figure

from rankseg_m2f.engine.outputs import check_file
from rankseg_m2f.errors import UserError, add_debug_flag, one_line_errors
from rankseg_m2f.evaluation.bootstrap import KINDS, Comparison, SavedStatistics, compare
from rankseg_m2f.files import replacing


def main(argv: list[str] | None = None) -> None:
    """Compare and report."""
    arguments = parse(argv)
    with one_line_errors("compare_runs"):
        for flag in ("json", "png"):
            if path := getattr(arguments, flag):
                check_file(path, f"--{flag}")
        compared = compare_folders(
            arguments.a,
            arguments.b,
            arguments.dataset,
            arguments.resamples,
            arguments.seed,
            arguments.same_models,
        )
        names = tuple(arguments.names)
        print(text(compared, names))
        if arguments.json:
            write_json(compared, names, arguments)
        if arguments.png:
            draw(compared, names, arguments.png)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for side in "ab":
        parser.add_argument(
            f"--{side}", nargs="+", type=Path, required=True, metavar="FOLDER", help="runs"
        )
    parser.add_argument("--dataset", help="needed when the runs have several")
    parser.add_argument("--names", nargs=2, default=["A", "B"], metavar=("A", "B"))
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the resamples")
    parser.add_argument(
        "--same-models", action="store_true", help="runs of A and B, in their order"
    )
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--png", type=Path, help="draw the intervals here")
    add_debug_flag(parser)
    return parser.parse_args(argv)


def compare_folders(
    first: Sequence[Path],
    second: Sequence[Path],
    dataset: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    same_models: bool = False,
    kinds: Container[str] = KINDS,
    read: Callable[[Path], SavedStatistics] = SavedStatistics.read,
) -> list[Comparison]:
    """`compare` of every kind of statistics that all runs have.

    Args:
        first: folders of the runs of one side.
        second: of the other.
        kinds: those of KINDS to compare.
        read: from a file; of use where it remembers runs that are compared with many.

    Raises:
        UserError: fewer than 2 resamples; no statistics, several datasets, or none in common.
    """
    if resamples < 2:
        raise UserError(f"--resamples {resamples}: an interval needs 2 or more, better 1000")
    files = {folder: statistics_of(folder, dataset) for folder in (*first, *second)}
    common = [
        name
        for name in files[first[0]]
        if name.partition("_")[0] in kinds and all(name in f for f in files.values())
    ]
    if not common:
        found = "; ".join(f"{folder}: {', '.join(f)}" for folder, f in files.items())
        raise UserError(f"the runs have no statistics in common: {found}")
    if len({name.partition("_")[2] for name in common}) > 1:
        raise UserError(f"choose one --dataset of {', '.join(common)}")
    return [
        comparison
        for name in common
        for comparison in compare(
            *([read(files[f][name]) for f in side] for side in (first, second)),
            resamples,
            seed,
            same_models,
        )
    ]


def statistics_of(folder: Path, dataset: str | None = None) -> dict[str, Path]:
    """Files of a run by "kind_dataset", in the order of KINDS.

    Args:
        folder: an OUTPUT_DIR, or the folder with the files themselves.

    Raises:
        UserError: there are none.
    """
    paths = [*folder.glob("per_image_*.npz"), *folder.glob("inference/*/per_image_*.npz")]
    names = {path.stem.removeprefix("per_image_"): path for path in sorted(paths)}
    found = {
        name: path
        for kind in KINDS
        for name, path in names.items()
        if name.partition("_")[0] == kind and dataset in (None, name.partition("_")[2])
    }
    if not found:
        of_dataset = f" of dataset {dataset}" if dataset else ""
        raise UserError(
            f"{folder} has no per_image_*.npz{of_dataset}, neither there nor in inference/*: "
            "evaluate the run with --eval-only"
        )
    return found


def text(compared: Sequence[Comparison], names: tuple[str, str]) -> str:
    """A line for each metric."""
    width = max(len(c.metric) for c in compared)
    lines = [
        f"{c.metric:{width}}  "
        + "   ".join(f"{n} {spread(v)}" for n, v in zip(names, c.values, strict=True))
        + f"   {c.verdict(names)}"
        for c in compared
    ]
    return "\n".join([*lines, scope(compared[0], names)])


def spread(values: Sequence[float]) -> str:
    """Mean and, of several runs, their standard deviation."""
    mean = f"{np.mean(values):6.2f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.2f}"


def scope(comparison: Comparison, names: tuple[str, str]) -> str:
    """What the intervals take into account."""
    runs = [len(values) for values in comparison.values]
    if max(runs) == 1:
        return "one run on a side: intervals are over images, and say nothing about other seeds"
    if min(runs) == 1:
        several, one = names if runs[1] == 1 else names[::-1]
        return (
            f"intervals are over images and {several}'s {max(runs)} runs; {one} has one, "
            "whose seed is not accounted for"
        )
    return f"intervals are over images and over {runs[0]} and {runs[1]} runs"


def write_json(
    compared: Sequence[Comparison], names: tuple[str, str], arguments: argparse.Namespace
) -> None:
    """Write all numbers, and how they came about."""
    content = {
        "names": names,
        "runs": [[str(folder) for folder in side] for side in (arguments.a, arguments.b)],
        "resamples": arguments.resamples,
        "seed": arguments.seed,
        "scope": scope(compared[0], names),
        "metrics": [
            {**asdict(c), "distinguishable": c.distinguishable, "verdict": c.verdict(names)}
            for c in compared
        ],
    }
    with replacing(arguments.json) as path:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def draw(compared: Sequence[Comparison], names: tuple[str, str], path: Path) -> None:
    """Differences with their intervals; grey where noise could have made them."""
    figure, (axis,) = new_figure(1, 1, (7.5, 1.4 + 0.32 * len(compared)))
    draw_differences(axis, {comparison.metric: comparison for comparison in compared})
    axis.set(
        xlabel=f"{names[0]} minus {names[1]}, percentage points",
        title="95 % intervals; grey: not distinguishable from noise",
    )
    save_figure(figure, path)


def draw_differences(axis, compared: Mapping[str, Comparison]) -> None:
    """A difference with its interval for each name, downwards; grey where noise could make it."""
    for place, comparison in enumerate(compared.values()):
        colour = COLOURS[0] if comparison.distinguishable else GREY
        axis.plot(comparison.interval, [place, place], color=colour, linewidth=2.5)
        axis.plot(comparison.difference, place, "o", color=colour)
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.set_yticks(range(len(compared)), list(compared))
    axis.set_ylim(len(compared) - 0.5, -0.5)
    axis.grid(False)


if __name__ == "__main__":
    main()
