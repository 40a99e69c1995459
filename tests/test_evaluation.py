"""Evaluators against official code, hand-computed numbers and each other."""

import contextlib
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TESTS
from constant_baseline import constant_baseline
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from label_statistics import LabelStatistics
from perfect import evaluate_perfectly, imperfections
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rankseg_m2f.config import get_cfg
from rankseg_m2f.data.datasets.register import (
    register_coco_instances,
    register_coco_panoptic,
    register_semantic_folder,
)
from rankseg_m2f.evaluation.bootstrap import SavedStatistics
from rankseg_m2f.evaluation.build import EVALUATORS, build_evaluator
from rankseg_m2f.evaluation.ground_truth import IGNORED, GroundTruth
from rankseg_m2f.evaluation.instance import InstanceEvaluator
from rankseg_m2f.evaluation.multi_label import MultiLabelEvaluator
from rankseg_m2f.evaluation.panoptic import PanopticEvaluator, match_segments
from rankseg_m2f.evaluation.semantic import SemanticEvaluator
from rankseg_m2f.images import read_panoptic_map
from rankseg_m2f.rankseg import metrics
from rankseg_m2f.structures.predictions import SelectedScores

FIXTURE = TESTS / "data" / "panoptic_eval"


@pytest.fixture
def register():
    """Calls a register function with its arguments; forgets the datasets afterwards."""
    names = []

    def call(function, name, **arguments):
        names.append(name)
        function(name, **arguments)
        return name

    yield call
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def register_fixture(name: str, folder: Path = FIXTURE, **arguments) -> str:
    register_coco_panoptic(
        name,
        image_root=str(folder / "photographs"),
        panoptic_root=str(folder / "truth"),
        panoptic_json=str(folder / "truth.json"),
        **arguments,
    )
    return name


@pytest.fixture
def coco(register):
    return register(register_fixture, "test_coco_panoptic")


def predictions() -> dict[int, tuple]:
    """The fixture's predictions by image id, in the form of a model's result."""
    categories = json.loads((FIXTURE / "truth.json").read_text())["categories"]
    ids = {c["id"]: i for i, c in enumerate(categories)}
    content = json.loads((FIXTURE / "prediction.json").read_text())
    result = {}
    for annotation in content["annotations"]:
        segment_map = read_panoptic_map(str(FIXTURE / "prediction" / annotation["file_name"]))
        segments = [
            {"id": s["id"], "category_id": ids[s["category_id"]]}
            for s in annotation["segments_info"]
        ]
        result[annotation["image_id"]] = (torch.from_numpy(segment_map), segments)
    return result


def one_hot(label_map: np.ndarray, num_labels: int) -> torch.Tensor:
    """(K, h, w) scores whose arg-max is the map; unknown pixels get label 0."""
    label_map = torch.from_numpy(label_map).long().clamp(min=0)
    return torch.nn.functional.one_hot(label_map, num_labels).permute(2, 0, 1).float()


# Panoptic


def test_panoptic_quality_is_the_official_one(coco):
    evaluator = PanopticEvaluator(coco)
    predicted = predictions()
    for record in DatasetCatalog.get(coco):
        evaluator.process([record], [{"panoptic_seg": predicted[record["image_id"]]}])
    results = evaluator.evaluate()["panoptic_seg"]
    expected = json.loads((FIXTURE / "expected.json").read_text())
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for metric in ("PQ", "SQ", "RQ"):
            official = 100 * expected[group][metric.lower()]
            assert results[metric + suffix] == pytest.approx(official, abs=1e-9)
    categories = json.loads((FIXTURE / "truth.json").read_text())["categories"]
    for category in categories:
        official = expected["per_class"].get(str(category["id"]), {"pq": None})["pq"]
        ours = results[f"PQ-{category['name']}"]
        if official is None:
            assert math.isnan(ours) or ours == 0
        else:
            assert ours == pytest.approx(100 * official, abs=1e-9)


def match(truth, true_labels, predicted, labels, crowds=(), num_labels=5) -> dict[int, tuple]:
    """(iou, tp, fp, fn) by label of one row of pixels."""
    rows = match_segments(
        np.array([truth], dtype=np.int32),
        [{"id": i, "category_id": c, "iscrowd": int(i in crowds)} for i, c in true_labels.items()],
        np.array([predicted], dtype=np.int32),
        [{"id": i, "category_id": c} for i, c in labels.items()],
        num_labels,
    )
    columns = zip(*(rows[field].tolist() for field in ("iou", "tp", "fp", "fn")), strict=True)
    return dict(zip(rows["label"].tolist(), columns, strict=True))


def test_half_an_overlap_is_no_match():
    # IoU 2/4 = 0.5 is not over 0.5; 2/3 is.
    assert match([1, 1, 1, 1], {1: 3}, [1, 1, 0, 0], {1: 3}) == {3: (0, 0, 1, 1)}
    assert match([1, 1, 1, 0], {1: 3}, [1, 1, 0, 0], {1: 3}) == {3: (pytest.approx(2 / 3), 1, 0, 0)}
    assert match([1, 1, 1, 0], {1: 3}, [1, 1, 0, 0], {1: 4}) == {3: (0, 0, 0, 1), 4: (0, 0, 1, 0)}


def test_pixels_without_truth_do_not_count():
    # The prediction covers 2 pixels of the truth and 3 of none: IoU 2/2.
    assert match([0, 0, 0, 1, 1], {1: 3}, [1, 1, 1, 1, 1], {1: 3}) == {3: (1, 1, 0, 0)}
    # Mostly on void: no false positive. Exactly half: one.
    assert match([0, 0, 1, 0], {1: 3}, [2, 2, 2, 0], {2: 4}) == {3: (0, 0, 0, 1)}
    assert match([0, 0, 1, 1], {1: 3}, [2, 2, 2, 2], {2: 4}) == {3: (0, 0, 0, 1), 4: (0, 0, 1, 0)}


def test_crowds_are_neither_matched_nor_missed():
    assert match([1, 1, 1, 1], {1: 3}, [0, 0, 0, 0], {}, crowds=[1]) == {}
    # On a crowd of its own label a segment is excused, on one of another it is wrong.
    assert match([1, 1, 1, 1], {1: 3}, [1, 1, 2, 2], {1: 3, 2: 3}, crowds=[1]) == {}
    assert match([1, 1, 1, 1], {1: 3}, [1, 1, 0, 0], {1: 4}, crowds=[1]) == {4: (0, 0, 1, 0)}


@pytest.mark.parametrize(
    ("segment_map", "segments", "message"),
    [
        (torch.zeros(3, 3), [], "the prediction is"),
        ("own size", [{"id": 1, "category_id": 0}], r"segments \[1\]"),
        ("own size", [{"id": 7, "category_id": 0}, {"id": 8, "category_id": 0}], r"segments \[8\]"),
        ("own size", [{"id": 7, "category_id": 133}], "label 133"),
    ],
)
def test_impossible_panoptic_predictions_name_the_file(coco, segment_map, segments, message):
    evaluator = PanopticEvaluator(coco)
    record = DatasetCatalog.get(coco)[0]
    if isinstance(segment_map, str):
        shape = evaluator.truth.size(record["file_name"])
        segment_map = torch.full(shape, 7 if segments[0]["id"] == 7 else 0)
    with pytest.raises(ValueError, match=message) as error:
        evaluator.process([record], [{"panoptic_seg": (segment_map.int(), segments)}])
    assert record["file_name"] in str(error.value)


# Semantic


def write_semantic(folder: Path, maps: list[np.ndarray]) -> dict[str, str]:
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for i, label_map in enumerate(maps):
        # Never opened: evaluation reads truth alone.
        (folder / "images" / f"{i}.jpg").touch()
        Image.fromarray(label_map).save(folder / "labels" / f"{i}.png")
    return {"image_root": str(folder / "images"), "label_root": str(folder / "labels")}


def test_mean_iou_is_detectron2s(register, tmp_path):
    rng = np.random.default_rng(0)
    # Label 5 is never true, label 6 neither true nor predicted.
    maps = [rng.choice([0, 1, 2, 3, 4, 255], size=(9, 11)).astype(np.uint8) for _ in range(4)]
    roots = write_semantic(tmp_path, maps)
    name = register(register_semantic_folder, "test_semantic", classes=list("abcdefg"), **roots)
    ours = SemanticEvaluator(name)
    theirs = SemSegEvaluator(
        name,
        distributed=False,
        sem_seg_loading_fn=lambda path, dtype: np.array(Image.open(path), dtype=dtype),
    )
    theirs.reset()
    for i, record in enumerate(DatasetCatalog.get(name)):
        scores = torch.rand(6, 9, 11)
        whole = torch.cat([scores, torch.zeros(1, 9, 11)])
        order = torch.randperm(6)
        selected = SelectedScores(order, scores[order])
        theirs.process([record], [{"sem_seg": whole}])
        ours.process([record], [{"sem_seg": selected if i % 2 else whole}])
    results, expected = ours.evaluate()["sem_seg"], theirs.evaluate()["sem_seg"]
    assert set(results) == {key for key in expected if "Boundary" not in key and "B-Iou" not in key}
    for key, value in results.items():
        assert value == pytest.approx(expected[key], nan_ok=True), key
    assert math.isnan(results["IoU-f"]) and results["mIoU"] > 0


def test_wrong_label_maps_and_predictions_name_the_file(register, tmp_path):
    maps = [np.full((2, 2), 3, dtype=np.uint8), np.zeros((2, 2), dtype=np.uint8)]
    roots = write_semantic(tmp_path, maps)
    name = register(register_semantic_folder, "test_wrong", classes=list("abc"), **roots)
    evaluator = SemanticEvaluator(name)
    wrong, right = DatasetCatalog.get(name)
    with pytest.raises(ValueError, match=r"0\.png has label 3"):
        evaluator.process([wrong], [{"sem_seg": torch.zeros(3, 2, 2)}])
    with pytest.raises(ValueError, match=r"1\.jpg: the prediction is \(4, 4\)"):
        evaluator.process([right], [{"sem_seg": torch.zeros(3, 4, 4)}])
    with pytest.raises(ValueError, match=r"1\.jpg: label 3 is predicted"):
        evaluator.process([right], [{"sem_seg": one_hot(maps[0], 4)}])
    with pytest.raises(ValueError, match="is not in dataset"):
        evaluator.process([{"file_name": "x.jpg"}], [{"sem_seg": torch.zeros(3, 2, 2)}])
    Path(right["sem_seg_file_name"]).write_bytes(b"")
    with pytest.raises(ValueError, match=r"1\.png: empty file"):
        SemanticEvaluator(name).process([right], [{"sem_seg": torch.zeros(3, 2, 2)}])


def test_more_labels_than_bytes(register, tmp_path):
    label_map = np.array([[0, 255, 1283], [1283, 700, 65535]], dtype=np.uint16)
    roots = write_semantic(tmp_path, [label_map])
    classes = [str(i) for i in range(1284)]
    name = register(
        register_semantic_folder, "test_1284", classes=classes, ignore_label=65535, **roots
    )
    evaluator = SemanticEvaluator(name)
    predicted = SelectedScores(torch.tensor([1283, 0]), torch.tensor([1.0, 0.0]).view(2, 1, 1))
    predicted.scores = predicted.scores.expand(2, 2, 3)
    evaluator.process(DatasetCatalog.get(name), [{"sem_seg": predicted}])
    results = evaluator.evaluate()["sem_seg"]
    # 1283 is right in 2 of the 5 known pixels and wrong in 3; four labels are there.
    assert results["IoU-1283"] == pytest.approx(40)
    assert results["mIoU"] == pytest.approx(10)
    assert results["pACC"] == pytest.approx(40)


def test_label_map_of_panoptic_png(coco):
    truth = GroundTruth.from_dataset(coco)
    for record in DatasetCatalog.get(coco):
        segment_map, segments = truth.segments(record["file_name"])
        label_map = truth.label_map(record["file_name"])
        assert ((label_map == IGNORED) == (segment_map == 0)).all()
        for segment in segments:
            assert (label_map[segment_map == segment["id"]] == segment["category_id"]).all()


# Instances


def write_instances(folder: Path, name: str) -> str:
    """The things of a panoptic dataset as COCO instances; the path of the json."""
    truth = GroundTruth.from_dataset(name)
    categories = json.loads((FIXTURE / "truth.json").read_text())["categories"]
    images, annotations = [], []
    for record in DatasetCatalog.get(name):
        segment_map, segments = truth.segments(record["file_name"])
        # The fixture's maps are smaller than its json says.
        image = dict(zip(("height", "width"), segment_map.shape, strict=True))
        image.update(id=record["image_id"], file_name=Path(record["file_name"]).name)
        images.append(image)
        for segment in segments:
            if segment["category_id"] not in truth.thing_ids:
                continue
            rle = coco_mask.encode(np.asfortranarray(segment_map == segment["id"], dtype=np.uint8))
            box = coco_mask.toBbox(rle).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record["image_id"],
                    "category_id": categories[segment["category_id"]]["id"],
                    "iscrowd": segment["iscrowd"],
                    "area": segment["area"],
                    "bbox": box,
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                }
            )
    things = [c for c in categories if c["isthing"]]
    content = {"images": images, "categories": things, "annotations": annotations}
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return str(path)


def to_instances(segment_map: torch.Tensor, segments: list[dict], thing_ids: set[int]) -> Instances:
    kept = [s for s in segments if s["category_id"] in thing_ids]
    result = Instances(tuple(segment_map.shape))
    masks = [segment_map == s["id"] for s in kept]
    result.pred_masks = torch.stack(masks) if masks else torch.zeros(0, *segment_map.shape) > 0
    result.pred_classes = torch.tensor([s["category_id"] for s in kept], dtype=torch.long)
    result.scores = torch.linspace(0.9, 0.2, len(kept))
    result.pred_boxes = Boxes(torch.zeros(len(kept), 4))
    return result


def backwards(folder: Path) -> Path:
    """The fixture with its categories in reverse: stuff first, so that things start at 53."""
    content = json.loads((FIXTURE / "truth.json").read_text())
    content["categories"].reverse()
    (folder / "truth.json").write_text(json.dumps(content))
    (folder / "truth").symlink_to(FIXTURE / "truth")
    return folder


def test_mask_ap_is_pycocotools(register, tmp_path, coco):
    path = write_instances(tmp_path, coco)
    name = register(
        register_fixture, "test_backwards", folder=backwards(tmp_path), instances_json=path
    )
    evaluator = InstanceEvaluator(name, tmp_path / "out")
    truth = GroundTruth.from_dataset(name)
    assert min(truth.thing_ids) == 53
    predicted = predictions()
    results = []
    categories = json.loads((FIXTURE / "truth.json").read_text())["categories"]
    for record in DatasetCatalog.get(name):
        segment_map, segments = predicted[record["image_id"]]
        segments = [{**s, "category_id": 132 - s["category_id"]} for s in segments]
        found = to_instances(segment_map, segments, truth.thing_ids)
        evaluator.process([record], [{"instances": found}])
        for mask, label, score in zip(
            found.pred_masks, found.pred_classes, found.scores, strict=True
        ):
            rle = coco_mask.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
            results.append(
                {
                    "image_id": record["image_id"],
                    "category_id": categories[132 - label]["id"],
                    "segmentation": rle,
                    "score": float(score),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(path)
        official = COCOeval(api, api.loadRes(results), "segm")
        official.evaluate()
        official.accumulate()
        official.summarize()
    ours = evaluator.evaluate()["segm"]
    for i, key in enumerate(("AP", "AP50", "AP75", "APs", "APm", "APl")):
        expected = official.stats[i] * 100 if official.stats[i] >= 0 else float("nan")
        assert ours[key] == pytest.approx(expected, nan_ok=True), key
    assert 5 < ours["AP"] < 95
    assert "AP-person" in ours and "AP-wall-brick" not in ours
    # The same from the matches that are saved per image.
    saved = SavedStatistics.read(tmp_path / "out" / f"per_image_instance_{name}.npz")
    assert saved.metrics == pytest.approx({k: ours[k] for k in ("AP", "AP50", "AP75")})
    assert len(saved.arrays["file_names"]) == len(DatasetCatalog.get(name))


def test_stuff_is_no_instance(register, tmp_path, coco):
    path = write_instances(tmp_path, coco)
    name = register(register_fixture, "test_stuff", instances_json=path)
    evaluator = InstanceEvaluator(name)
    record = DatasetCatalog.get(name)[0]
    segment_map, segments = predictions()[record["image_id"]]
    evaluator.process([record], [{"instances": to_instances(segment_map, segments, {0, 100})}])
    evaluator.reset()
    stuff = [{"id": 1, "category_id": 100}]
    evaluator.process([record], [{"instances": to_instances(segment_map, stuff, {100})}])
    with pytest.raises(ValueError, match="label 100"):
        evaluator.evaluate()


def test_no_prediction_is_the_worst_ap(register, tmp_path, coco):
    path = write_instances(tmp_path, coco)
    name = register(register_fixture, "test_nothing", instances_json=path)
    evaluator = InstanceEvaluator(name)
    for record in DatasetCatalog.get(name):
        nothing = to_instances(np.zeros((4, 4), dtype=np.int32), [], set())
        evaluator.process([record], [{"instances": nothing}])
    results = evaluator.evaluate()["segm"]
    assert results["AP"] == results["AP50"] == 0.0


@pytest.mark.parametrize("key", ["area", "iscrowd", "bbox", "id"])
def test_what_ap_needs_is_made_where_the_json_lacks_it(register, tmp_path, coco, key):
    path = write_instances(tmp_path, coco)
    content = json.loads(Path(path).read_text())
    complete = InstanceEvaluator(register(register_fixture, "test_complete", instances_json=path))
    without = content["annotations"][1].pop(key)
    Path(path).write_text(json.dumps(content))
    name = register(register_fixture, f"test_without_{key}", instances_json=path)
    found = InstanceEvaluator(name)._coco_api
    assert found.anns.keys() == complete._coco_api.anns.keys()
    if key in ("area", "iscrowd"):
        assert found.anns[2][key] == without


@pytest.mark.parametrize(
    "key, message",
    [("segmentation", "1 of 85 annotations have no segm"), ("image_id", "number 1 .* 'image_id'")],
)
def test_an_annotation_of_nothing_is_left_out(register, tmp_path, coco, key, message, caplog):
    path = write_instances(tmp_path, coco)
    content = json.loads(Path(path).read_text())
    del content["annotations"][1][key]
    Path(path).write_text(json.dumps(content))
    name = register(register_fixture, f"test_no_{key}", instances_json=path)
    assert len(InstanceEvaluator(name)._coco_api.anns) == 84
    assert re.search(message, caplog.text)


def test_a_broken_instances_json_is_named(register, tmp_path, coco):
    path = write_instances(tmp_path, coco)
    name = register(register_fixture, "test_broken_json", instances_json=path)
    Path(path).write_text("{")
    with pytest.raises(ValueError, match=r"instances\.json is not valid JSON \(Expecting"):
        InstanceEvaluator(name)


# Labels


def test_average_precision_by_hand():
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.7, 0.6], [0.5, 0.4, 0.3]])
    truth = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool()
    ap = metrics.average_precision(scores, truth)
    assert ap[:2].tolist() == pytest.approx([(1 + 2 / 3) / 2, 1])
    assert ap[2].isnan()
    assert metrics.image_ap(scores, truth).item() == pytest.approx((5 / 6 + 1) / 2)
    # Label 0: first of three; label 1: second, behind image 0; label 2: last of three.
    assert metrics.class_map(scores, truth).item() == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_equal_scores_are_one_threshold():
    scores = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.1])
    truth = torch.tensor([True, True, False, False, True])
    # 1 of 1, then 2 of 4, then 3 of 5, in whatever order the equal ones come.
    expected = (1 + 2 / 4 + 3 / 5) / 3
    for order in ([0, 1, 2, 3, 4], [0, 2, 3, 1, 4], [4, 3, 2, 1, 0]):
        ap = metrics.average_precision(scores[order], truth[order])
        assert ap.item() == pytest.approx(expected)


def test_recall_and_coverage_by_hand():
    areas = torch.tensor([[3, 0, 1], [0, 4, 0], [0, 0, 0]])
    ranking = torch.tensor([[0, 1], [1, 2], [0, 1]])
    assert metrics.recall_at(ranking, areas > 0).item() == pytest.approx((1 / 2 + 1) / 2)
    assert metrics.coverage(ranking, areas).item() == pytest.approx(7 / 8)
    fewer = torch.tensor([[0, -1], [1, 2], [-1, -1]])
    assert metrics.recall_at(fewer, areas > 0).item() == pytest.approx((1 / 2 + 1) / 2)
    assert metrics.coverage(fewer, areas).item() == pytest.approx(7 / 8)
    everything = torch.arange(3).expand(3, 3)
    assert metrics.recall_at(everything, areas > 0) == metrics.coverage(everything, areas) == 1


def label_output(scores: list[float], kappa: int) -> dict:
    scores = torch.tensor(scores)
    return {"label_scores": scores, "label_ranking": scores.topk(kappa).indices}


def test_multi_label_evaluator_by_hand(register, tmp_path):
    maps = [np.array([[0, 0, 0], [2, 255, 255]]), np.array([[1, 1], [1, 1]])]
    roots = write_semantic(tmp_path, [m.astype(np.uint8) for m in maps])
    name = register(register_semantic_folder, "test_labels", classes=list("abc"), **roots)
    evaluator = MultiLabelEvaluator(name)
    outputs = [label_output([0.9, 0.8, 0.1], 2), label_output([0.2, 0.7, 0.6], 2)]
    evaluator.process(DatasetCatalog.get(name), outputs)
    results = evaluator.evaluate()["labels"]
    assert results == pytest.approx(
        {
            "mAP": 100 * (1 + 1 / 2 + 1 / 2) / 3,
            "image_AP": 100 * (5 / 6 + 1) / 2,
            "recall": 75,
            "coverage": 87.5,
            "kappa": 2,
        }
    )
    # Dynamic κ: one label for the first image, three for the second.
    evaluator.reset()
    outputs = [label_output([0.9, 0.8, 0.1], 1), label_output([0.2, 0.7, 0.6], 3)]
    evaluator.process(DatasetCatalog.get(name), outputs)
    dynamic = evaluator.evaluate()["labels"]
    assert dynamic == pytest.approx({**results, "kappa": 2, "recall": 75, "coverage": 87.5})
    evaluator.reset()
    evaluator.process(DatasetCatalog.get(name), [{"sem_seg": torch.zeros(3, 2, 3)}] * 2)
    assert evaluator.evaluate() == {}
    with pytest.raises(ValueError, match="scores 4 labels"):
        evaluator.process(DatasetCatalog.get(name)[:1], [label_output([0.1, 0.2, 0.3, 0.4], 2)])


def test_labels_of_instances_have_no_coverage(register, tmp_path, coco):
    path = write_instances(tmp_path, coco)
    name = register(
        register_coco_instances, "test_instances", image_root="photographs", instances_json=path
    )
    panoptic = GroundTruth.from_dataset(coco)
    truth = GroundTruth.from_dataset(name)
    assert truth.num_labels == 80 and not truth.has_maps
    evaluator = MultiLabelEvaluator(name)
    for record in DatasetCatalog.get(name):
        stem = Path(record["file_name"]).name
        labels, _ = panoptic.labels(str(FIXTURE / "photographs" / stem))
        things = [i for i in labels.tolist() if i < 80]
        assert truth.labels(record["file_name"])[0].tolist() == things
        scores = [float(i in things) for i in range(80)]
        evaluator.process([record], [label_output(scores, 80)])
    assert evaluator.evaluate()["labels"] == {
        "mAP": 100,
        "image_AP": 100,
        "recall": 100,
        "kappa": 80,
    }


# Everything together


def config(semantic=True, panoptic=True, instance=True):
    cfg = get_cfg()
    test = cfg.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON, test.PANOPTIC_ON, test.INSTANCE_ON = semantic, panoptic, instance
    return cfg


def test_perfect_prediction_is_100_everywhere(register, tmp_path, coco):
    path = write_instances(tmp_path, coco)
    name = register(register_fixture, "test_perfect", instances_json=path)
    results = evaluate_perfectly(name, tmp_path)
    assert set(results) == {"panoptic_seg", "sem_seg", "segm", "labels"}
    assert imperfections(results) == {}
    for task, key in (("panoptic_seg", "PQ_st"), ("sem_seg", "fwIoU"), ("segm", "AP")):
        assert not math.isnan(results[task][key])


def test_statistics_per_image_are_saved(coco, tmp_path):
    evaluator = build_evaluator(config(instance=False), coco, tmp_path / "new")
    evaluator.reset()
    predicted = predictions()
    records = DatasetCatalog.get(coco)
    for record in records:
        shape = evaluator._evaluators[0].truth.size(record["file_name"])
        output = {
            "panoptic_seg": predicted[record["image_id"]],
            "sem_seg": torch.rand(133, *shape),
            **label_output(torch.rand(133).tolist(), 10),
        }
        evaluator.process([record], [output])
    results = evaluator.evaluate()
    saved = {
        kind: np.load(tmp_path / "new" / f"per_image_{kind}_{coco}.npz")
        for kind in ("panoptic", "semantic", "labels")
    }
    for arrays in saved.values():
        assert arrays["file_names"].tolist() == sorted(r["file_name"] for r in records)
    assert len(list((tmp_path / "new").iterdir())) == 3
    # Metrics can be had from what is saved.
    labels, hit, truth = (saved["semantic"][k] for k in ("label", "intersection", "truth"))
    assert results["sem_seg"]["pACC"] == pytest.approx(100 * hit.sum() / truth.sum())
    person = saved["panoptic"]["label"] == 0
    iou, tp, fp, fn = (saved["panoptic"][k][person].sum() for k in ("iou", "tp", "fp", "fn"))
    assert results["panoptic_seg"]["PQ-person"] == pytest.approx(100 * iou / (tp + (fp + fn) / 2))
    assert saved["labels"]["scores"].shape == (len(records), 133)
    assert saved["labels"]["ranking"].shape == (len(records), 10)
    assert np.bincount(saved["semantic"]["image"]).shape == (len(records),)
    assert labels.max() < 133


def two_processes(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    name = register_fixture("test_two_processes")
    evaluator = build_evaluator(config(semantic=False, instance=False), name, folder)
    evaluator.reset()
    predicted = predictions()
    # The first image is seen by both.
    records = DatasetCatalog.get(name)
    for record in [records[0], *records[1 + rank :: 2]]:
        scores = torch.rand(133, generator=torch.Generator().manual_seed(record["image_id"]))
        output = {"panoptic_seg": predicted[record["image_id"]]}
        evaluator.process([record], [{**output, **label_output(scores.tolist(), 10)}])
    results = evaluator.evaluate()
    Path(folder, f"results_{rank}.json").write_text(json.dumps(results))
    # Gloo's threads must end before the process does: wait for the other, let go of the group.
    comm.synchronize()
    comm._get_global_gloo_group.cache_clear()
    torch.distributed.destroy_process_group()


def test_two_processes_are_as_good_as_one(coco, tmp_path):
    torch.multiprocessing.spawn(two_processes, args=(str(tmp_path),), nprocs=2)
    assert json.loads((tmp_path / "results_1.json").read_text()) == {}
    results = json.loads((tmp_path / "results_0.json").read_text())
    evaluator = build_evaluator(config(semantic=False, instance=False), coco)
    evaluator.reset()
    predicted = predictions()
    for record in DatasetCatalog.get(coco):
        scores = torch.rand(133, generator=torch.Generator().manual_seed(record["image_id"]))
        output = {"panoptic_seg": predicted[record["image_id"]]}
        evaluator.process([record], [{**output, **label_output(scores.tolist(), 10)}])
    np.testing.assert_equal(results, {k: dict(v) for k, v in evaluator.evaluate().items()})


def names(evaluators) -> list[str]:
    return [type(e).__name__ for e in evaluators._evaluators]


def test_table_of_evaluators(register, tmp_path, coco):
    path = write_instances(tmp_path, coco)
    full = register(register_fixture, "test_full", instances_json=path)
    assert names(build_evaluator(config(), full)) == [
        "PanopticEvaluator",
        "SemanticEvaluator",
        "InstanceEvaluator",
        "MultiLabelEvaluator",
    ]
    assert names(build_evaluator(config(semantic=False), coco)) == [
        "PanopticEvaluator",
        "MultiLabelEvaluator",
    ]
    roots = write_semantic(tmp_path, [np.zeros((2, 2), dtype=np.uint8)])
    semantic = register(register_semantic_folder, "test_folder", classes=list("ab"), **roots)
    assert names(build_evaluator(config(), semantic)) == [
        "SemanticEvaluator",
        "MultiLabelEvaluator",
    ]


def test_unknown_evaluator_type_is_told(caplog, coco):
    with pytest.raises(ValueError, match=r"'nowhere' has evaluator_type None.*coco_panoptic_seg"):
        build_evaluator(config(), "nowhere")
    MetadataCatalog.remove("nowhere")
    build_evaluator(config(semantic=False, panoptic=False), coco)
    assert "no AP" in caplog.text and "PANOPTIC_ON or SEMANTIC_ON" in caplog.text


@pytest.mark.parametrize(
    ("name", "num_labels", "num_things"),
    [
        ("coco_2017_val", 80, 80),
        ("coco_2017_val_panoptic", 133, 80),
        ("ade20k_sem_seg_val", 150, 0),
        ("cityscapes_fine_panoptic_val", 19, 8),
        ("cityscapes_fine_sem_seg_val", 19, None),
    ],
)
def test_builtin_metadata_is_enough(name, num_labels, num_things):
    metadata = MetadataCatalog.get(name)
    assert metadata.evaluator_type in EVALUATORS
    truth = GroundTruth(name, [{"file_name": "x.jpg"}], metadata)
    assert truth.num_labels == num_labels
    assert num_things is None or len(truth.thing_ids) == num_things


# Constant baseline


def test_constant_baseline_by_hand(register, tmp_path):
    maps = [[[0, 0], [1, 255]], [[1, 1], [1, 1]], [[1, 0], [2, 2]]]
    roots = write_semantic(tmp_path, [np.array(m, dtype=np.uint8) for m in maps])
    name = register(register_semantic_folder, "test_constant", classes=list("abc"), **roots)
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    train = LabelStatistics.from_truth(GroundTruth(name, records[:2], metadata))
    results = constant_baseline(train, GroundTruth(name, records[2:], metadata), kappa=1)
    # Label 1 leads in training pixels (5 of 7) and images (2 of 2).
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * (1 / 4) / 3)
    assert results["labels"]["coverage"] == 25
    assert results["labels"]["recall"] == pytest.approx(100 / 3)
    assert results["labels"]["image_AP"] == 100
    assert set(results) == {"labels", "sem_seg"}


def test_constant_baseline_takes_stuff_for_panoptic(coco):
    truth = GroundTruth.from_dataset(coco)
    results = constant_baseline(LabelStatistics.from_truth(truth), truth)
    assert results["labels"]["recall"] == 100
    assert results["panoptic_seg"]["PQ_th"] == 0
    assert 0 <= results["panoptic_seg"]["PQ"] < 5
    assert 0 < results["sem_seg"]["mIoU"] < 5
