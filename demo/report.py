"""A page about one training run: figures, curves, temperatures, validation images."""

import html
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plot_temperatures as temperatures
from detectron2.data import DatasetCatalog
from figures import new_figure
from PIL import Image, ImageDraw
from tqdm import tqdm
from visualise import (
    INK,
    Labels,
    draw_ranking,
    draw_regions,
    font,
    panoptic_regions,
    regions_of,
    side_by_side,
)

from rankseg_m2f.engine.predictor import Predictor
from rankseg_m2f.images import read_image, read_panoptic_map

# Key in metrics.json, its name, what it says.
METRICS = (
    ("sem_seg/mIoU", "mIoU", "semantic: intersection over union, mean of labels"),
    ("panoptic_seg/PQ", "PQ", "panoptic quality, mean of labels"),
    ("segm/AP", "mask AP", "instances: COCO average precision"),
    ("labels/mAP", "label mAP", "multi-label head: average precision, mean of labels"),
    ("labels/recall", "recall@κ", "labels present that are among the κ selected"),
    ("labels/coverage", "coverage@κ", "ground-truth pixels whose label is selected"),
)
_SIDE = 320
_STYLE = """
body { font: 15px/1.55 system-ui, sans-serif; color: #23272f; max-width: 1400px;
       margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .35rem .9rem; border-bottom: 1px solid #dee2e8; text-align: left; }
td.figure, th.figure { text-align: right; font-variant-numeric: tabular-nums; }
td.ours { font-weight: 600; } .note { color: #5b6472; } img { max-width: 100%; }
pre { background: #f4f6f8; padding: .7rem 1rem; overflow-x: auto; border-radius: 6px; }
"""


@dataclass
class Run:
    """One run's log.

    Attributes:
        losses: loss name -> (iterations, values).
        metrics: metric key -> (iterations, values), at each evaluation.
    """

    losses: dict[str, tuple[list[int], list[float]]]
    metrics: dict[str, tuple[list[int], list[float]]]

    @classmethod
    def read(cls, path: Path) -> "Run":
        """From Detectron2's metrics.json; later lines replace those a resumed run repeated."""
        rows = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.setdefault(row["iteration"], {}).update(row)
        run = cls({}, {})
        for iteration, row in sorted(rows.items()):
            for key, value in row.items():
                series = run.metrics if "/" in key else run.losses if "loss" in key else None
                if series is not None:
                    steps, values = series.setdefault(key, ([], []))
                    steps.append(iteration)
                    values.append(value)
        return run

    def last(self, key: str) -> float | None:
        """The metric at the last evaluation."""
        return self.metrics[key][1][-1] if key in self.metrics else None


def write_report(cfg, folder: Path, baseline: dict, facts: dict[str, str]) -> Path:
    """Write report.html and its images into `folder`.

    Args:
        cfg: config of the run, MODEL.WEIGHTS its final weights.
        baseline: metrics of the constant prediction, by task.
        facts: lines for the "how" table.
    """
    pictures = folder / "report"
    pictures.mkdir(exist_ok=True)
    run = Run.read(folder / "metrics.json")
    predictor = Predictor(cfg)
    plot_curves(run, pictures / "curves.png")
    parts = [
        "<h1>Mask2Former + RankSeg on the built-in scenes</h1>",
        f"<p class=note>{html.escape(_summary(cfg))}</p>",
        _table(run, baseline),
        "<h2>Training</h2><img src=report/curves.png>",
    ]
    if predictor.model.ml_norm is not None:
        kappa = predictor.model.policy.kappa
        run_of = {"this run": temperatures.read(cfg.MODEL.WEIGHTS, kappa=kappa)}
        temperatures.plot_temperatures(run_of, pictures / "temperatures.png")
        parts.append(
            "<h2>Learned 1/τ per rank</h2><p>One learnable factor per rank of the label, no-object "
            "last (Fig. 7 of the paper). Labels the multi-label head ranks first are trusted "
            "more.</p><img src=report/temperatures.png>"
        )
    parts.append(
        "<h2>Validation images</h2><p>Ground truth, prediction, and the labels the multi-label "
        "head ranks highest with their probability (Fig. 1 of the paper).</p>"
    )
    names = draw_validation(cfg.DATASETS.TEST[0], predictor, pictures)
    parts += [f"<p><img src=report/{name}></p>" for name in names]
    rows = "".join(
        f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in facts.items()
    )
    parts.append(f"<h2>How</h2><table>{rows}</table>")
    page = folder / "report.html"
    page.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>RankSeg demo</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>",
        encoding="utf-8",
    )
    return page


def metric_rows(run: Run, baseline: dict) -> list[tuple[str, str, float, float | None]]:
    """(name, meaning, ours, constant prediction) of each metric the run has."""
    rows = []
    for key, name, meaning in METRICS:
        ours = run.last(key)
        if ours is not None:
            task, metric = key.split("/")
            rows.append((name, meaning, ours, baseline.get(task, {}).get(metric)))
    return rows


def plot_curves(run: Run, path: Path) -> None:
    """Losses to the left, metrics to the right."""
    figure, (left, right) = new_figure(1, 2, (11, 3.6))
    for key in ("loss_ce", "loss_mask", "loss_dice", "loss_ml"):
        if key in run.losses:
            left.plot(*run.losses[key], label=key)
    left.set(title="losses of the final layer", xlabel="iteration", yscale="log")
    left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.yaxis.set_minor_formatter(lambda value, _: "")
    for key, name, _ in METRICS[:4]:
        if key in run.metrics:
            right.plot(*run.metrics[key], marker="o", label=name)
    right.set(title="validation", xlabel="iteration", ylim=(0, 100))
    for axis in (left, right):
        axis.legend(frameon=False)
    figure.savefig(path, dpi=110)


def draw_validation(dataset: str, predictor: Predictor, folder: Path, count: int = 8) -> list[str]:
    """Strips of image, truth, prediction and ranking, spread over the dataset; file names."""
    records = DatasetCatalog.get(dataset)
    labels = Labels.from_datasets([dataset])
    picked = np.linspace(0, len(records) - 1, min(count, len(records))).astype(int)
    names = []
    for number, index in enumerate(tqdm(picked, desc="pictures")):
        names.append(f"val_{number}.png")
        _strip(records[index], predictor, labels).save(folder / names[-1])
    return names


def _strip(record: dict, predictor: Predictor, labels: Labels) -> Image.Image:
    image = read_image(record["file_name"])
    result = predictor(image)
    truth = panoptic_regions(
        read_panoptic_map(record["pan_seg_file_name"]), record["segments_info"], labels
    )
    enlarged = np.asarray(Image.fromarray(image).resize((_SIDE, _SIDE)))
    strip = [_titled(Image.fromarray(enlarged), "image")]
    for title, regions in (("ground truth", truth), ("prediction", regions_of(result, labels))):
        for region in regions:
            grown = Image.fromarray(region.mask).resize((_SIDE, _SIDE), Image.NEAREST)
            region.mask = np.asarray(grown)
        strip.append(_titled(draw_regions(enlarged, regions, labels), title))
    if "label_scores" in result:
        strip.append(
            draw_ranking(
                result["label_scores"].cpu().numpy(),
                result["label_ranking"].cpu().numpy(),
                labels,
                (380, _SIDE + 22),
                present={s["category_id"] for s in record["segments_info"]},
            )
        )
    return side_by_side(strip)


def _titled(picture: Image.Image, title: str) -> Image.Image:
    framed = Image.new("RGB", (picture.width, picture.height + 22), (255, 255, 255))
    framed.paste(picture, (0, 22))
    ImageDraw.Draw(framed).text((2, 3), title, INK, font(13))
    return framed


def _summary(cfg) -> str:
    node = cfg.MODEL.RANKSEG
    kind = f"RankSeg with κ = {node.TOPK}" if node.FLAG else "no RankSeg"
    return (
        f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES} labels, {kind}; {cfg.SOLVER.MAX_ITER} iterations of "
        f"{cfg.SOLVER.IMS_PER_BATCH} images."
    )


def _table(run: Run, baseline: dict) -> str:
    rows = [
        f"<tr><td><b>{name}</b></td><td class='figure ours'>{ours:.1f}</td>"
        f"<td class=figure>{'–' if constant is None else f'{constant:.1f}'}</td>"
        f"<td class=note>{meaning}</td></tr>"
        for name, meaning, ours, constant in metric_rows(run, baseline)
    ]
    head = (
        "<tr><th>validation, %</th><th class=figure>model</th>"
        "<th class=figure>best constant prediction</th><th></th></tr>"
    )
    return f"<table>{head}{''.join(rows)}</table>"
