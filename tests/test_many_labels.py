"""847 and 1284 labels: ids beyond a byte are kept, and memory grows with K, not with its square."""

import tracemalloc

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from perfect import imperfections, perfect_image
from PIL import Image

from rankseg_m2f.config import get_cfg
from rankseg_m2f.data.datasets.register import register_semantic_folder
from rankseg_m2f.data.mappers import build_mapper
from rankseg_m2f.data.targets import SegmentMap
from rankseg_m2f.evaluation.ground_truth import GroundTruth
from rankseg_m2f.evaluation.multi_label import MultiLabelEvaluator
from rankseg_m2f.evaluation.panoptic import PanopticEvaluator
from rankseg_m2f.evaluation.semantic import SemanticEvaluator

SIZES = (847, 1284)


@pytest.fixture(params=SIZES)
def many(request, tmp_path):
    """K, and a dataset of one image: K - 1 on 60 columns, 300 on 20, 44 = 300 - 256 on one."""
    num_labels, name = request.param, f"many_{tmp_path.name}"
    ids = np.full((40, 81), num_labels - 1, dtype=np.uint16)
    ids[:, 60:80], ids[:, 80] = 300, 44
    ids[:2] = 65535
    for folder, pixels in (("images", np.zeros((40, 81, 3), dtype=np.uint8)), ("labels", ids)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "0.png")
    register_semantic_folder(
        name,
        image_root=str(tmp_path / "images"),
        label_root=str(tmp_path / "labels"),
        classes=[f"label {i}" for i in range(num_labels)],
        ignore_label=65535,
    )
    yield num_labels, name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def mapper(name: str, num_labels: int, limit: float):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (name,)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_labels
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute"
    cfg.INPUT.CROP.SIZE, cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = (40, 24), limit
    return build_mapper(cfg, is_train=True)


def test_crops_keep_ids_beyond_a_byte_and_avoid_one_label(many):
    num_labels, name = many
    (record,) = DatasetCatalog.get(name)
    seen, alone = set(), {}
    for limit in (1.0, 0.75):
        np.random.seed(0)
        found = [
            mapper(name, num_labels, limit)(record)["instances"].gt_classes.tolist()
            for _ in range(40)
        ]
        seen |= {label for labels in found for label in labels}
        alone[limit] = sum(len(labels) == 1 for labels in found)
    assert seen == {44, 300, num_labels - 1}
    assert alone[0.75] < alone[1.0]


def test_label_maps_of_crops_hold_what_does_not_fit_a_byte():
    ids = np.array([[300, 65535], [44, 7]])
    found = SegmentMap(ids, {300: 300, 44: 44}, "a.png").label_map(65535)
    assert found.tolist() == [[300, 65535], [44, 65535]]
    # Detectron2 resizes this type without mixing labels.
    assert found.dtype == np.float64


def test_evaluators_count_every_label_in_little_memory(many):
    num_labels, name = many
    truth = GroundTruth.from_dataset(name)
    (record,) = DatasetCatalog.get(name)
    output = perfect_image(record, truth, {})
    results = {}
    for kind in (SemanticEvaluator, MultiLabelEvaluator):
        evaluator = kind(name, truth=truth)
        tracemalloc.start()
        evaluator.process([record], [output])
        kept, _ = tracemalloc.get_traced_memory()
        results |= evaluator.evaluate()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # A confusion matrix would take 8 K², scores of every label 4 K per pixel: 6 and 11 MB.
        assert kept < 50 * num_labels and peak < 1000 * num_labels
    assert imperfections(results) == {}
    assert results["sem_seg"][f"IoU-label {num_labels - 1}"] == pytest.approx(100)
    assert results["labels"]["coverage"] == pytest.approx(100)
    wrong = output | {"sem_seg": output["sem_seg"].full(num_labels)}
    wrong["sem_seg"][[300, 44]] = wrong["sem_seg"][[44, 300]]
    evaluator = SemanticEvaluator(name, truth=truth)
    evaluator.process([record], [wrong])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100 / 3)


@pytest.mark.parametrize("num_labels", SIZES)
def test_panoptic_quality_of_many_labels(tmp_path, num_labels):
    ids = np.repeat(np.arange(1, 4), 4).reshape(3, 4)
    labels = {1: 300, 2: 44, 3: num_labels - 1}
    Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], axis=2).astype(np.uint8)).save(
        tmp_path / "0.png"
    )
    segments = [{"id": i, "category_id": label} for i, label in labels.items()]
    record = {
        "file_name": "0.jpg",
        "pan_seg_file_name": str(tmp_path / "0.png"),
        "segments_info": segments,
    }
    metadata = {
        "label_names": [str(i) for i in range(num_labels)],
        "thing_dataset_id_to_contiguous_id": {9: 300},
    }
    evaluator = PanopticEvaluator("many", truth=GroundTruth("many", [record], metadata))
    predicted = [dict(s, category_id=299 if s["id"] == 1 else s["category_id"]) for s in segments]
    for found, quality in ((segments, 100), (predicted, 50)):
        evaluator.reset()
        evaluator.process([record], [{"panoptic_seg": (torch.from_numpy(ids), found)}])
        results = evaluator.evaluate()["panoptic_seg"]
        # Two of the four labels that are there or predicted are right.
        assert results["PQ"] == pytest.approx(quality)
        assert results[f"PQ-{num_labels - 1}"] == pytest.approx(100)
