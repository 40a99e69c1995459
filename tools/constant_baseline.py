"""Score the best constant prediction: what any model must beat.

    python tools/constant_baseline.py --train NAME --test NAME [--definitions FILE ...]
        [--config-file FILE] [--kappa N] [--kappas N ... --json FILE]

Semantic: the label of most training pixels, everywhere. Panoptic: one segment of the stuff label
of most training pixels. Labels: ranked by the number of training images that show them; --kappas
tells how many of a picture's labels are among the κ first, for several κ.

Shapes: K labels, κ selected labels; h, w image size.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import Metadata, MetadataCatalog
from tabulate import tabulate
from tqdm import tqdm

from rankseg_m2f.config import get_cfg
from rankseg_m2f.data.check import label_difference
from rankseg_m2f.data.loader import load_records
from rankseg_m2f.evaluation.ground_truth import GroundTruth
from rankseg_m2f.evaluation.labels import MultiLabelEvaluator
from rankseg_m2f.evaluation.panoptic import PanopticEvaluator
from rankseg_m2f.evaluation.semantic import SemanticEvaluator
from rankseg_m2f.files import replacing
from rankseg_m2f.structures.predictions import SelectedScores


def constant_baseline(
    train_records: Sequence[dict],
    test_records: Sequence[dict],
    metadata: Metadata | Mapping,
    kappa: int | None = None,
    train_metadata: Metadata | Mapping | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of the best constant prediction, by the evaluators that judge models.

    Args:
        train_records: Detectron2 dataset dicts from which labels are counted.
        test_records: the same of the images to predict.
        metadata: of the test dataset; from Detectron2's catalog or a dict of the same keys.
        kappa: κ of recall and coverage; None: K.
        train_metadata: of the training dataset; None: the same.

    Returns:
        {task: {metric: value}} for "labels", for "sem_seg" when there are maps, and for
        "panoptic_seg" when there are panoptic PNGs.

    Raises:
        ValueError: the datasets have different labels, or one has no records.
    """
    train_metadata = metadata if train_metadata is None else train_metadata
    train = GroundTruth(train_metadata.get("name", "train"), train_records, train_metadata)
    test = GroundTruth(metadata.get("name", "test"), test_records, metadata)
    if difference := label_difference(train.label_names, test.label_names):
        raise ValueError(
            f"datasets {train.name!r} and {test.name!r} have different labels: {difference}"
        )
    images, pixels = count_labels(train)
    evaluators = [MultiLabelEvaluator(test.name, truth=test)]
    if test.has_maps:
        evaluators.append(SemanticEvaluator(test.name, truth=test))
    if "pan_seg_file_name" in test_records[0]:
        evaluators.append(PanopticEvaluator(test.name, truth=test))
    labels = constant_labels(images, len(train.file_names), kappa)
    for file_name in tqdm(test.file_names, desc=test.name):
        prediction = dict(labels)
        if test.has_maps:
            prediction.update(constant_maps(pixels, test.thing_ids, test.size(file_name)))
        for evaluator in evaluators:
            evaluator.process([{"file_name": file_name}], [prediction])
    results: dict[str, dict[str, float]] = {}
    for evaluator in evaluators:
        results.update(evaluator.evaluate())
    return results


def recall_by_kappa(
    train: GroundTruth, test: GroundTruth, kappas: Sequence[int]
) -> list[dict[str, float]]:
    """Recall and coverage, in percent, when every picture gets the κ labels most often trained on.

    Returns:
        {"kappa", "recall", "coverage"} for each κ; no coverage for datasets without maps.
    """
    images, _ = count_labels(train)
    labels = constant_labels(images, len(train.file_names))
    evaluator = MultiLabelEvaluator(test.name, truth=test)
    read = tqdm(test.file_names, desc=test.name)
    arrays = evaluator.collect({name: evaluator.statistics(name, labels) for name in read})
    rows = []
    for kappa in kappas:
        found = evaluator.summarise({**arrays, "ranking": arrays["ranking"][:, :kappa]})
        shown = {key: round(found[key], 2) for key in ("recall", "coverage") if key in found}
        rows.append({"kappa": kappa, **shown})
    return rows


def count_labels(truth: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """Images that show each label, and pixels of it: (K,) int64 each."""
    images = np.zeros(truth.num_labels, dtype=np.int64)
    pixels = np.zeros_like(images)
    for file_name in tqdm(truth.file_names, desc=truth.name):
        labels, areas = truth.labels(file_name)
        images[labels] += 1
        pixels[labels] += areas
    return images, pixels


def constant_labels(images: np.ndarray, total: int, kappa: int | None = None) -> dict:
    """Labels by the share of pictures that show them, in the form of a model's result.

    Args:
        images: (K,) of `total` that show each label.
        kappa: κ; None: K.
    """
    return {
        "label_scores": torch.from_numpy(images / total),
        "label_ranking": torch.from_numpy(np.argsort(-images, kind="stable")[:kappa]),
    }


def constant_maps(pixels: np.ndarray, thing_ids: set[int], size: tuple[int, int]) -> dict:
    """One label everywhere, in the form of a model's result.

    Args:
        pixels: (K,) of each label; the most frequent one is taken, and for the panoptic segment
            the most frequent stuff (or thing, where there is no stuff).
        size: (h, w).
    """
    stuff = [i for i in range(len(pixels)) if i not in thing_ids] or range(len(pixels))
    segment = {"id": 1, "isthing": False, "category_id": max(stuff, key=pixels.__getitem__)}
    return {
        "sem_seg": SelectedScores(torch.tensor([pixels.argmax()]), torch.ones(1, *size)),
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
    arguments = parser.parse_args()
    if arguments.json and not arguments.kappas:
        parser.error("--json is for the table of --kappas")
    try:
        results, rows = score(arguments)
    except (KeyError, ValueError, OSError, AssertionError) as error:
        # Python would put the text of a KeyError in quotes.
        message = error.args[0] if isinstance(error, KeyError) else error
        sys.exit(f"constant_baseline: {message}")
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
    # Only the command line needs datasets registered, and with them the whole engine.
    from rankseg_m2f.engine.config_files import find_config
    from rankseg_m2f.engine.main import register_datasets

    cfg = get_cfg()
    if arguments.config_file:
        cfg.merge_from_file(str(find_config(arguments.config_file)))
    cfg.DATASETS.DEFINITIONS = [*cfg.DATASETS.DEFINITIONS, *arguments.definitions]
    register_datasets(cfg)
    train, test = load_records([arguments.train]), load_records([arguments.test])
    of_train, of_test = map(MetadataCatalog.get, (arguments.train, arguments.test))
    kappa = arguments.kappa or cfg.MODEL.RANKSEG.TOPK or None
    results = constant_baseline(train, test, of_test, kappa, of_train)
    if not arguments.kappas:
        return results, []
    truths = GroundTruth(of_train.name, train, of_train), GroundTruth(of_test.name, test, of_test)
    return results, recall_by_kappa(*truths, arguments.kappas)


if __name__ == "__main__":
    main()
