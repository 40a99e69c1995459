"""What selection, temperature and oracle do to one checkpoint, from one pass of the network.

    python tools/sweep.py --config-file X.yaml [--kappas 5,10,20] [--oracle off] ...
        MODEL.WEIGHTS model_final.pth

The table {kappa} x {selection, temperature, oracle} with all metrics, and the labelled pixels
that are correct, whose label was not selected (missed), whose region is right but has another label
(misclassified), or whose mask is wrong. Settings that the checkpoint cannot serve, such as a kappa
larger than its own with temperatures, are named and left out.

Writes sweep.csv and sweep.png into OUTPUT_DIR/sweep/DATASET, and statistics per image in a folder
for each setting there, which tools/compare_runs.py compares.
"""

import argparse
import csv
from dataclasses import asdict
from pathlib import Path

from figures import COLOURS, MARKERS, new_figure, save_figure
from tabulate import tabulate
from tqdm import tqdm

from rankseg_m2f.engine.config_checks import check_model
from rankseg_m2f.engine.main import load_config
from rankseg_m2f.engine.outputs import check_folder
from rankseg_m2f.engine.sweep import BOTH, Setting, grid, sweep
from rankseg_m2f.errors import add_debug_flag, one_line_errors
from rankseg_m2f.evaluation.error_analysis import OUTCOMES
from rankseg_m2f.files import replacing
from rankseg_m2f.weights.checkpoint import load_model

SWITCH = {"off": (False,), "on": (True,), "both": BOTH}
FIELDS = ("kappa", "selection", "temperature", "oracle")
# What the terminal and the figure show of the metrics.
SHOWN = {
    "panoptic_seg/PQ": "PQ",
    "sem_seg/mIoU": "mIoU",
    "segm/AP": "mask AP",
    "labels/recall": "recall@κ",
    "labels/coverage": "coverage@κ",
}
OUTCOME_COLOURS = dict(zip(OUTCOMES, (COLOURS[2], COLOURS[1], COLOURS[3], COLOURS[0]), strict=True))


def main(argv: list[str] | None = None) -> None:
    """Run the sweep."""
    arguments = parse(argv)
    switches = {key: SWITCH[getattr(arguments, key)] for key in FIELDS[1:]}
    with one_line_errors("sweep"):
        cfg = load_config(arguments.config_file, arguments.opts)
        check_model(cfg)
        check_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR")
        names = [arguments.dataset] if arguments.dataset else cfg.DATASETS.TEST
        model, _ = load_model(cfg, trust=arguments.trust_checkpoint)
        settings, left_out = grid(model, arguments.kappas, **switches)
        for name in names:
            folder = Path(cfg.OUTPUT_DIR) / "sweep" / name
            found = sweep(cfg, model, name, settings, folder, progress=tqdm)
            rows = [row(setting, metrics) for setting, metrics in found.items()]
            write_csv(rows, folder / "sweep.csv")
            draw(rows, name, folder / "sweep.png")
            print(f"\n{name}, the checkpoint's own setting first:\n{table(rows)}\n{folder}")
    for reason in dict.fromkeys(left_out.values()):
        names = [name for name, why in left_out.items() if why == reason]
        print(f"left out {', '.join(names)}: {reason}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="YAML")
    # Comma-separated: overrides would else be taken for more of them.
    parser.add_argument("--kappas", type=numbers, metavar="N,N,...", help="default: five of them")
    for key in FIELDS[1:]:
        parser.add_argument(f"--{key}", choices=SWITCH, default="both")
    parser.add_argument("--dataset", help="registered dataset (default: DATASETS.TEST)")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="unpickle MODEL.WEIGHTS without restriction; it may run any code",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    add_debug_flag(parser)
    return parser.parse_args(argv)


def numbers(text: str) -> list[int]:
    """Integers between commas."""
    return [int(word) for word in text.split(",")]


def row(setting: Setting, results: dict[str, dict[str, float]]) -> dict[str, float | bool]:
    """A line of the table: the setting, and metrics as "task/metric", without those per label."""
    metrics = {
        f"{task}/{metric}": value
        for task, found in results.items()
        for metric, value in found.items()
        if "-" not in metric
    }
    return {**asdict(setting), **metrics}


def write_csv(rows: list[dict], path: Path) -> None:
    """Write the table; what a setting does not have is empty."""
    header = list(dict.fromkeys(key for line in rows for key in line))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def table(rows: list[dict]) -> str:
    """The main columns for the terminal."""
    keys = [key for key in SHOWN if any(key in line for line in rows)]
    keys += [key for key in (f"errors/{o}" for o in OUTCOMES) if key in rows[0]]
    header = [*FIELDS, *(SHOWN.get(key, key.split("/")[1]) for key in keys)]
    lines = [
        [line["kappa"], *("on" if line[f] else "-" for f in FIELDS[1:]), *map(line.get, keys)]
        for line in rows
    ]
    return tabulate(lines, header, floatfmt=".2f")


def draw(rows: list[dict], title: str, path: Path) -> None:
    """Metrics over κ, and the errors."""
    metrics = [key for key in list(SHOWN)[:3] if any(key in line for line in rows)]
    with_errors = "errors/correct" in rows[0]
    columns = len(metrics) + with_errors
    if not columns:
        return
    figure, axes = new_figure(1, columns, (4.2 * columns + 1, 4.2))
    for axis, key in zip(axes, metrics, strict=False):
        draw_metric(axis, rows, key)
    if with_errors:
        draw_errors(axes[-1], rows)
    handles, names = axes[0].get_legend_handles_labels()
    if metrics:
        figure.legend(handles, names, loc="outside lower left", ncols=4, frameon=False)
    figure.suptitle(title)
    save_figure(figure, path)


def draw_metric(axis, rows: list[dict], key: str) -> None:
    """A line over κ for each combination, without a dynamic κ; dashed: no selection."""
    rows = [line for line in rows if not is_dynamic(line)]
    for oracle in BOTH:
        for scaled in BOTH:
            number = 2 * oracle + scaled
            name = combination_name({"temperature": scaled, "oracle": oracle})
            alike = [r for r in rows if (r["temperature"], r["oracle"]) == (scaled, oracle)]
            points = sorted((r["kappa"], r[key]) for r in alike if r["selection"] and key in r)
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    color=COLOURS[number],
                    marker=MARKERS[number],
                    label=name,
                )
            for line in alike:
                if not line["selection"] and key in line:
                    axis.axhline(
                        line[key],
                        color=COLOURS[number],
                        linestyle="--",
                        linewidth=1.2,
                        label=f"{name}, no selection",
                    )
    axis.set(title=SHOWN[key], xlabel="κ, labels selected", ylabel="%")
    axis.xaxis.get_major_locator().set_params(integer=True)


def is_dynamic(line: dict) -> bool:
    """Whether κ of a row of the table differs from image to image."""
    return (line["min_score"], line["mass"]) != (0, 1)


def combination_name(line: dict) -> str:
    """What holds for a row of the table whatever κ is."""
    name = "temperature" if line["temperature"] else "no temperature"
    return f"{name}, oracle" if line["oracle"] else name


def error_bars(rows: list[dict]) -> dict[str, dict]:
    """Rows over a fixed κ that share temperature and oracle with the first, the checkpoint's own.

    Returns:
        By what stands below a row's bar: κ, "all" without selection, "dynamic" the checkpoint's
        own κ where it differs from image to image.
    """
    alike = [line for line in rows if combination_name(line) == combination_name(rows[0])]
    fixed = sorted(
        (line for line in alike if not is_dynamic(line)),
        key=lambda line: (not line["selection"], line["kappa"]),
    )
    bars = {str(line["kappa"]) if line["selection"] else "all": line for line in fixed}
    return bars | ({"dynamic": rows[0]} if is_dynamic(rows[0]) else {})


def draw_errors(axis, rows: list[dict]) -> None:
    """Bars of labelled pixels by outcome, see `error_bars`."""
    bars = error_bars(rows)
    base = [0.0] * len(bars)
    for outcome in OUTCOMES[1:]:
        heights = [line[f"errors/{outcome}"] for line in bars.values()]
        axis.bar(list(bars), heights, bottom=base, color=OUTCOME_COLOURS[outcome], label=outcome)
        base = [low + height for low, height in zip(base, heights, strict=True)]
    axis.set(title="wrong pixels over κ")
    axis.set(xlabel=f"κ, labels selected ({combination_name(rows[0])})")
    # Room for the legend.
    axis.set(ylabel="% of labelled pixels", ylim=(0, 1.2 * max(*base, 1.0)))
    axis.legend(frameon=False, ncols=3, loc="upper center", columnspacing=1, handlelength=1)


if __name__ == "__main__":
    main()
