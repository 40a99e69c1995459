"""Walks a dataset through the public doors: registration, check, loading, mapping, evaluation."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from kinds_made import NAME, SIZE, Made

from rankseg_m2f.config import get_cfg
from rankseg_m2f.data.check import check_dataset
from rankseg_m2f.data.datasets.definitions import register_definitions
from rankseg_m2f.data.loader import load_records
from rankseg_m2f.data.mappers import build_mapper
from rankseg_m2f.data.video_mappers import build_video_mapper
from rankseg_m2f.errors import UserError
from rankseg_m2f.evaluation.build import build_evaluator

DOORS = ("register", "check", "load", "map", "evaluate")
# No percentages; and one track is not all of a video's.
_COUNTS = {"kappa", "clip_frames", "AR1"}


@dataclass
class Walk:
    """What each door gave.

    Attributes:
        problems, remarks: of the check.
        refusals: by door, the sentence that ended it.
        records: how many were loaded; -1: none were.
        mapped: by name of image or video, [(label, mask)] as training gets them.
        results: of the evaluators for the truth as prediction.
    """

    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)
    records: int = -1
    mapped: dict[str, list] = field(default_factory=dict)
    results: dict = field(default_factory=dict)

    @property
    def said(self) -> list[str]:
        """What the check finds wrong, in sentences."""
        found = [self.refusals[door] for door in ("register", "check") if door in self.refusals]
        return [*found, *self.problems]

    @property
    def stops(self) -> list[str]:
        """Sentences that end training or evaluation."""
        doors = ("register", "load", "map", "evaluate")
        return [self.refusals[door] for door in doors if door in self.refusals]


@contextmanager
def empty_catalogs() -> Iterator[None]:
    """What is registered in the block is forgotten after it, and what was before is not seen."""
    catalogs = DatasetCatalog.data, MetadataCatalog.data
    before = [dict(catalog) for catalog in catalogs]
    for catalog in catalogs:
        catalog.clear()
    try:
        yield
    finally:
        for catalog, content in zip(catalogs, before, strict=True):
            catalog.clear()
            catalog.update(content)


def walk(path: Path, made: Made, predict: Callable | None = None) -> Walk:
    """Take the dataset `own` of data.yaml through every door; whatever is no UserError escapes.

    Args:
        predict: from a mapped record and `made` to a model's results; None: the truth.
    """
    found = Walk()
    with empty_catalogs():
        if not _try(found, "register", lambda: register_definitions([str(path)])):
            return found
        if made.classes is None:
            made.classes = len(MetadataCatalog.get(NAME).get("label_names", ()))
        if report := _try(found, "check", lambda: check_dataset(NAME, jobs=2)):
            found.problems, found.remarks = list(report.problems), list(report.remarks)
        records = _try(found, "load", lambda: load_records([NAME]))
        if records is None:
            return found
        found.records = len(records)
        _try(found, "map", lambda: _map(found, records, made))
        _try(found, "evaluate", lambda: _evaluate(found, records, made, predict or prediction))
    return found


def _try(found: Walk, door: str, enter):
    try:
        return enter()
    except UserError as error:
        found.refusals[door] = str(error)
        return None


def config(made: Made):
    """A config under which mapping leaves sizes and positions as they are."""
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = made.classes
    node = cfg.INPUT
    node.DATASET_MAPPER_NAME = made.mapper
    node.MIN_SIZE_TRAIN, node.MAX_SIZE_TRAIN = (SIZE[0],), 100_000
    node.MIN_SIZE_TRAIN_SAMPLING = "choice"
    node.RANDOM_FLIP, node.CROP.ENABLED, node.COLOR_AUG_SSD = "none", False, False
    node.SIZE_DIVISIBILITY = -1
    node.AUGMENTATIONS = []
    node.SAMPLING_FRAME_RANGE = 100
    node.SAMPLING_FRAME_SHUFFLE = False
    switches = cfg.MODEL.MASK_FORMER.TEST
    switches.SEMANTIC_ON = switches.PANOPTIC_ON = switches.INSTANCE_ON = True
    return cfg


def _map(found: Walk, records: list[dict], made: Made) -> None:
    cfg = config(made)
    for record in records:
        if made.is_video:
            cfg.INPUT.SAMPLING_FRAME_NUM = max(1, len(record["file_names"]))
        build = build_video_mapper if made.is_video else build_mapper
        mapped = build(cfg, is_train=True)(record)
        frames = mapped["instances"] if made.is_video else [mapped["instances"]]
        labels = frames[0].gt_classes.tolist()
        masks = np.stack([frame.gt_masks.numpy() for frame in frames], axis=1)
        masks = masks if made.is_video else masks[:, 0]
        found.mapped[name_of(record)] = list(zip(labels, masks, strict=True))


def name_of(record: dict) -> str:
    """Name of the image, or of the video's folder."""
    if "file_names" in record:
        first = Path(record["file_names"][0])
        return first.parent.parent.name if first.parent.name == "origin" else first.parent.name
    return Path(record["file_name"]).stem


def _evaluate(found: Walk, records: list[dict], made: Made, predict: Callable) -> None:
    cfg = config(made)
    evaluator = build_evaluator(cfg, NAME)
    evaluator.reset()
    build = build_video_mapper if made.is_video else build_mapper
    mapper = build(cfg, is_train=False, dataset=NAME)
    for record in records:
        given = mapper(record)
        evaluator.process([given], [predict(given, made)])
    found.results = evaluator.evaluate() or {}


def prediction(record: dict, made: Made) -> dict:
    """The truth about a record in the form of a model's results."""
    rows = made.truth.get(name_of(record), [])
    shape = rows[0][1].shape if rows else _shape_of(record)
    masks = np.array([mask for _, mask in rows], dtype=bool).reshape(-1, *shape)
    labels = torch.tensor([label for label, _ in rows], dtype=torch.int64)
    shown = [*made.crowds.get(name_of(record), []), *rows]
    result = {"sem_seg": _scores(shown, shape, made.classes)}
    if made.definition.get("kind") == "ytvis":
        scores = torch.linspace(0.9, 0.2, len(rows))
        return {"pred_scores": scores, "pred_labels": labels, "pred_masks": torch.from_numpy(masks)}
    if made.is_video:
        return result
    numbers = np.arange(1, len(rows) + 1).reshape(-1, 1, 1)
    result["panoptic_seg"] = (
        torch.from_numpy((masks * numbers).max(0, initial=0)),
        [
            {"id": i, "category_id": label, "isthing": True}
            for i, (label, mask) in enumerate(rows, 1)
            if mask.any()
        ],
    )
    other = made.instance_labels
    things = [(other.get(label, label), mask) for label, mask in rows if label in made.things]
    return {**result, "instances": _instances(things, shape)}


def _instances(rows: list, shape: tuple[int, int]) -> Instances:
    masks = np.array([mask for _, mask in rows], dtype=bool).reshape(-1, *shape)
    instances = Instances(shape)
    instances.pred_masks = torch.from_numpy(masks)
    instances.pred_classes = torch.tensor([label for label, _ in rows], dtype=torch.int64)
    instances.scores = torch.linspace(0.9, 0.2, len(rows))
    instances.pred_boxes = Boxes(torch.zeros(len(rows), 4))
    return instances


def _shape_of(record: dict) -> tuple[int, ...]:
    return (len(record["file_names"]), *SIZE) if "file_names" in record else SIZE


def _scores(rows: list, shape: tuple, classes: int) -> torch.Tensor:
    """(K, ...) scores whose arg-max is the label of each pixel, 0 where there is none."""
    scores = torch.zeros(classes, *shape)
    scores[0] = 0.1
    for label, mask in rows:
        scores[label][torch.from_numpy(mask)] = 1
    return scores


def imperfections(results: dict) -> dict[str, float]:
    """Metrics of the truth that are neither 100 nor unknown, by task/metric."""
    return {
        f"{task}/{key}": value
        for task, metrics in results.items()
        for key, value in metrics.items()
        if key not in _COUNTS and not (math.isnan(value) or math.isclose(value, 100))
    }
