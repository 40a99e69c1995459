"""Score the best constant prediction: what any model must beat.

    python tools/constant_baseline.py --train NAME --test NAME [--definitions FILE ...]
        [--config-file FILE] [--kappa N] [--kappas N ... --json FILE]

Semantic: the label of most training pixels, everywhere. Panoptic: one segment of the stuff label
of most training pixels. Labels: ranked by the number of training images that show them; --kappas
tells how many of an image's labels are among the κ first, for several κ. Of videos likewise.

Shapes: K labels, κ selected labels; T frames, h, w their size.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from label_statistics import LabelStatistics
from tabulate import tabulate
from tqdm import tqdm

from rankseg_m2f.config.lookup import read_config
from rankseg_m2f.data.check import label_difference
from rankseg_m2f.data.loader import is_video, load_records
from rankseg_m2f.engine.main import register_datasets
from rankseg_m2f.engine.outputs import check_file
from rankseg_m2f.errors import UserError, add_debug_flag, one_line_errors
from rankseg_m2f.evaluation.ground_truth import GroundTruth, VideoTruth
from rankseg_m2f.evaluation.multi_label import MultiLabelEvaluator
from rankseg_m2f.evaluation.panoptic import PanopticEvaluator
from rankseg_m2f.evaluation.semantic import SemanticEvaluator
from rankseg_m2f.evaluation.vspw import VideoSemanticEvaluator
from rankseg_m2f.files import replacing
from rankseg_m2f.images import read_image
from rankseg_m2f.structures.predictions import LabelMaps, SelectedScores


def constant_baseline(
    train: LabelStatistics,
    test: GroundTruth,
    kappa: int | None = None,
    judge: DatasetEvaluator | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of the best constant prediction, by the evaluators that judge models.

    Args:
        train: labels of the training dataset.
        test: the dataset to predict.
        kappa: κ of recall and coverage; None: K.
        judge: of the test dataset; None: of "labels", and of "sem_seg" and "panoptic_seg" where
            there are maps and panoptic PNGs.

    Returns:
        {task: {metric: value}}.

    Raises:
        UserError: the datasets have different labels.
    """
    if difference := label_difference(train.label_names, test.label_names):
        raise UserError(
            f"datasets {train.name!r} and {test.name!r} have different labels: {difference}"
        )
    judge = default_judge(test) if judge is None else judge
    judge.reset()
    labels = constant_labels(train, kappa)
    for record in tqdm(test.records, desc=test.name):
        judge.process([record], [labels | constant_maps(train, test, record)])
    return judge.evaluate()


def default_judge(test: GroundTruth) -> DatasetEvaluators:
    """Evaluators of what a constant can be judged by."""
    kinds = [MultiLabelEvaluator]
    if test.has_maps:
        video = isinstance(test, VideoTruth)
        kinds.append(VideoSemanticEvaluator if video else SemanticEvaluator)
    if test.has_segments:
        kinds.append(PanopticEvaluator)
    return DatasetEvaluators([kind(test.name, truth=test) for kind in kinds])


def recall_by_kappa(
    train: LabelStatistics, test: GroundTruth, kappas: Sequence[int]
) -> list[dict[str, float]]:
    """Recall and coverage, in percent, when every image gets the κ labels most often trained on.

    Returns:
        {"kappa", "recall", "coverage"} for each κ; no coverage for datasets without maps.
    """
    labels = constant_labels(train)
    evaluator = MultiLabelEvaluator(test.name, truth=test)
    arrays = evaluator.collect({key: evaluator.statistics(key, labels) for key in test.file_names})
    rows = []
    for kappa in kappas:
        found = evaluator.summarise({**arrays, "ranking": arrays["ranking"][:, :kappa]})
        shown = {key: round(found[key], 2) for key in ("recall", "coverage") if key in found}
        rows.append({"kappa": kappa, **shown})
    return rows


def constant_labels(train: LabelStatistics, kappa: int | None = None) -> dict:
    """Labels by the share of images that show them, in the form of a model's result.

    Args:
        kappa: κ; None: K.
    """
    return {
        "label_scores": torch.from_numpy(train.images / len(train.presence)),
        "label_ranking": torch.from_numpy(np.argsort(-train.images, kind="stable")[:kappa]),
    }


def constant_maps(train: LabelStatistics, test: GroundTruth, record: Mapping) -> dict:
    """The most frequent label everywhere, in the form of a model's result.

    Of an image also one panoptic segment, of the most frequent stuff (or thing, where there is no
    stuff); nothing for one without a map. Of a video also one object, of all pixels.

    Args:
        record: of the test dataset.
    """
    amount = train.pixels if train.pixels.any() else train.images
    label = int(amount.argmax())
    if is_video(record):
        height, width = read_image(record["file_names"][0]).shape[:2]
        everywhere = torch.full((len(record["file_names"]), height, width), label)
        return {
            "image_size": (height, width),
            "pred_scores": [1.0],
            "pred_labels": [label],
            "pred_masks": [everywhere >= 0],
            "sem_seg": LabelMaps(everywhere),
        }
    if not test.has_maps:
        return {}
    size = test.size(test.key(record))
    stuff = [i for i in range(len(amount)) if i not in test.thing_ids] or range(len(amount))
    segment = {"id": 1, "isthing": False, "category_id": max(stuff, key=amount.__getitem__)}
    return {
        "sem_seg": SelectedScores(torch.tensor([label]), torch.ones(1, *size)),
        "panoptic_seg": (torch.ones(size, dtype=torch.int32), [segment]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="registered dataset to count labels in")
    parser.add_argument("--test", required=True, help="registered dataset to predict")
    parser.add_argument(
        "--definitions", nargs="*", default=[], help="YAML files as in DATASETS.DEFINITIONS"
    )
    parser.add_argument("--config-file", help="config whose datasets are registered")
    parser.add_argument("--kappa", type=int, help="labels selected (default: TOPK, else all)")
    parser.add_argument(
        "--kappas", type=int, nargs="+", help="recall and coverage for each of them"
    )
    parser.add_argument("--json", type=Path, help="where to write those")
    add_debug_flag(parser)
    arguments = parser.parse_args()
    if arguments.json and not arguments.kappas:
        parser.error("--json is for the table of --kappas")
    with one_line_errors("constant_baseline"):
        if arguments.json:
            check_file(arguments.json, "--json")
        results, rows = score(arguments)
    # Metrics of single labels have a dash in their names.
    short = {
        task: {key: round(value, 4) for key, value in metrics.items() if "-" not in key}
        for task, metrics in results.items()
    }
    print(json.dumps(short, indent=2))
    if rows:
        print(tabulate(rows, headers="keys"))
    if arguments.json:
        found = {"train": arguments.train, "test": arguments.test, "rows": rows}
        with replacing(arguments.json) as path:
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def score(arguments: argparse.Namespace) -> tuple[dict[str, dict[str, float]], list[dict]]:
    """`constant_baseline` and `recall_by_kappa` of the datasets named on the command line."""
    cfg = read_config(arguments.config_file or "")
    cfg.DATASETS.DEFINITIONS = [*cfg.DATASETS.DEFINITIONS, *arguments.definitions]
    register_datasets(cfg)
    names = arguments.train, arguments.test
    train, test = (GroundTruth.from_dataset(name, load_records([name])) for name in names)
    # Both results ask for them, and reading maps is what takes the time.
    test.labels = cache(test.labels)
    counted = LabelStatistics.from_truth(train, progress=tqdm)
    kappa = arguments.kappa or cfg.MODEL.RANKSEG.TOPK or None
    results = constant_baseline(counted, test, kappa)
    return results, recall_by_kappa(counted, test, arguments.kappas or [])


if __name__ == "__main__":
    main()
