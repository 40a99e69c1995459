"""Video evaluators against official numbers, slow definitions and hand-computed cases."""

import json
import logging
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TESTS
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from golden import SHARED
from PIL import Image
from pycocotools import mask as coco_mask

from rankseg_m2f.config import get_cfg
from rankseg_m2f.evaluation.bootstrap import SavedStatistics
from rankseg_m2f.evaluation.build import build_evaluator
from rankseg_m2f.evaluation.ground_truth import IGNORED, GroundTruth, VideoTruth
from rankseg_m2f.evaluation.multi_label import MultiLabelEvaluator
from rankseg_m2f.evaluation.vspw import VideoSemanticEvaluator, consistency, pack, unpack
from rankseg_m2f.evaluation.ytvis import (
    METRICS,
    VideoInstanceEvaluator,
    match_tracks,
    track_iou,
    track_metrics,
)
from rankseg_m2f.structures.predictions import SelectedScores

FIXTURE = TESTS / "data" / "video_eval"
BACTERIA = FIXTURE / "bacteria"
CROP = FIXTURE / "camvid_crop"
DATA = SHARED.parent / "data"
NEEDS_SHARED = pytest.mark.shared
VSPW_LABELS = [str(i) for i in range(124)]


@pytest.fixture
def register():
    """Registers records and metadata under a name; forgets them afterwards."""
    names = []

    def call(name, records, **metadata):
        names.append(name)
        add(name, records, **metadata)
        return name

    yield call
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def add(name: str, records: list[dict], **metadata) -> None:
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(label_names=metadata.pop("label_names", VSPW_LABELS), **metadata)


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


# Tracks


def expected_tracks() -> list:
    bacteria = read(BACTERIA / "expected.json")
    cases = [
        pytest.param(BACTERIA / "instances.json", BACTERIA / f"{name}.json", stats, id=name)
        for name, stats in bacteria.items()
    ]
    davis = DATA / "ytvis_davis" / "instances.json"
    results = SHARED / "eval" / "davis_perturbed.results.json"
    return [*cases, pytest.param(davis, results, None, id="davis", marks=NEEDS_SHARED)]


def track_ap(truth, results, video_ids=None):
    return track_metrics(match_tracks(truth, results, video_ids))


@pytest.mark.parametrize(("truth", "results", "expected"), expected_tracks())
def test_track_ap_is_the_official_one(truth, results, expected):
    if expected is None:
        expected = read(SHARED / "eval" / "ytvis_expected.json")["davis_perturbed"]["stats"]
    ours = track_ap(read(truth), read(results))
    assert set(expected) == set(METRICS)
    for metric, value in expected.items():
        value = math.nan if value == -1 else 100 * value
        assert ours[metric] == pytest.approx(value, abs=1e-8, nan_ok=True), metric


def rle(mask) -> dict:
    coded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": coded["size"], "counts": coded["counts"].decode()}


def row(pixels: list[int]) -> dict | None:
    """One row of 6 pixels as RLE; None for none."""
    mask = np.zeros((1, 6), dtype=np.uint8)
    mask[0, pixels] = 1
    return rle(mask) if pixels else None


def track(*frames: list[int], video=1, category=7, **more) -> dict:
    masks = [row(pixels) for pixels in frames]
    return {"video_id": video, "category_id": category, "segmentations": masks, **more}


def content(annotations: list[dict], lengths=(2, 2)) -> dict:
    """An annotation file of videos of one row of pixels."""
    videos = [
        {"id": i, "height": 1, "width": 6, "file_names": [f"{i}/{t}.jpg" for t in range(length)]}
        for i, length in enumerate(lengths, start=1)
    ]
    categories = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]
    return {"videos": videos, "categories": categories, "annotations": annotations}


def test_overlap_is_over_all_frames_together():
    first = [row([0, 1, 2]), row([4]), None, None]
    second = [row([1, 2]), None, row([0, 1, 2, 3]), None]
    assert track_iou(first, second) == pytest.approx(2 / (3 + 1 + 4))
    assert track_iou(first, first) == 1
    assert track_iou([None], [None]) == 0


def test_track_ap_by_hand():
    truth = content(
        [
            track([0, 1], [0, 1], id=1),
            track([3], [4], video=2, id=2),
            track([0], [], video=2, category=9, id=3),
        ]
    )
    results = [
        # IoU 3/4: right at 0.5 to 0.75, which are 6 of the 10 thresholds.
        track([0, 1], [0], score=0.9),
        track([5], [5], video=2, score=0.8),
        track([3], [4], video=2, score=0.7),
        track([0], [], video=2, category=9, score=0.1),
    ]
    found = track_ap(truth, results)
    # 51 of 101 recalls are up to 1/2; then precision is 2/3, when both are found in three.
    both = (51 + 50 * 2 / 3) / 101
    # At higher thresholds one of two is found, the third in order: precision 1/3 up to half.
    one = 51 / 101 / 3
    assert found["AP-cat"] == pytest.approx(100 * (0.6 * both + 0.4 * one))
    assert found["AP-dog"] == pytest.approx(100)
    assert found["AP"] == pytest.approx((found["AP-cat"] + found["AP-dog"]) / 2)
    # The best track of each video and category: 1/2 and nothing of cats, the dog.
    assert found["AR1"] == pytest.approx(100 * (0.6 * 0.5 + 0.4 * 0 + 1) / 2)
    assert found["AR10"] == pytest.approx(100 * (0.6 * 1 + 0.4 * 0.5 + 1) / 2)
    assert math.isnan(found["APl"]) and found["APs"] == pytest.approx(found["AP"])
    # Only the second video: its cat comes after a wrong one.
    second = track_ap(truth, results[1:], [2])
    assert second["AP-cat"] == pytest.approx(50)


def test_crowds_are_neither_found_nor_missed():
    crowd = track([0, 1], [0, 1], id=1, iscrowd=1)
    truth = content([crowd, track([3], [3], id=2)])
    results = [track([0, 1], [0, 1], score=0.9), track([3], [3], score=0.5)]
    assert track_ap(truth, results)["AP-cat"] == pytest.approx(100)
    assert math.isnan(track_ap(truth, results)["AP-dog"])


def test_size_is_the_mean_over_frames_that_show_the_track():
    def square(side):
        return rle(np.pad(np.ones((side, side), np.uint8), ((0, 300 - side), (0, 300 - side))))

    def video(*sides):
        masks = [square(side) if side else None for side in sides]
        track = {"video_id": 1, "category_id": 7, "segmentations": masks, "id": 1}
        truth = content([track], lengths=(len(sides),))
        truth["videos"][0].update(height=300, width=300)
        found = track_ap(truth, [{**track, "score": 1.0}])
        return [name for name in ("APs", "APm", "APl") if not math.isnan(found[name])]

    assert video(130, None) == ["APm"]
    assert video(130, 120) == ["APs"]
    # A track of just 128 x 128 pixels is in both, as in COCO.
    assert video(128) == ["APs", "APm"]
    assert video(257, 257) == ["APl"]


def test_masks_in_every_form_are_the_same():
    square = np.zeros((8, 8), dtype=np.uint8)
    square[2:5, 1:6] = 1
    flat = square.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges.tolist(), flat.size]).tolist()
    forms = [
        rle(square),
        {"size": [8, 8], "counts": counts},
        [[1, 2, 6, 2, 6, 5, 1, 5]],
    ]
    for form in forms:
        track = {"video_id": 1, "category_id": 7, "segmentations": [form], "id": 1}
        truth = content([track], lengths=(1,))
        truth["videos"][0].update(height=8, width=8)
        result = {**track, "segmentations": [rle(square)], "score": 0.5}
        assert track_ap(truth, [result])["AP"] == pytest.approx(100), form


@pytest.mark.parametrize(
    ("annotation", "result", "message"),
    [
        (track([0], id=1), track([0], [0], score=1), r"track of video 1 \(1/0.jpg .* 1 frames"),
        (track([0], [1], id=1), track([0], [0], video=3, score=1), r"videos \[3\] are not in"),
        (
            {**track([0], [1], id=1), "segmentations": [None, rle(np.ones((2, 6)))]},
            track([0], [0], score=1),
            r"1/1.jpg: its mask is of \[2, 6\], its image or video of \[1, 6\]",
        ),
    ],
)
def test_wrong_annotations_name_the_video(annotation, result, message):
    with pytest.raises(ValueError, match=message):
        track_ap(content([annotation]), [result])


def vis(register, folder: Path, truth: dict, name="test_vis", **extra) -> str:
    """A registered YouTube-VIS dataset; contiguous ids in reverse order of the dataset's."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(truth))
    ids = [category["id"] for category in reversed(truth["categories"])]
    objects: dict[int, list] = {}
    for annotation in truth.get("annotations", []):
        objects.setdefault(annotation["video_id"], []).append(annotation)
    records = [
        {
            "video_id": video["id"],
            "length": len(video["file_names"]),
            **{key: video[key] for key in ("file_names", "height", "width")},
            "annotations": [
                [
                    {"id": i, "category_id": ids.index(o["category_id"])}
                    for i, o in enumerate(objects.get(video["id"], []))
                    if o["segmentations"][t] is not None
                ]
                for t in range(len(video["file_names"]))
            ],
        }
        for video in truth["videos"]
    ]
    return register(
        name,
        records,
        evaluator_type="ytvis",
        json_file=str(path),
        thing_dataset_id_to_contiguous_id={dataset: i for i, dataset in enumerate(ids)},
        label_names=[category["name"] for category in reversed(truth["categories"])],
        num_classes=len(ids),
        **extra,
    )


def vis_output(record: dict, results: list[dict], ids: list[int], tensors: bool) -> dict:
    """What a model gives for a video, from its tracks in the form of a file."""
    size = (record["height"], record["width"])
    results = [result for result in results if result["video_id"] == record["video_id"]]
    masks = [result["segmentations"] for result in results]
    if tensors:
        empty = np.zeros(size, dtype=np.uint8)
        masks = [
            torch.from_numpy(
                np.stack([coco_mask.decode(f) if f else empty for f in frames]).astype(bool)
            )
            for frames in masks
        ]
    return {
        "image_size": size,
        "pred_scores": [result["score"] for result in results],
        "pred_labels": [ids.index(result["category_id"]) for result in results],
        "pred_masks": masks,
    }


@pytest.mark.parametrize("tensors", [False, True])
def test_tracks_are_judged_and_written(register, tmp_path, tensors):
    name = vis(register, tmp_path, read(BACTERIA / "instances.json"))
    results = read(BACTERIA / "perturbed.json")
    evaluator = VideoInstanceEvaluator(name, tmp_path / "out")
    (record,) = DatasetCatalog.get(name)
    evaluator.process([record], [vis_output(record, results, [1], tensors)])
    # Seen again, as a padded sampler does: counts once.
    evaluator.process([record], [vis_output(record, results, [1], tensors)])
    found = evaluator.evaluate()["segm"]
    expected = read(BACTERIA / "expected.json")["perturbed"]
    assert found["AP"] == pytest.approx(100 * expected["AP"], abs=1e-8)
    assert found["AP-bacterium"] == found["AP"]
    saved = SavedStatistics.read(tmp_path / "out" / f"per_image_instance_{name}.npz")
    assert saved.metrics == pytest.approx({k: found[k] for k in ("AP", "AP50", "AP75")})
    folder = tmp_path / "out" / "submission"
    written = read(folder / "results.json")
    assert written == results
    with zipfile.ZipFile(folder / "results.zip") as file:
        assert file.namelist() == ["results.json"]
        assert json.loads(file.read("results.json")) == written
    assert len(list(folder.iterdir())) == 2


def test_dataset_ids_come_back(register, tmp_path):
    truth = content([track([0], [1], id=1), track([2], [], video=2, category=9, id=2)])
    name = vis(register, tmp_path, truth)
    evaluator = VideoInstanceEvaluator(name)
    records = DatasetCatalog.get(name)
    for record in records:
        scored = [{**a, "score": 0.5} for a in truth["annotations"]]
        evaluator.process([record], [vis_output(record, scored, [9, 7], True)])
    found = evaluator.evaluate()["segm"]
    assert found["AP-cat"] == found["AP-dog"] == pytest.approx(100)
    # A model that finds nothing is the worst, not unknown.
    evaluator.reset()
    evaluator.process(records, [vis_output(record, [], [9, 7], True) for record in records])
    found = evaluator.evaluate()["segm"]
    assert found["AP"] == found["AR10"] == 0 and math.isnan(found["APl"])
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_test_sets_without_annotations_are_only_written(register, tmp_path):
    truth = content([])
    del truth["annotations"]
    name = vis(register, tmp_path, truth)
    evaluator = VideoInstanceEvaluator(name, tmp_path)
    record = DatasetCatalog.get(name)[1]
    result = track([0], [], video=2, score=0.5)
    evaluator.process([record], [vis_output(record, [result], [9, 7], True)])
    assert evaluator.evaluate() == {}
    assert read(tmp_path / "submission" / "results.json") == [result]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred_labels": [2]}, r"label 2 is predicted in video 1, .* \[0, 1\]"),
        ({"pred_masks": [torch.ones(2, 2, 6) > 0]}, r"video 1 \(1/0.jpg .* of \[2, 6\] are pred"),
        ({"pred_masks": [torch.ones(3, 1, 6) > 0]}, r"of 3 frames .* has 2 of \[1, 6\]"),
        ({"pred_masks": []}, "zip"),
    ],
)
def test_impossible_tracks_name_the_video(register, tmp_path, change, message):
    name = vis(register, tmp_path, content([track([0], [1], id=1)]))
    record = DatasetCatalog.get(name)[0]
    output = {"pred_scores": [1.0], "pred_labels": [0], "pred_masks": [torch.ones(2, 1, 6) > 0]}
    with pytest.raises(ValueError, match=message):
        VideoInstanceEvaluator(name).process([record], [{**output, **change}])


# Semantic


def clips(folder: Path, length: int | None, maps: str = "") -> list[dict]:
    """Dataset dicts of the clips of every video under a folder; None: whole videos."""
    records = []
    for video in sorted(path for path in folder.iterdir() if path.is_dir()):
        paths = sorted(str(path) for path in (video / maps).iterdir())
        step = length or len(paths)
        records += [
            {
                "video_id": video.name,
                "clip": number,
                # Never opened: evaluation reads truth alone.
                "file_names": [p.replace(".png", ".jpg") for p in paths[start : start + step]],
                "sem_seg_file_names": paths[start : start + step],
            }
            for number, start in enumerate(range(0, len(paths), step))
        ]
    return records


def vspw(register, name: str, records: list[dict], **metadata) -> str:
    metadata = {"ignore_label": 255, "label_offset": 1, **metadata}
    return register(name, records, evaluator_type="vspw", **metadata)


def one_hot(label_maps: np.ndarray, labels: int = 124, selected: bool = False):
    """Scores whose arg-max is the (T, h, w) maps."""
    maps = torch.from_numpy(label_maps.astype(np.int64))
    ids = maps.unique().flip(0) if selected else torch.arange(labels)
    scores = (maps == ids[:, None, None, None]).to(torch.uint8)
    return SelectedScores(ids, scores) if selected else scores


def predicted_maps(record: dict, folder: Path) -> np.ndarray:
    paths = [folder / record["video_id"] / Path(p).name for p in record["sem_seg_file_names"]]
    return np.stack([np.array(Image.open(path)) for path in paths])


def run(evaluator, records: list[dict], folder: Path, selected: bool = True) -> dict:
    for record in records:
        scores = one_hot(predicted_maps(record, folder) - 1, selected=selected)
        evaluator.process([record], [{"sem_seg": scores}])
    return evaluator.evaluate()["sem_seg"]


def slow_metrics(truth: Path, prediction: Path) -> dict[str, float]:
    """By the definitions, from a confusion matrix and windows compared frame by frame."""
    confusion = np.zeros((124, 124), dtype=np.int64)
    shares = {8: [], 16: []}
    for video in sorted(truth.iterdir()):
        names = sorted(path.name for path in video.iterdir())
        true = [np.array(Image.open(video / name)) for name in names]
        ours = [np.array(Image.open(prediction / video.name / name)) for name in names]
        for t, p in zip(true, ours, strict=True):
            known = (t >= 1) & (t <= 124)
            np.add.at(confusion, (t[known].astype(int) - 1, p[known].astype(int) - 1), 1)
        for n, values in shares.items():
            for i in range(len(names) - n):
                constant = np.all([true[i] == true[i + j] for j in range(1, n)], axis=0)
                steady = np.all([ours[i] == ours[i + j] for j in range(1, n)], axis=0)
                if constant.any():
                    values.append((constant & steady).sum() / constant.sum())
    hit, seen = np.diag(confusion), confusion.sum(1) > 0
    iou = (hit / np.maximum(confusion.sum(0) + confusion.sum(1) - hit, 1))[seen]
    weight = confusion.sum(1)[seen] / confusion.sum()
    metrics = {
        "mIoU": iou.mean(),
        "fwIoU": (iou * weight).sum(),
        "mACC": (hit[seen] / confusion.sum(1)[seen]).mean(),
        "pACC": hit.sum() / confusion.sum(),
        **{f"VC{n}": np.mean(values) for n, values in shares.items()},
    }
    return {key: 100 * float(value) for key, value in metrics.items()}


@pytest.mark.parametrize("length", [1, 5, 20, None])
def test_video_metrics_by_their_definition(register, length, caplog):
    records = clips(CROP / "truth", length)
    name = vspw(register, "test_vspw", records)
    caplog.set_level(logging.INFO)
    results = run(VideoSemanticEvaluator(name), records, CROP / "prediction", selected=length != 5)
    expected = slow_metrics(CROP / "truth", CROP / "prediction")
    # Not trivial: the prediction is neither perfect nor constant.
    assert 10 < expected["mIoU"] < 95 and 10 < expected["VC16"] < expected["VC8"] < 99
    for key, value in expected.items():
        assert results[key] == pytest.approx(value, abs=1e-9), key
    words = {1: "clips of 1 frames", 5: "clips of 5 frames"}.get(length, "whole videos")
    assert f"protocol: {words}" in caplog.text
    assert results["clip_frames"] == min(length or 20, 20)


@NEEDS_SHARED
def test_video_metrics_are_the_official_ones(register, caplog):
    records = clips(DATA / "camvid_vspw" / "data", 20, "mask")
    name = vspw(register, "test_camvid", records)
    caplog.set_level(logging.INFO)
    results = run(VideoSemanticEvaluator(name), records, SHARED / "eval" / "camvid_vspw_pred")
    expected = read(SHARED / "eval" / "vspw_expected.json")
    for key in ("mIoU", "fwIoU", "mACC", "pACC", "VC8", "VC16"):
        assert results[key] == pytest.approx(expected[key], abs=1e-9), key
    assert "protocol: clips of 20 frames" in caplog.text


def test_consistency_by_hand():
    truth = [np.array([[1, 1, 1, t]]) for t in range(4)]
    ours = [np.array([[5, t // 2, t, 5]]) for t in range(4)]
    total, count = consistency(truth, ours, (2, 3, 4))
    # Windows of 2 from frames 0 and 1: three pixels of the truth are constant. In frames 0, 1
    # two of them are predicted steadily, in 1, 2 one. Of 3 from frame 0: one. Of 4: none.
    np.testing.assert_allclose(total, [2 / 3 + 1 / 3, 1 / 3, 0])
    np.testing.assert_array_equal(count, [2, 1, 0])
    # Nowhere is the truth constant.
    changing = [np.array([[t]]) for t in range(4)]
    total, count = consistency(changing, changing, (2,))
    np.testing.assert_array_equal((total, count), ([0], [0]))


@pytest.mark.parametrize("top", [3, 255, 700, 65535])
def test_packed_maps_come_back(top):
    maps = np.random.default_rng(0).integers(0, top + 1, size=(4, 5, 6))
    np.testing.assert_array_equal(unpack(pack(maps)), maps)
    still = np.repeat(maps[:1].repeat(40, 1).repeat(40, 2), 20, axis=0)
    assert pack(still).size < still.nbytes / 100


def write_maps(folder: Path, videos: dict[str, np.ndarray]) -> Path:
    for video, maps in videos.items():
        (folder / video).mkdir(parents=True)
        for t, label_map in enumerate(maps):
            Image.fromarray(label_map).save(folder / video / f"{t:03d}.png")
    return folder


def test_videos_of_one_frame_and_unknown_pixels(register, tmp_path):
    # Offset 1: 0 and 255 are unknown, and so is 4 with three labels.
    maps = {"one": np.array([[[1, 2, 0, 255, 4, 3]]], dtype=np.uint8)}
    records = clips(write_maps(tmp_path, maps), 20)
    name = vspw(register, "test_one", records, label_names=["a", "b", "c"])
    evaluator = VideoSemanticEvaluator(name)
    scores = one_hot(np.array([[[0, 1, 0, 1, 2, 1]]]), 3)
    evaluator.process(records, [{"sem_seg": scores}])
    results = evaluator.evaluate()["sem_seg"]
    assert results["pACC"] == pytest.approx(200 / 3)
    assert results["mIoU"] == pytest.approx(100 * (1 + 1 / 2 + 0) / 3)
    assert math.isnan(results["VC8"]) and math.isnan(results["VC16"])
    (label_map,) = VideoTruth.from_dataset(name).label_maps("one/000000")
    assert label_map.tolist() == [[0, 1, IGNORED, IGNORED, IGNORED, 2]]


def test_nothing_given_is_changed(register, tmp_path):
    maps = {"a": np.array([[[1, 255]], [[0, 2]]], dtype=np.uint8)}
    records = clips(write_maps(tmp_path, maps), 20)
    name = vspw(register, "test_kept", records)
    truth = VideoTruth.from_dataset(name)
    before = truth.maps("a/000000").copy()
    scores = torch.rand(124, 2, 1, 2)
    kept = scores.clone()
    evaluator = VideoSemanticEvaluator(name, truth=truth)
    evaluator.process(records, [{"sem_seg": scores}])
    evaluator.evaluate()
    assert torch.equal(scores, kept)
    np.testing.assert_array_equal(truth.maps("a/000000"), before)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["000.png", "001.png", "a"]


def test_wrong_clips_name_the_file(register, tmp_path):
    root = write_maps(
        tmp_path, {"a": np.ones((2, 3, 4), np.uint8), "b": np.ones((3, 2, 2), np.uint8)}
    )
    records = clips(root, 2)
    name = vspw(register, "test_wrong_clips", records)
    evaluator = VideoSemanticEvaluator(name)
    with pytest.raises(ValueError, match=r"a/000\.jpg: the prediction is \(6, 8\), .* \(3, 4\)"):
        evaluator.process(records[:1], [{"sem_seg": torch.zeros(124, 2, 6, 8)}])
    with pytest.raises(ValueError, match=r"a/000000: 3 frames are predicted, but the clip has 2"):
        evaluator.process(records[:1], [{"sem_seg": torch.zeros(124, 3, 3, 4)}])
    with pytest.raises(ValueError, match=r"a/000\.jpg: label 124 is predicted"):
        evaluator.process(records[:1], [{"sem_seg": one_hot(np.full((2, 3, 4), 124), 125)}])
    with pytest.raises(ValueError, match=r"b/000007 is not in dataset 'test_wrong_clips'"):
        evaluator.process([{**records[1], "clip": 7}], [{"sem_seg": torch.zeros(124, 2, 2, 2)}])
    with pytest.raises(ValueError, match="give output_dir"):
        VideoSemanticEvaluator(name, dump=True)
    # Frames of another size, within a clip and in the next one.
    Image.fromarray(np.ones((4, 4), np.uint8)).save(root / "a" / "001.png")
    evaluator = VideoSemanticEvaluator(name)
    with pytest.raises(ValueError, match=r"a/001\.png is \(4, 4\), but .*a/000\.png"):
        evaluator.process(records[:1], [{"sem_seg": torch.zeros(124, 2, 3, 4)}])
    Image.fromarray(np.ones((4, 4), np.uint8)).save(root / "b" / "002.png")
    evaluator.process(records[1:2], [{"sem_seg": torch.zeros(124, 2, 2, 2)}])
    with pytest.raises(ValueError, match=r"b/000001: frames are \(4, 4\), but \(2, 2\)"):
        evaluator.process(records[2:], [{"sem_seg": torch.zeros(124, 1, 4, 4)}])
    twice = [*records, {**records[1], "clip": 5}]
    with pytest.raises(ValueError, match=r"000\.jpg is in the clips b/000000 and b/000005"):
        VideoTruth("test_twice", twice, MetadataCatalog.get(name))


def test_label_maps_of_whole_videos_are_dropped(register):
    records = clips(CROP / "truth", 5)
    name = vspw(register, "test_dropped", records)
    evaluator = VideoSemanticEvaluator(name)
    expected = run(evaluator, records, CROP / "prediction")
    assert not any("truth_maps" in clip for clip in evaluator._images.values())
    # A clip that comes once more changes nothing, and neither do clips in another order.
    np.testing.assert_equal(run(evaluator, records[:1], CROP / "prediction"), expected)
    assert not any("truth_maps" in clip for clip in evaluator._images.values())
    evaluator.reset()
    np.testing.assert_equal(run(evaluator, records[::-1], CROP / "prediction"), expected)
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_videos_with_missing_clips_have_no_consistency(register, caplog):
    records = clips(CROP / "truth", 5)
    name = vspw(register, "test_missing", records)
    given = [r for r in records if (r["video_id"], r["clip"]) != ("0001TP", 1)]
    results = run(VideoSemanticEvaluator(name), given, CROP / "prediction")
    assert "no VC for videos of which clips are missing: ['0001TP']" in caplog.text
    # Left is the video of 12 frames.
    assert math.isnan(results["VC16"]) and 0 < results["VC8"] < 100 and results["mIoU"] > 0


@pytest.mark.parametrize("labels", [124, 300])
def test_dumped_predictions_are_the_datasets_own_ids(register, tmp_path, labels):
    records = clips(CROP / "truth", 20)
    names = [str(i) for i in range(labels)]
    name = vspw(register, "test_dump", records, label_names=names, ignore_label=65535)
    cfg = config()
    cfg.TEST.DUMP_PREDICTIONS = True
    evaluator, _ = build_evaluator(cfg, name, tmp_path / "new")._evaluators
    run(evaluator, records, CROP / "prediction")
    paths = sorted((CROP / "prediction").rglob("*.png"))
    written = sorted((tmp_path / "new" / "predictions").rglob("*.png"))
    assert len(written) == 32
    for path, ours in zip(paths, written, strict=True):
        assert path.relative_to(CROP / "prediction") == ours.relative_to(
            tmp_path / "new" / "predictions"
        )
        np.testing.assert_array_equal(np.array(Image.open(ours)), np.array(Image.open(path)))


# Labels


def label_output(scores: list[float], kappa: int) -> dict:
    scores = torch.tensor(scores)
    return {"label_scores": scores, "label_ranking": scores.topk(kappa).indices}


def test_labels_of_clips_by_hand(register, tmp_path):
    # The first clip shows label 0 in 3 pixels and 1 in 1, in different frames; the second 2 alone.
    maps = {"v": np.array([[[1, 1]], [[1, 2]], [[3, 0]]], dtype=np.uint8)}
    records = clips(write_maps(tmp_path, maps), 2)
    name = vspw(register, "test_clip_labels", records, label_names=["a", "b", "c"])
    evaluator = MultiLabelEvaluator(name)
    evaluator.process(records, [label_output([0.9, 0.1, 0.5], 1), label_output([0.6, 0.7, 0.4], 1)])
    results = evaluator.evaluate()["labels"]
    # Label 1 stands below the clip without it, label 2 too.
    assert results["mAP"] == pytest.approx(100 * (1 + 1 / 2 + 1 / 2) / 3)
    assert results["recall"] == pytest.approx(25)
    assert results["coverage"] == pytest.approx(60)


def test_labels_of_tracks_by_hand(register, tmp_path):
    truth = content([track([0], [], id=1), track([], [3], category=9, id=2)])
    name = vis(register, tmp_path, truth)
    assert not GroundTruth.from_dataset(name).has_maps
    evaluator = MultiLabelEvaluator(name)
    evaluator.process(
        DatasetCatalog.get(name), [label_output([0.9, 0.1], 1), label_output([0.2, 0.4], 1)]
    )
    results = evaluator.evaluate()["labels"]
    # The first video shows both labels, the second none.
    assert results["mAP"] == pytest.approx(100 * (1 + 1 / 2) / 2)
    assert results["recall"] == pytest.approx(50) and "coverage" not in results


# All together


def config(semantic: bool = True, instance: bool = True):
    cfg = get_cfg()
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = semantic
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = instance
    return cfg


def names(evaluators) -> list[str]:
    return [type(e).__name__ for e in evaluators._evaluators]


def test_table_has_videos(register, tmp_path):
    name = vspw(register, "test_table_vss", clips(CROP / "truth", 20))
    assert names(build_evaluator(config(), name)) == [
        "VideoSemanticEvaluator",
        "MultiLabelEvaluator",
    ]
    name = vis(register, tmp_path, content([]), "test_table_vis")
    assert names(build_evaluator(config(), name)) == [
        "VideoInstanceEvaluator",
        "MultiLabelEvaluator",
    ]
    assert names(build_evaluator(config(instance=False), name)) == ["MultiLabelEvaluator"]


def feed(evaluator, records: list[dict]) -> dict:
    """A model's results for the crop, tracks and label scores too, and what they are worth."""
    evaluator.reset()
    for record in records:
        seed = sum(record["file_names"][0].encode())
        scores = torch.rand(124, generator=torch.Generator().manual_seed(seed))
        output = label_output(scores.tolist(), 10)
        if "sem_seg_file_names" in record:
            output["sem_seg"] = one_hot(predicted_maps(record, CROP / "prediction") - 1)
        else:
            output = {**output, "label_scores": scores[:2], "label_ranking": torch.tensor([1])}
            tracks = [track([0, 1], [0], video=record["video_id"], score=scores[3].item())]
            output |= vis_output(record, tracks, [9, 7], True)
        evaluator.process([record], [output])
    return json.loads(json.dumps(evaluator.evaluate()))


def two_processes(rank: int, folder: str) -> None:
    """What `test_two_processes_are_as_good_as_one` starts twice."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    for path in sorted(Path(folder).glob("dataset_*.json")):
        dataset = read(path)
        metadata = dataset["metadata"]
        if ids := metadata.get("thing_dataset_id_to_contiguous_id"):
            # Keys of json are text.
            metadata["thing_dataset_id_to_contiguous_id"] = {int(k): v for k, v in ids.items()}
        add(dataset["name"], dataset["records"], **metadata)
        evaluator = build_evaluator(config(), dataset["name"])
        records = dataset["records"]
        # Every other clip, so that videos are torn; the first one is seen by both.
        results = feed(evaluator, [records[0], *records[1 + rank :: 2]])
        (Path(folder) / f"results_{rank}_{dataset['name']}.json").write_text(json.dumps(results))
    # Gloo's threads must end before the process does: wait for the other, let go of the group.
    comm.synchronize()
    comm._get_global_gloo_group.cache_clear()
    torch.distributed.destroy_process_group()


def test_two_processes_are_as_good_as_one(register, tmp_path):
    truth = content(
        [track([0, 1], [0, 1], id=1, video=v) for v in (1, 2, 3)]
        + [track([0, 1], [], id=9, video=3, category=9)],
        lengths=(2, 2, 2),
    )
    datasets = [
        vspw(register, "test_both_vss", clips(CROP / "truth", 5)),
        vis(register, tmp_path, truth, "test_both_vis"),
    ]
    for name in datasets:
        metadata = MetadataCatalog.get(name).as_dict()
        del metadata["name"]
        dataset = {"name": name, "records": DatasetCatalog.get(name), "metadata": metadata}
        (tmp_path / f"dataset_{name}.json").write_text(json.dumps(dataset))
    torch.multiprocessing.spawn(two_processes, args=(str(tmp_path),), nprocs=2)
    for name, task in zip(datasets, ("sem_seg", "segm"), strict=True):
        assert read(tmp_path / f"results_1_{name}.json") == {}
        expected = feed(build_evaluator(config(), name), DatasetCatalog.get(name))
        np.testing.assert_equal(read(tmp_path / f"results_0_{name}.json"), expected)
        assert set(expected) == {task, "labels"}


def test_statistics_per_clip_are_saved(register, tmp_path):
    records = clips(CROP / "truth", 5)
    name = vspw(register, "test_saved", records)
    results = run(VideoSemanticEvaluator(name, tmp_path), records, CROP / "prediction")
    (path,) = tmp_path.iterdir()
    saved = np.load(path)
    assert saved["file_names"].tolist() == [f"{r['video_id']}/{r['clip']:06d}" for r in records]
    assert saved["video"].tolist() == ["0001TP", "0006R0"]
    # Metrics can be had from what is saved.
    vc8, vc16 = 100 * saved["vc_sum"].sum(0) / saved["vc_windows"].sum(0)
    assert results["VC8"] == pytest.approx(vc8) and results["VC16"] == pytest.approx(vc16)
    np.testing.assert_array_equal(saved["vc_windows"], [[12, 4], [4, 0]])
    hit, truth = saved["intersection"].sum(), saved["truth"].sum()
    assert results["pACC"] == pytest.approx(100 * hit / truth)
