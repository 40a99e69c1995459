"""Ground truth in the form of a model's results: what every evaluator must value at 100."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask

from rankseg_m2f.config import get_cfg
from rankseg_m2f.evaluation.build import build_evaluator
from rankseg_m2f.evaluation.ground_truth import IGNORED, GroundTruth
from rankseg_m2f.structures.predictions import SelectedScores


def evaluate_perfectly(name: str, output_dir: Path | None = None) -> dict[str, dict[str, float]]:
    """What the evaluators of a registered dataset say of its own ground truth."""
    cfg = get_cfg()
    switches = cfg.MODEL.MASK_FORMER.TEST
    switches.SEMANTIC_ON = switches.PANOPTIC_ON = switches.INSTANCE_ON = True
    evaluator, truth = build_evaluator(cfg, name, output_dir), GroundTruth.from_dataset(name)
    objects = objects_of(name)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        result = perfect_clip if "file_names" in record else perfect_image
        evaluator.process([record], [result(record, truth, objects)])
    return evaluator.evaluate()


def imperfections(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """The metrics that are neither 100 nor unknown, by task/metric."""
    # The first two are no percentages; one track is not all of a video's.
    counts = {"kappa", "clip_frames", "AR1"}
    return {
        f"{task}/{key}": value
        for task, metrics in results.items()
        for key, value in metrics.items()
        if key not in counts and not (math.isnan(value) or math.isclose(value, 100))
    }


def objects_of(name: str) -> dict[int | str, list[dict]]:
    """Annotations of a dataset's json by image or video, without crowds, with contiguous labels."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") is None:
        return {}
    labels = metadata.thing_dataset_id_to_contiguous_id
    content = json.loads(Path(metadata.json_file).read_text(encoding="utf-8"))
    found = {}
    for annotation in content.get("annotations", []):
        if not annotation.get("iscrowd", 0):
            owner = annotation.get("image_id", annotation.get("video_id"))
            label = labels[annotation["category_id"]]
            found.setdefault(owner, []).append({**annotation, "category_id": label})
    return found


def perfect_image(record: dict, truth: GroundTruth, objects: dict) -> dict:
    """Results for an image in every form that its annotations can judge."""
    result = perfect_labels(truth, record["file_name"])
    if truth.has_maps:
        result["sem_seg"] = selected_scores(truth.label_map(record["file_name"]))
    if "pan_seg_file_name" in record:
        segment_map, segments = truth.segments(record["file_name"])
        segments = [s for s in segments if not s.get("iscrowd", 0)]
        segment_map = np.where(np.isin(segment_map, [s["id"] for s in segments]), segment_map, 0)
        result["panoptic_seg"] = torch.from_numpy(segment_map), segments
    if objects:
        drawn = truth.has_maps
        size = truth.size(record["file_name"]) if drawn else (record["height"], record["width"])
        result["instances"] = perfect_instances(objects.get(record["image_id"], []), size)
    return result


def perfect_clip(record: dict, truth: GroundTruth, objects: dict) -> dict:
    """Results for a clip; of tracks as RLE."""
    key = truth.key(record)
    result = perfect_labels(truth, key)
    if truth.has_maps:
        result["sem_seg"] = selected_scores(np.stack(list(truth.label_maps(key))))
        return result
    tracks = objects.get(record["video_id"], [])
    size = record["height"], record["width"]
    return {
        **result,
        "pred_scores": torch.linspace(0.9, 0.2, len(tracks)),
        "pred_labels": torch.tensor([t["category_id"] for t in tracks], dtype=torch.int64),
        "pred_masks": [
            [run_lengths(outline, size) if outline else None for outline in track["segmentations"]]
            for track in tracks
        ],
    }


def perfect_labels(truth: GroundTruth, key: str) -> dict:
    """Scores of 1 for the labels that are there, and all of them selected."""
    present, _ = truth.labels(key)
    scores = torch.zeros(truth.num_labels)
    scores[torch.from_numpy(present)] = 1
    kappa = min(truth.num_labels, 50)
    return {"label_scores": scores, "label_ranking": scores.topk(kappa).indices}


def selected_scores(label_map: np.ndarray) -> SelectedScores:
    """Scores whose arg-max is an (h, w) or (T, h, w) label map; unknown pixels get label 0."""
    label_map = torch.from_numpy(np.where(label_map == IGNORED, 0, label_map)).long()
    ids = label_map.unique()
    return SelectedScores(ids, torch.stack([(label_map == i).float() for i in ids]))


def perfect_instances(objects: list[dict], size: tuple[int, int]) -> Instances:
    """Objects as a model returns them."""
    masks = [coco_mask.decode(run_lengths(o["segmentation"], size)) for o in objects]
    result = Instances(size)
    result.pred_masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *size))
    result.pred_classes = torch.tensor([o["category_id"] for o in objects], dtype=torch.int64)
    result.scores = torch.linspace(0.9, 0.2, len(objects))
    result.pred_boxes = Boxes(torch.zeros(len(objects), 4))
    return result


def run_lengths(outline: list | dict, size: tuple[int, int]) -> dict:
    """Compressed RLE of polygons or of either form of RLE."""
    if isinstance(outline, list):
        return coco_mask.merge(coco_mask.frPyObjects(outline, *size))
    return coco_mask.frPyObjects(outline, *size) if isinstance(outline["counts"], list) else outline
