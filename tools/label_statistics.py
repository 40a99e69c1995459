"""Which labels the images or clips of a dataset show, and how many (Fig. 2 of the paper).

    python tools/label_statistics.py NAME ... [--definitions FILE ...] [--output FOLDER]

Writes NAME.json and NAME.png: labels per image as histogram and cumulative distribution, how many
images show each label, and which of the most frequent labels are seen together. Crowds count.

Shapes: N images or clips, K labels, M most frequent labels.
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from figures import COLOURS, INK, new_figure, save_figure
from tqdm import tqdm

from rankseg_m2f.config import get_cfg
from rankseg_m2f.data.loader import load_records
from rankseg_m2f.engine.main import register_datasets
from rankseg_m2f.engine.outputs import check_folder
from rankseg_m2f.errors import add_debug_flag, one_line_errors
from rankseg_m2f.evaluation.ground_truth import GroundTruth
from rankseg_m2f.files import replacing


@dataclass
class LabelStatistics:
    """What a dataset shows.

    Attributes:
        name: the dataset.
        unit: "image" or "clip".
        label_names: K names.
        presence: (N, K) bool.
        pixels: (K,) int64; zeros without maps.
    """

    name: str
    unit: str
    label_names: list[str]
    presence: np.ndarray
    pixels: np.ndarray

    @classmethod
    def from_truth(
        cls, truth: GroundTruth, jobs: int = 8, progress: Callable = iter
    ) -> "LabelStatistics":
        """From annotations.

        Args:
            jobs: threads that read maps.
            progress: wraps the images' keys, as tqdm does.
        """
        keys = truth.file_names
        presence = np.zeros((len(keys), truth.num_labels), dtype=bool)
        pixels = np.zeros(truth.num_labels, dtype=np.int64)
        with ThreadPoolExecutor(jobs) as pool:
            found = pool.map(truth.labels, progress(keys))
            for row, (labels, areas) in zip(presence, found, strict=True):
                row[labels] = True
                pixels[labels] += areas
        return cls(truth.name, truth.unit, truth.label_names, presence, pixels)

    @property
    def histogram(self) -> np.ndarray:
        """Number of images with 0, 1, 2, ... labels, up to the most there are."""
        return np.bincount(self.presence.sum(1))

    @property
    def images(self) -> np.ndarray:
        """(K,) images that show each label."""
        return self.presence.sum(0)

    def most_frequent(self, count: int) -> np.ndarray:
        """(M,) label ids by descending number of images; M is `count` or fewer."""
        order = np.argsort(-self.images, kind="stable")[:count]
        return order[self.images[order] > 0]

    def together(self, labels: np.ndarray) -> np.ndarray:
        """(M, M) int64: images that show both labels; those that show a label, on the diagonal."""
        shown = self.presence[:, labels].astype(np.int64)
        return shown.T @ shown

    def as_dict(self, most: int) -> dict:
        """All numbers, for JSON; co-occurrence of the `most` most frequent labels."""
        histogram, per_image = self.histogram, self.presence.sum(1)
        order, often = self.most_frequent(len(self.label_names)), self.most_frequent(most)
        return {
            "dataset": self.name,
            "unit": self.unit,
            "count": len(self.presence),
            "labels": len(self.label_names),
            "labels_seen": len(order),
            "labels_per_unit": {
                "mean": float(per_image.mean()),
                "median": float(np.median(per_image)),
                "most": int(per_image.max()),
                "histogram": histogram.tolist(),
                "cumulative_percent": (100 * histogram.cumsum() / histogram.sum()).tolist(),
            },
            "frequency": [
                {
                    "label": self.label_names[i],
                    "id": int(i),
                    f"{self.unit}s": int(self.images[i]),
                    "pixels": int(self.pixels[i]),
                }
                for i in np.argsort(-self.images, kind="stable")
            ],
            "together": {
                "labels": [self.label_names[i] for i in often],
                f"{self.unit}s": self.together(often).tolist(),
            },
        }


def draw(found: LabelStatistics, path: Path, most: int = 20) -> None:
    """Three panels; see the module."""
    figure, axes = new_figure(1, 3, (17, 5.6))
    draw_labels_per_image(axes[0], found)
    draw_frequency(axes[1], found)
    draw_together(figure, axes[2], found, most)
    figure.suptitle(f"{found.name}: {len(found.presence)} {found.unit}s")
    save_figure(figure, path)


def draw_labels_per_image(axis, found: LabelStatistics) -> None:
    """Histogram as bars, cumulative distribution as line, both in percent."""
    share = 100 * found.histogram / len(found.presence)
    numbers = np.arange(len(share))
    axis.bar(numbers, share, color=COLOURS[5], label="exactly this many")
    axis.plot(
        numbers, share.cumsum(), color=COLOURS[1], marker="o", ms=3, label="at most this many"
    )
    mean = found.presence.sum(1).mean()
    axis.set(
        title=f"labels per {found.unit}: {mean:.1f} of {len(found.label_names)} on average",
        xlabel="number of labels",
        ylabel=f"% of {found.unit}s",
        ylim=(0, 105),
    )
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False, loc="upper left")


def draw_frequency(axis, found: LabelStatistics, named: int = 5) -> None:
    """Images of each label, most frequent first; the first and last few by name."""
    order = found.most_frequent(len(found.label_names))
    images = found.images[order]
    ranks = np.arange(1, len(order) + 1)
    axis.fill_between(ranks, images, 0.5, color=COLOURS[5], alpha=0.5)
    axis.plot(ranks, images, color=COLOURS[0], marker="o", markersize=3)
    never = len(found.label_names) - len(order)
    axis.set(
        title=f"{found.unit}s per label" + (f"; {never} labels are never seen" if never else ""),
        xlabel="labels, most frequent first",
        ylabel=f"{found.unit}s (logarithmic)",
        yscale="log",
        # Room for the names: the curve has the lower 65 % of the height.
        ylim=(0.5, 0.5 * (2 * max(images, default=1)) ** (1 / 0.65)),
    )
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(lambda value, _: "")
    columns = {"most frequent": (0.02, order[:named]), "least frequent": (0.52, order[-named:])}
    for title, (left, ids) in columns.items():
        names = [f"{short(found.label_names[i])}: {found.images[i]}" for i in ids]
        text = "\n".join([title, *names])
        axis.text(left, 0.98, text, transform=axis.transAxes, va="top", fontsize=8, color=INK)


def draw_together(figure, axis, found: LabelStatistics, most: int) -> None:
    """Of the images that show the row's label, the share that shows the column's."""
    labels = found.most_frequent(most)
    if not len(labels):
        axis.set_axis_off()
        return
    together = found.together(labels)
    share = 100 * together / np.maximum(together.diagonal()[:, None], 1)
    picture = axis.imshow(share, cmap="cividis", vmin=0, vmax=100)
    names = [short(found.label_names[i]) for i in labels]
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.grid(False)
    axis.set_title("seen together")
    text = f"% of {found.unit}s with the row's label\nthat show the column's too"
    figure.colorbar(picture, ax=axis, shrink=0.8, label=text)


def short(name: str, longest: int = 22) -> str:
    """A name that leaves room for the figure."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def main(argv: list[str] | None = None) -> None:
    """Write both files of each dataset."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="registered dataset")
    parser.add_argument(
        "--definitions", nargs="*", default=[], help="YAML files as in DATASETS.DEFINITIONS"
    )
    parser.add_argument("--output", type=Path, default=Path("output/label_statistics"))
    parser.add_argument("--most", type=int, default=20, help="labels to show together")
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    cfg = get_cfg()
    cfg.DATASETS.DEFINITIONS = arguments.definitions
    with one_line_errors("label_statistics"):
        check_folder(arguments.output, "--output")
        register_datasets(cfg)
        for name in arguments.names:
            truth = GroundTruth.from_dataset(name, load_records([name]))
            found = LabelStatistics.from_truth(truth, progress=tqdm)
            content = found.as_dict(arguments.most)
            with replacing(arguments.output / f"{name}.json") as path:
                path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            draw(found, arguments.output / f"{name}.png", arguments.most)
            print(sentence_of(content), arguments.output / f"{name}.png", sep="\n")


def sentence_of(content: dict) -> str:
    """The main numbers in words."""
    labels, unit = content["labels_per_unit"], content["unit"]
    reached = np.searchsorted(labels["cumulative_percent"], 99)
    return (
        f"{content['dataset']}: {content['count']} {unit}s show {labels['mean']:.1f} of "
        f"{content['labels']} labels on average; 99 % of them at most {reached}, all of them at "
        f"most {labels['most']}; {content['labels'] - content['labels_seen']} labels are never seen"
    )


if __name__ == "__main__":
    main()
