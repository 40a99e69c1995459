"""Registration, sampling, augmentation and mapping of videos, on tiny ones made here."""

import json
import pickle
import random
import re
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image
from pycocotools import mask as mask_util

from rankseg_m2f.config import get_cfg
from rankseg_m2f.data.datasets.video import register_frames_folder, register_vspw, register_ytvis
from rankseg_m2f.data.frames import (
    evaluation_clips,
    sample_interval_frames,
    sample_training_frames,
)
from rankseg_m2f.data.loader import build_test_loader, build_train_loader
from rankseg_m2f.data.targets import LabelMasks, ObjectList, aligned, transform_ids
from rankseg_m2f.data.video_augmentation import OPTIONS, DrawnOnce, clip_augmentation
from rankseg_m2f.data.video_mappers import build_video_mapper
from rankseg_m2f.errors import UserError
from rankseg_m2f.evaluation.ytvis import VideoInstanceEvaluator
from rankseg_m2f.images import ImageReadError
from rankseg_m2f.structures.clip import ClipBatch

H, W = 40, 60
# Columns an object covers in each of four frames; None: absent.
SPANS = {7: [(0, 12), (4, 16), None, (12, 24)], 9: [None, None, None, (30, 50)]}
CLASSES = ["sky", "road", "car"]


def fresh() -> str:
    return f"video_{uuid.uuid4().hex[:8]}"


def picture(path: Path, frame: int) -> None:
    """Each column has a red of its own, each frame a blue, so that pixels say where they are."""
    pixels = np.zeros((H, W, 3), dtype=np.uint8)
    pixels[:, :, 0] = 4 * np.arange(W)
    pixels[:, :, 2] = 60 * (frame % 5)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def outline(span: tuple[int, int] | None, form: str) -> list | dict | None:
    if span is None:
        return None
    if form == "polygon":
        left, right = span
        return [[left, 10, right, 10, right, 30, left, 30]]
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[10:30, span[0] : span[1]] = 1
    if form == "compressed":
        rle = mask_util.encode(np.asfortranarray(mask))
        return {"size": [H, W], "counts": rle["counts"].decode()}
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return {"size": [H, W], "counts": np.diff(edges, prepend=0).tolist()}


def ytvis(root: Path, form: str = "compressed", change=None) -> str:
    """One video of four frames and the tracks of SPANS, written and registered."""
    names = [f"a/{frame:05d}.png" for frame in range(4)]
    for frame, name in enumerate(names):
        picture(root / "JPEGImages" / name, frame)
    tracks = [
        {
            "id": number,
            "video_id": 1,
            "category_id": 20 + number,
            "iscrowd": 0,
            "segmentations": [outline(span, form) for span in spans],
            "bboxes": [span and [span[0], 10, span[1] - span[0], 20] for span in spans],
        }
        for number, spans in SPANS.items()
    ]
    content = {
        "videos": [{"id": 1, "height": H, "width": W, "length": 4, "file_names": names}],
        "categories": [{"id": 29, "name": "cat"}, {"id": 27, "name": "dog"}],
        "annotations": tracks,
    }
    if change:
        change(content)
    (root / "instances.json").write_text(json.dumps(content))
    name = fresh()
    register_ytvis(
        name, image_root=str(root / "JPEGImages"), instances_json=str(root / "instances.json")
    )
    return name


def vspw(root: Path, lengths: dict[str, int], **arguments) -> str:
    """Videos in VSPW's layout: void above, sky left, road right, a car in the last frame."""
    for video, length in lengths.items():
        for frame in range(length):
            picture(root / "data" / video / "origin" / f"{frame}.jpg", frame)
            ids = np.zeros((H, W), dtype=np.uint8)
            ids[10:, :30], ids[10:, 30:], ids[:5] = 1, 2, 255
            if frame == length - 1:
                ids[20:30, 20:40] = 3
            mask = root / "data" / video / "mask" / f"{frame}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids).save(mask)
    (root / "val.txt").write_text("\n".join(lengths) + "\n")
    numbers = {name: str(i + 1) for i, name in enumerate(CLASSES)} | {"others": "0"}
    (root / "label_num_dic_final.json").write_text(json.dumps(numbers))
    name = fresh()
    register_vspw(name, root=str(root), split="val", **arguments)
    return name


def config(dataset: str, *overrides):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (dataset,)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = MetadataCatalog.get(dataset).num_classes
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (H,)
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice_by_clip"
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.SAMPLING_FRAME_NUM = 4
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.merge_from_list(list(overrides))
    return cfg


def mapped(dataset: str, *overrides, number: int = 0) -> dict:
    record = DatasetCatalog.get(dataset)[number]
    return build_video_mapper(config(dataset, *overrides), is_train=True)(record)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("num_frames", [1, 2, 5])
@pytest.mark.parametrize("frame_range", [0, 1, 4])
def test_training_frames_lie_around_one(length, num_frames, frame_range):
    rng = random.Random(0)
    seen = set()
    for _ in range(200):
        frames = sample_training_frames(
            length, rng, num_frames=num_frames, frame_range=frame_range, shuffle=False
        )
        assert len(frames) == num_frames and frames == sorted(frames)
        assert set(frames) <= set(range(length)) and frames[-1] - frames[0] <= 2 * frame_range
        counts = np.bincount(frames)
        assert np.ptp(counts[counts > 0]) <= 1  # repeats are spread
        if frame_range and length >= num_frames <= frame_range + 1:
            assert len(set(frames)) == num_frames
        seen |= set(frames)
    if length <= 7:
        assert seen == set(range(length))


def test_two_frames_are_the_official_draw():
    """The reference is uniform, and the other uniform in its neighbourhood."""
    rng, counts = random.Random(0), np.zeros((4, 4))
    for _ in range(6000):
        pair = sample_training_frames(4, rng, num_frames=2, frame_range=1, shuffle=False)
        counts[tuple(pair)] += 1
    # Reference 0 or 3 has one neighbour, 1 and 2 have two: P(0,1) = 1/4 + 1/8.
    expected = np.zeros((4, 4))
    expected[0, 1], expected[1, 2], expected[2, 3] = 3 / 8, 2 / 8, 3 / 8
    assert np.abs(counts / 6000 - expected).max() < 0.03


def test_shuffled_frames_are_out_of_order_sometimes():
    rng = random.Random(0)
    draws = [
        sample_training_frames(30, rng, num_frames=3, frame_range=9, shuffle=True)
        for _ in range(50)
    ]
    assert any(d != sorted(d) for d in draws) and any(d == sorted(d) for d in draws)


@pytest.mark.parametrize(
    "length, expected",
    [
        (30, {(s, s + 5, s + 10) for s in range(20)}),
        (11, {(0, 5, 10)}),
        (8, {(s, s + 3, s + 6) for s in range(2)}),
        (3, {(0, 1, 2)}),
        (2, {(0, 0, 1)}),
        (1, {(0, 0, 0)}),
    ],
)
def test_interval_frames(length, expected):
    rng = random.Random(0)
    draws = {
        tuple(sample_interval_frames(length, rng, num_frames=3, interval=5, shuffle=False))
        for _ in range(600)
    }
    assert draws == expected


def test_evaluation_clips():
    assert evaluation_clips(45, 20) == [range(20), range(20, 40), range(40, 45)]
    assert evaluation_clips(40, 20) == [range(20), range(20, 40)]
    assert evaluation_clips(45, 0) == [range(45)] and evaluation_clips(0, 0) == []


@pytest.mark.parametrize(
    "key, call",
    [
        ("SAMPLING_FRAME_NUM=0", {"num_frames": 0, "frame_range": 1}),
        ("SAMPLING_FRAME_RANGE=-1", {"num_frames": 2, "frame_range": -1}),
        ("SAMPLING_INTERVAL=0", {"num_frames": 2, "interval": 0}),
    ],
)
def test_bad_sampling_names_the_key(key, call):
    sample = sample_interval_frames if "interval" in call else sample_training_frames
    with pytest.raises(ValueError, match=key):
        sample(3, random, shuffle=False, **call)
    with pytest.raises(ValueError, match="clip_length=-1"):
        evaluation_clips(3, -1)


@pytest.mark.parametrize("form", ["compressed", "uncompressed", "polygon"])
def test_tracks_of_every_form(tmp_path, form):
    dataset = ytvis(tmp_path, form)
    record = DatasetCatalog.get(dataset)[0]
    assert MetadataCatalog.get(dataset).thing_classes == ["dog", "cat"]  # by ascending id
    assert (record["video_id"], record["length"]) == (1, 4)
    assert [[a["id"] for a in frame] for frame in record["annotations"]] == [[7], [7], [], [7, 9]]
    assert record["annotations"][1][0]["bbox"] == [4, 10, 12, 20]
    sample = mapped(dataset)
    assert sample["file_names"] == record["file_names"] and sample["length"] == 4
    assert (sample["height"], sample["width"]) == (H, W)
    for frame, instances in enumerate(sample["instances"]):
        assert instances.gt_classes.tolist() == [0, 1]
        assert instances.gt_classes.dtype == instances.gt_ids.dtype == torch.int64
        spans = [spans[frame] for spans in SPANS.values()]
        assert instances.gt_ids.tolist() == [
            -1 if span is None else number for number, span in zip(SPANS, spans, strict=True)
        ]
        for mask, span in zip(instances.gt_masks, spans, strict=True):
            expected = torch.zeros(H, W, dtype=torch.bool)
            if span:
                expected[10:30, span[0] : span[1]] = True
            assert torch.equal(mask, expected)
    batch = ClipBatch.from_inputs([sample], lambda x: x / 255, 32, torch.device("cpu"))
    target = batch.targets(2)[0]
    assert target.labels.tolist() == [0, 1] and target.masks.shape == (2, 4, 64, 64)
    assert target.masks.sum((2, 3)).tolist() == [[240, 240, 0, 240], [0, 0, 0, 400]]


def test_objects_in_no_chosen_frame_are_dropped(tmp_path):
    dataset = ytvis(tmp_path)
    record = DatasetCatalog.get(dataset)[0]
    mapper = build_video_mapper(config(dataset), is_train=True)
    for frames, expected in (((0, 1), [[7], [7]]), ((2, 2), [[], []]), ((2, 1), [[-1], [7]])):
        mapper.choose_frames = lambda length, frames=frames: frames
        sample = mapper(record)
        assert [i.gt_ids.tolist() for i in sample["instances"]] == expected
        assert sample["instances"][0].gt_masks.shape == (len(expected[0]), H, W)
        assert sample["image"][0][2, 0, 0] == 60 * frames[0]
        batch = ClipBatch.from_inputs([sample], lambda x: x / 255, 0, torch.device("cpu"))
        assert batch.targets(2)[0].masks.shape == (len(expected[0]), 2, H, W)


def test_a_class_comes_from_a_frame_that_shows_the_object():
    mask = np.ones((1, 2, 2), dtype=bool)
    frames = aligned(
        [LabelMasks([], mask[:0], []), LabelMasks([5], mask, [8]), LabelMasks([3], mask, [2])]
    )
    assert [f.labels for f in frames] == [[3, 5]] * 3
    assert [f.ids for f in frames] == [[-1, -1], [-1, 8], [2, -1]]
    assert [f.masks.sum((1, 2)).tolist() for f in frames] == [[0, 0], [0, 4], [4, 0]]


def test_crowds_are_left_out(tmp_path):
    dataset = ytvis(tmp_path, change=lambda c: c["annotations"][0].update(iscrowd=1))
    assert {i for f in mapped(dataset)["instances"] for i in f.gt_ids.tolist()} == {-1, 9}


def test_frames_are_augmented_alike(tmp_path):
    """A mask column covers the pixels whose red says that they come from there."""
    dataset = ytvis(tmp_path)
    cfg = config(dataset, "INPUT.RANDOM_FLIP", "flip_by_clip", "INPUT.SIZE_DIVISIBILITY", 48)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (30, 80), 400
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute_range"
    cfg.INPUT.CROP.SIZE = (20, 36)
    mapper = build_video_mapper(cfg, is_train=True)
    record = DatasetCatalog.get(dataset)[0]
    random.seed(0), np.random.seed(0)
    shapes, flips, checked = set(), set(), 0
    for _ in range(40):
        sample = mapper(record)
        images = torch.stack(sample["image"]).int()
        assert (images[:, 0] == images[:1, 0]).all()  # red: the same place in every frame
        inside = images[0, 1] == 0  # green: 128 in padding alone
        for frame in range(4):
            assert (images[frame, 2][inside] == 60 * frame).all()
        shapes.add(tuple(images.shape))
        row = images[0, 0][0, inside[0]]
        flips.add(bool(row[0] > row[-1]))
        for frame, instances in enumerate(sample["instances"]):
            assert not instances.gt_masks[:, ~inside].any()
            for number, mask in zip(instances.gt_ids.tolist(), instances.gt_masks, strict=True):
                if number < 0:
                    assert not mask.any()
                    continue
                left, right = SPANS[number][frame]
                red = images[frame, 0][mask]
                assert red.min() >= 4 * left - 4 and red.max() <= 4 * right
                checked += 1
    assert len(shapes) > 2 and flips == {True, False} and checked > 60


@pytest.mark.parametrize("option", [*OPTIONS, "ssd"])
def test_every_option_treats_frames_alike(tmp_path, option):
    cfg = config(ytvis(tmp_path))
    cfg.INPUT.COLOR_AUG_SSD = option == "ssd"
    cfg.INPUT.AUGMENTATIONS = [] if option == "ssd" else [option]
    augmentations = T.AugmentationList(clip_augmentation(cfg, 255, False))
    first = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    other = np.random.default_rng(1).integers(0, 256, (H, W, 3), dtype=np.uint8)
    random.seed(1), np.random.seed(1)
    changed = 0
    for _ in range(8):
        sample = T.AugInput(first)
        transforms = augmentations(sample)
        moved, state = transforms.apply_image(first), random.getstate()
        assert np.array_equal(moved, sample.image)
        changed += not np.array_equal(moved, first)
        after = transforms.apply_image(other)
        # A frame's result depends on the draw and on the frame, not on what came in between.
        assert np.array_equal(after, transforms.apply_image(other))
        assert np.array_equal(moved, transforms.apply_image(first))
        assert random.getstate() == state
        if option == "saturation":
            grey = other @ np.array([0.299, 0.587, 0.114])
            assert np.abs(after @ np.array([0.299, 0.587, 0.114]) - grey).max() < 12
    assert changed >= 6


def test_rotation_leaves_new_corners_unlabelled(tmp_path):
    cfg = config(ytvis(tmp_path))
    cfg.INPUT.AUGMENTATIONS = ["rotation"]
    np.random.seed(7)  # turns by enough to see
    sample = T.AugInput(np.full((H, W, 3), 200, dtype=np.uint8))
    transforms = T.AugmentationList(clip_augmentation(cfg, 255, False))(sample)
    corners = sample.image[:, :, 0] == 0
    ids = transform_ids(np.zeros((H, W), dtype=np.int32), transforms)
    assert corners.sum() > 20 and (ids[corners] == -1).all() and (ids == 0).mean() > 0.8
    whole = mask_util.encode(np.asfortranarray(np.ones((H, W), dtype=np.uint8)))
    shown = ObjectList([0], [whole]).transformed(transforms, (H, W))
    assert np.array_equal(shown.masks[0], ids == 0)
    rectangle = [[10, 10, 50, 10, 50, 30, 10, 30]]
    rle = mask_util.merge(mask_util.frPyObjects(rectangle, H, W))
    both = ObjectList([0, 0], [rectangle, rle]).transformed(transforms, (H, W)).masks
    assert (both[0] ^ both[1]).sum() < 60 and both[0].sum() > 700


def test_unknown_option_is_named(tmp_path):
    cfg = config(ytvis(tmp_path))
    cfg.INPUT.AUGMENTATIONS = ["sepia"]
    with pytest.raises(ValueError, match="'sepia' must be one of brightness"):
        build_video_mapper(cfg, is_train=True)


def test_what_draws_while_applied_draws_once():
    class Draw(T.Augmentation):
        def get_transform(self, image):
            return T.ColorTransform(lambda pixels: pixels + random.randrange(100))

    transform = DrawnOnce(Draw()).get_transform(np.zeros((1, 1, 3), dtype=np.uint8))
    frames = [transform.apply_image(np.full((1, 1, 3), i)) - i for i in range(5)]
    assert len({int(f[0, 0, 0]) for f in frames}) == 1


def test_vspw_labels(tmp_path):
    dataset = vspw(tmp_path, {"b": 4})
    metadata = MetadataCatalog.get(dataset)
    assert metadata.label_names == CLASSES and metadata.evaluator_type == "vspw"
    assert (metadata.label_offset, metadata.ignore_label, metadata.clip_length) == (1, 255, 20)
    sample = mapped(dataset, "INPUT.SAMPLING_RANDOM", False, "INPUT.SAMPLING_INTERVAL", 1)
    assert sample["video_id"] == "b" and sample["clip"] == 0
    for frame, instances in enumerate(sample["instances"]):
        assert instances.gt_classes.tolist() == [0, 1, 2]
        assert instances.gt_ids.tolist() == [0, 1, 2 if frame == 3 else -1]
        assert not instances.gt_masks[:, :10].any()
        sizes = instances.gt_masks.sum((1, 2)).tolist()
        assert sizes == ([800, 800, 200] if frame == 3 else [900, 900, 0])


def test_vspw_is_cut_into_clips_for_evaluation(tmp_path):
    records = DatasetCatalog.get(vspw(tmp_path / "a", {"b": 45, "a": 3}))
    assert [(r["video_id"], r["clip"], r["length"]) for r in records] == [
        ("b", 0, 20), ("b", 1, 20), ("b", 2, 5), ("a", 0, 3),
    ]  # fmt: skip
    # Frames 2 and 10 are in the order of their numbers.
    assert [Path(f).stem for f in records[0]["file_names"]] == [str(i) for i in range(20)]
    whole = DatasetCatalog.get(vspw(tmp_path / "b", {"b": 45}, clip_length=0))
    assert [r["length"] for r in whole] == [45]
    (tmp_path / "a" / "train.txt").write_text("a\n")
    train = fresh()
    register_vspw(train, root=str(tmp_path / "a"), split="train", classes=CLASSES)
    assert MetadataCatalog.get(train).clip_length == 0
    with pytest.raises(FileNotFoundError, match=r"test\.txt"):
        register_vspw(fresh(), root=str(tmp_path / "a"), split="test")


def test_missing_and_extra_files_are_all_named(tmp_path):
    dataset = vspw(tmp_path, {"a": 3, "b": 2})
    data = tmp_path / "data"
    (data / "a" / "mask" / "1.png").unlink()
    (data / "b" / "origin" / "0.jpg").unlink()
    (tmp_path / "val.txt").write_text("a\nb\nc\n")
    with pytest.raises(ValueError) as error:
        DatasetCatalog.get(dataset)
    message = str(error.value)
    for part in (
        f"{data / 'a' / 'origin' / '1.jpg'} has no label map",
        f"{data / 'b' / 'mask' / '0.png'} has no frame",
        f"{data / 'c' / 'origin'} does not exist",
    ):
        assert part in message


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["videos"][0]["file_names"].__setitem__(2, "a/gone.png"), r"gone\.png does no"),
        (lambda c: c["videos"][0].update(length=5), "video 1 names 4 frames, its length is 5"),
        (
            lambda c: c["videos"].append({**c["videos"][0], "file_names": ["b/0.png"] * 4}),
            r"several videos of id 1: a/00000\.png and b/0\.png",
        ),
        (lambda c: c["videos"][0].update(file_names=None), "video 1 has no frames"),
        (lambda c: [a.update(video_id=3) for a in c["annotations"]], r"none .*\(video_id 3\)"),
        (lambda c: c["annotations"][0].update(category_id=3), "annotation 7 has category_id=3"),
        (lambda c: c["annotations"][0]["segmentations"].pop(), "7 has 3 segmentations, video 1"),
    ],
)
def test_bad_json_names_the_place(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        DatasetCatalog.get(ytvis(tmp_path, change=change))


@pytest.mark.parametrize(
    "change, level, message",
    [
        (lambda c: c["videos"].append(c["videos"][0]), "problems", "several videos of id 1"),
        (
            lambda c: c["annotations"][0].update(video_id=3),
            "problems",
            r"1 of \d annotations are of an unknown video \(video_id 3\)",
        ),
        (
            lambda c: c["annotations"][0]["segmentations"][1].update(size=[3, 4]),
            "problems",
            r"annotation 7, frame 1 \(a/00001.png\): its mask is of \[3, 4\]",
        ),
        (lambda c: c["annotations"][0].update(id=9), "remarks", "1 annotations have the id of"),
    ],
)
def test_what_does_not_fit_is_left_out_and_said(tmp_path, change, level, message, caplog):
    name = ytvis(tmp_path, change=change)
    (found,) = getattr(DatasetCatalog.data[name].read()[1], level)
    assert re.search(message, found)
    assert len(DatasetCatalog.get(name)) == 1
    assert ("1 problems" in caplog.text) == (level == "problems")


def test_training_and_evaluation_see_the_same_tracks(tmp_path):
    """Ids from 0 on or shared, and a frame whose run lengths cover too little of it."""

    def spoil(content):
        for track in content["annotations"]:
            track["id"] = "x"
        content["annotations"][0]["segmentations"][1] = {"size": [H, W], "counts": [10, 100, 50]}

    name = ytvis(tmp_path, change=spoil)
    (record,) = DatasetCatalog.get(name)
    learned = [{a["id"]: a["segmentation"] for a in frame} for frame in record["annotations"]]
    assert {i for frame in learned for i in frame} == {*range(1, 1 + len(SPANS))}
    assert 1 not in learned[1]
    judged = VideoInstanceEvaluator(name)._truth["annotations"]
    assert {track["id"]: track["segmentations"] for track in judged} == {
        i: [frame.get(i) for frame in learned] for i in range(1, 1 + len(SPANS))
    }


def test_a_video_without_size_has_that_of_its_frames(tmp_path):
    (record,) = DatasetCatalog.get(ytvis(tmp_path, change=lambda c: c["videos"][0].pop("height")))
    assert (record["height"], record["width"]) == (H, W)


def test_a_json_without_annotations_is_for_testing(tmp_path):
    dataset = ytvis(tmp_path, change=lambda c: c.pop("annotations"))
    sample = next(iter(build_test_loader(config(dataset), dataset)))[0]
    assert len(sample["image"]) == 4 and "instances" not in sample
    with pytest.raises(ValueError, match="has no ground truth"):
        mapped(dataset)


@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_of_frames(tmp_path, nested):
    parts = ["x", "y/z"] if nested else ["."]
    for part in parts:
        for frame in (1, 2, 10):
            picture(tmp_path / "frames" / part / f"f{frame}.png", frame % 4)
            labels = tmp_path / "labels" / part / f"f{frame}.png"
            labels.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((H, W), 6, dtype=np.uint8)).save(labels)
    dataset = fresh()
    folders = {
        "image_root": str(tmp_path / "frames"),
        "label_root": str(tmp_path / "labels"),
    }
    register_frames_folder(dataset, **folders, classes=CLASSES, label_offset=5)
    records = DatasetCatalog.get(dataset)
    assert [r["video_id"] for r in records] == (parts if nested else ["frames"])
    assert [Path(f).stem for f in records[0]["file_names"]] == ["f1", "f2", "f10"]
    assert mapped(dataset)["instances"][0].gt_classes.tolist() == [1]
    picture(tmp_path / "frames" / "w" / "1.png", 0)
    with pytest.raises(ValueError, match=r"labels.w does not exist.*1\.png has no label map"):
        DatasetCatalog.get(dataset)
    for bad, message in (
        ({"label_offset": 253}, "ignore_label=255 is one of"),
        ({"clip_length": -1}, "clip_length=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            register_frames_folder(fresh(), **folders, classes=CLASSES, **bad)


def test_labels_and_sizes_that_do_not_fit_name_the_file(tmp_path):
    dataset = vspw(tmp_path, {"a": 2})
    Image.fromarray(np.full((H, W), 4, dtype=np.uint8)).save(tmp_path / "data/a/mask/1.png")
    with pytest.raises(ValueError, match=r"1\.png: label 3 is neither"):
        mapped(dataset)
    Image.fromarray(np.zeros((H, W - 1, 3), dtype=np.uint8)).save(tmp_path / "data/a/origin/1.jpg")
    with pytest.raises(ValueError, match=r"1\.jpg: .* its video's first frame says 40 x 60"):
        mapped(dataset)
    (tmp_path / "data/a/origin/1.jpg").write_bytes(b"gone")
    with pytest.raises(ImageReadError, match=r"1\.jpg"):
        mapped(dataset)


def test_crops_avoid_one_label_filling_them(tmp_path):
    crop = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", (8, 20))
    limit = ("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.9)
    dataset = vspw(tmp_path / "a", {"a": 3})
    np.random.seed(0)
    free = [len(mapped(dataset, *crop)["instances"][0]) for _ in range(30)]
    np.random.seed(0)
    bound = [len(mapped(dataset, *crop, *limit)["instances"][0]) for _ in range(30)]
    assert bound.count(1) < free.count(1)
    assert mapped(ytvis(tmp_path / "b"), *crop, *limit)["image"][3].shape == (3, 40, 100)


@pytest.mark.parametrize("interval", [False, True])
def test_workers_can_be_started_afresh(tmp_path, interval):
    """As they are on macOS, and on Linux from Python 3.14 on: by pickling the mapper."""
    cfg = config(ytvis(tmp_path), "INPUT.SAMPLING_RANDOM", not interval)
    mapper = build_video_mapper(cfg, is_train=True)
    record = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0]
    assert len(pickle.loads(pickle.dumps(mapper))(record)["image"]) == len(mapper(record)["image"])


def test_loaders_and_oracle(tmp_path):
    dataset = vspw(tmp_path, {"a": 5, "b": 2}, clip_length=3)
    cfg = config(dataset, "MODEL.RANKSEG.USE_GT_EVAL", True)
    samples = [batch[0] for batch in build_test_loader(cfg, dataset)]
    assert [(s["video_id"], s["clip"], s["length"]) for s in samples] == [
        ("a", 0, 3), ("a", 1, 2), ("b", 0, 2),
    ]  # fmt: skip
    batch = ClipBatch.from_inputs(samples[1:2], lambda x: x / 255, 32, torch.device("cpu"))
    assert sorted(set(batch.labels()[0].tolist())) == [0, 1, 2]
    streams = [build_train_loader(cfg, seed=3) for _ in range(2)]
    streams[1].seek(2)
    drawn = [[next(s)[0] for _ in range(2)] for s in map(iter, streams)]
    again = iter(streams[0])
    kept = [next(again)[0] for _ in range(4)][2:]
    assert [s["file_names"] for s in kept] == [s["file_names"] for s in drawn[1]]
    ours = iter(build_train_loader(config(ytvis(tmp_path / "y")), seed=0))
    assert next(ours)[0]["length"] == 4
