"""Annotations as exporters, editors and people write them: what is read, left out, refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from datasets_made import quarters, write_dataset
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image
from pycocotools import mask as coco_mask

from rankseg_m2f.annotations.outlines import area, checked_outlines, clipped, rasterised
from rankseg_m2f.annotations.record import UNLABELLED, decode_labels
from rankseg_m2f.annotations.run_lengths import decoded_runs, run_totals
from rankseg_m2f.config import get_cfg
from rankseg_m2f.data.check import check_dataset
from rankseg_m2f.data.datasets.definitions import KINDS
from rankseg_m2f.data.loader import load_records
from rankseg_m2f.data.targets import transform_ids
from rankseg_m2f.errors import UserError
from rankseg_m2f.evaluation.build import build_evaluator
from rankseg_m2f.evaluation.instance import InstanceEvaluator
from rankseg_m2f.images import ImageReadError, image_size, read_label_map

SIZE = (48, 64)
SQUARE = [10.0, 5, 30, 5, 30, 25, 10, 25]


def run_lengths(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [*mask.shape], "counts": rle["counts"].decode()}


def square() -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[5:25, 10:30] = True
    return mask


# Outlines


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 1])
def test_run_lengths_are_decoded_as_they_were_written(share):
    rng = np.random.default_rng(0)
    texts, sizes = [], []
    for height, width in rng.integers(1, 70, (40, 2)):
        mask = rng.random((height, width)) < share
        texts.append(run_lengths(mask)["counts"].encode())
        sizes.append(mask.size)
        flat = mask.T.ravel()
        edges = np.flatnonzero(np.diff(flat)) + 1
        expected = np.diff([*([0] if flat[0] else []), 0, *edges, flat.size])
        assert decoded_runs(texts[-1]).tolist() == expected.tolist()
    totals, sound = run_totals(texts)
    assert totals.tolist() == sizes and sound.all()


def test_garbage_spoils_no_neighbour():
    good = run_lengths(square())["counts"].encode()
    bad = [b"", b"x", b"~~~", bytes(range(48, 112)), b"\x00\xff", good[:-1], good + b"o"]
    totals, sound = run_totals([text for one in bad for text in (one, good)])
    fits = sound & (totals == SIZE[0] * SIZE[1])
    assert not fits[::2].any() and fits[1::2].all()


def test_sound_outlines_come_out_as_they_were():
    outlines = [[SQUARE], [SQUARE, [1, 2, 3.5, 4, 5, 6]], run_lengths(square()), [[-40.0, 3] * 3]]
    kept, reasons = checked_outlines(outlines, [SIZE] * 4)
    assert kept == outlines and reasons == {}
    assert all(a is b for a, b in zip(kept[:2], outlines[:2], strict=True))


UNCOMPRESSED = [10 * 48 + 5, *[20, 28] * 19, 20, 34 * 48 + 23]


@pytest.mark.parametrize(
    "outline",
    [
        {"size": ["48", 64.0], "counts": UNCOMPRESSED},
        {"size": [48, 64], "counts": [float(run) for run in UNCOMPRESSED]},
        [[int(x) for x in SQUARE]],
        [SQUARE, [1, 2]],
        [SQUARE, [float("nan")] * 6],
    ],
)
def test_forms_of_one_square(outline):
    (kept,), _ = checked_outlines([outline], [SIZE])
    assert np.array_equal(rasterised(kept, SIZE), square()) and area(kept, SIZE) == 400


@pytest.mark.parametrize(
    "outline, message",
    [
        (SQUARE, "a plain list of numbers"),
        ([[1, 2], [3, 4], [5, 6]], r"a list of \[x, y\] points"),
        ([[[1, 2], [3, 4], [5, 6]]], "nested too deeply"),
        ([["1", "2", "3", "4", "5", "6"]], "not a finite number: '1'"),
        ([[1, 2, 3, 4, 5, float("inf")]], "not a finite number: inf"),
        ([[10**400] * 6], "not a finite number"),
        ([[True] * 6], "not a finite number: True"),
        ([[1, 2, 3, 4, 5]], "polygon of 5 coordinates"),
        ([[]], "polygon of 0 coordinates"),
        ([[x / 64 for x in SQUARE]], "shares of the image, where pixels"),
        ([None], "its polygon is None"),
        ("text", "its segmentation is 'text'"),
        ({"counts": "0"}, "lack 'size'"),
        ({"size": [64, 48], "counts": UNCOMPRESSED}, r"swapped: it must be \[height, width\]"),
        ({"size": [9, 9], "counts": UNCOMPRESSED}, r"its mask is of \[9, 9\]"),
        ({"size": [48, 64], "counts": [10, 100, 50]}, "sum to 160 pixels, where 48 x 64 have 3072"),
        ({"size": [48, 64], "counts": [-1, 3073]}, "hold -1, which is not a number of pixels"),
        ({"size": [48, 64], "counts": "b'Ul1d0'"}, "bytes written by str"),
        ({"size": [48, 64], "counts": "Ul1d0"}, "runs sum to|not COCO's compressed"),
        ({"size": [48, 64], "counts": "\u20ac"}, "not COCO's compressed"),
        ({"size": [48, 64], "counts": None}, "its run lengths are None"),
        ({"size": [48, 64]}, "its run lengths are None"),
    ],
)
def test_what_cannot_be_drawn_says_why(outline, message):
    (kept, other), reasons = checked_outlines([outline, [SQUARE]], [SIZE] * 2)
    assert kept is None and other == [SQUARE] and reasons.keys() == {0}
    assert re.search(message, reasons[0][0])


@pytest.mark.parametrize("far", [700.0, 1500.0])
def test_far_corners_change_no_pixel_inside(far):
    """As pycocotools draws them where it still can."""
    triangle = [20.0, 10, far, 20, 20, 30]
    (kept,), reasons = checked_outlines([[triangle]], [SIZE])
    assert max(kept[0]) <= 128 and "corners far outside" in reasons[0][0]
    assert (rasterised(kept, SIZE) == rasterised([triangle], SIZE)).mean() > 0.998


def test_a_corner_at_infinity_costs_nothing():
    polygon = [-164.1, -221.8, 208543216.0, 352186880.0, 226.0, 236.6, 272.0, 384.3]
    (kept, huge), _ = checked_outlines([[polygon], [[1e308, 1, -1e308, 5, 5, 1e308]]], [SIZE] * 2)
    assert np.abs(kept[0]).max() <= 128 and np.abs(huge[0]).max() <= 128
    assert rasterised(kept, SIZE).shape == SIZE


def test_clipping_by_hand():
    box = (0.0, 0.0), (10.0, 10.0)
    square_ = np.array([[-5.0, 5], [5, 5], [5, 15], [-5, 15]])
    assert sorted(clipped(square_, *box).tolist()) == [[0, 5], [0, 10], [5, 5], [5, 10]]
    assert len(clipped(square_ + 100, *box)) == 0


# Jsons of objects


@pytest.fixture
def made(tmp_path):
    """Registers a dataset whose json was changed; a dict of its paths, or its name."""

    def make(change=None, kind="coco_instances", text=None, **more):
        name = f"{kind}_{len(list(tmp_path.iterdir()))}_{tmp_path.name}"
        maps = [quarters(48, 64, [0, 1, 2, 3]), quarters(48, 64, [2, 1, 2, 3])] * 2
        arguments = {**write_dataset(tmp_path / name, maps)[kind], **more}
        path = tmp_path / name / ("panoptic.json" if "panoptic" in kind else "instances.json")
        content = json.loads(path.read_text())
        if change is not None:
            change(content)
        path.write_text(json.dumps(content) if text is None else text(json.dumps(content)))
        KINDS[kind](name, **arguments)
        return name

    return make


def perfect_ap(name: str) -> dict[str, float]:
    """What the evaluator says of the records' own objects."""
    import torch
    from detectron2.structures import Boxes, Instances

    evaluator = InstanceEvaluator(name)
    for record in DatasetCatalog.get(name):
        size = record["height"], record["width"]
        objects = [a for a in record["annotations"] if not a["iscrowd"]]
        masks = [rasterised(a["segmentation"], size) for a in objects]
        found = Instances(size)
        found.pred_masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *size))
        found.scores = torch.linspace(0.9, 0.5, len(masks))
        found.pred_boxes = Boxes(torch.zeros(len(masks), 4))
        found.pred_classes = torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()["segm"]


def every(key, value):
    """A change of all annotations."""
    return lambda c: [a.update({key: value(a, i)}) for i, a in enumerate(c["annotations"])]


@pytest.mark.parametrize(
    "change",
    [
        every("id", lambda a, i: i),
        every("id", lambda a, i: 5),
        every("id", lambda a, i: None),
        every("id", lambda a, i: f"x{i}"),
        every("iscrowd", lambda a, i: [0, False, None, "0"][i % 4]),
        every("area", lambda a, i: [None, 0, "5", -1][i % 4]),
        every("bbox", lambda a, i: [None, [], "x", [1, 2]][i % 4]),
        every("image_id", lambda a, i: float(a["image_id"])),
        lambda c: [a.pop("bbox") and a.pop("area") for a in c["annotations"]],
        lambda c: [i.update(height="48", width=64.0) for i in c["images"]],
        lambda c: [i.update(height=None, width=None) for i in c["images"]],
        lambda c: [i.pop("height") for i in c["images"]],
        lambda c: [i.update(height=0, width=0) for i in c["images"]],
        lambda c: (
            [i.update(id=f"i{i['id']}") for i in c["images"]]
            + [a.update(image_id=f"i{a['image_id']}") for a in c["annotations"]]
        ),
    ],
)
def test_what_exporters_write_differently_is_the_same(made, change):
    """Among it annotation ids from 0, which pycocotools takes for no match."""
    name = made(change)
    assert check_dataset(name).problems == []
    found = perfect_ap(name)
    assert found["AP"] == pytest.approx(100) and found["AP-car"] == pytest.approx(100)
    assert [(r["height"], r["width"]) for r in DatasetCatalog.get(name)] == [(48, 64)] * 4


@pytest.mark.parametrize(
    "change, message",
    [
        (every("image_id", lambda a, i: str(a["image_id"])), "image_id is text '0' there and the"),
        (every("image_id", lambda a, i: 77), r"none of the 8 annotations .*\(image_id 77\)"),
        (every("image_id", lambda a, i: [1]), "none of the 8 annotations"),
        (every("segmentation", lambda a, i: None), "boxes alone are nothing to learn"),
        (every("segmentation", lambda a, i: SQUARE), "8 of 8 outlines cannot be used, the first"),
        (every("category_id", lambda a, i: [12]), r"category_id=\[12\]"),
        (lambda c: c["images"][1].update(id=0), "several images of id 0: 000.png and 001.png"),
        (lambda c: c["images"][1].update(id="1"), "ids of images are text as well as numbers"),
        (lambda c: c["images"][1].update(id=None), "an image has the id None"),
        (lambda c: c["images"][1].update(file_name=None), "'file_name' None, which is not a name"),
        (lambda c: c["images"].append(None), "number 4 of 'images' is None, not an object"),
        (lambda c: c.update(annotations={}), "'annotations' is {}, not a list"),
        (lambda c: c.update(images={}), "no list of 'images'"),
        (lambda c: c["categories"][0].update(id=None), "has the id None"),
    ],
)
def test_what_nothing_can_be_learned_of_is_refused_in_one_sentence(made, change, message):
    """By training, evaluation and check alike."""
    with pytest.raises(UserError, match=message) as error:
        load_records([made(change)])
    assert "instances.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, message, left",
    [
        (lambda c: c["annotations"][2].update(segmentation=SQUARE), "annotation 3 of image 1", 7),
        (
            lambda c: c["annotations"][2].update(image_id=9),
            r"1 of 8 annotations .*\(image_id 9\)",
            7,
        ),
        (lambda c: c["annotations"][2].pop("segmentation"), "1 of 8 annotations have no segm", 7),
        (lambda c: c["annotations"].append(c["annotations"][2]), "3 is there more than once", 8),
        (lambda c: c["images"].append(c["images"][2]), "several images of id 2", 8),
        (
            lambda c: c["images"].append({**c["images"][2], "id": 8}),
            "002.png is listed under two",
            8,
        ),
        (lambda c: c["annotations"][2].update(iscrowd="yes"), "iscrowd 'yes'", 8),
        (lambda c: c["images"][0].update(height="tall"), "has the height 'tall'", 8),
        (every("iscrowd", lambda a, i: 1), "all 8 annotations are crowds", 8),
    ],
)
def test_what_is_left_out_is_a_problem_and_one_line_of_the_log(made, change, message, left, caplog):
    name = made(change)
    problems = [p for p in check_dataset(name).problems if re.search(message, p)]
    assert len(problems) == 1
    records = DatasetCatalog.get(name)
    assert sum(len(record["annotations"]) for record in records) == left and len(records) == 4
    assert len([r for r in caplog.records if "problems in its annotations" in r.message]) == 1


def test_nothing_but_crowds_is_counted(made):
    name = made(every("iscrowd", lambda a, i: True))
    with pytest.raises(UserError, match=r"all 8 are crowds \(iscrowd: 1\)"):
        load_records([name], filter_empty=True)


def test_an_object_without_a_pixel_is_named(made):
    name = made(lambda c: c["annotations"][0].update(segmentation=[[70, 10, 80, 10, 80, 20]]))
    (problem,) = [p for p in check_dataset(name).problems if "no pixel" in p]
    assert "000.png: annotation 1 has no pixel" in problem


def test_labels_of_one_name_have_results_of_their_own(made):
    name = made(lambda c: c["categories"][1].update(name="car"))
    assert MetadataCatalog.get(name).label_names == ["car", "car (id 13)"]
    found = perfect_ap(name)
    assert found["AP-car"] == found["AP-car (id 13)"] == pytest.approx(100)
    assert any("2 categories are named 'car', ids 12, 13" in r for r in check_dataset(name).remarks)


def test_two_jsons_of_one_dataset_agree_by_name(made):
    """Instances may number the things from 1 while the panoptic json counts stuff too."""
    name = made(kind="coco_panoptic")
    path = Path(MetadataCatalog.get(name).json_file)
    content = json.loads(path.read_text())
    for old, new in ((12, 1), (13, 2)):
        for entry in content["categories"]:
            entry["id"] = new if entry["id"] == old else entry["id"]
        for entry in content["annotations"]:
            entry["category_id"] = new if entry["category_id"] == old else entry["category_id"]
    path.write_text(json.dumps(content))
    assert check_dataset(name).problems == []
    labels = {a["category_id"] for a in InstanceEvaluator(name)._coco_api.anns.values()}
    assert labels == {2, 3}
    content["categories"][0]["name"] = "lorry"
    path.write_text(json.dumps(content))
    (problem,) = check_dataset(name).problems
    assert "category 1 (lorry) is not among the 4" in problem
    cfg = get_cfg()
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    with pytest.raises(UserError, match="lorry"):
        build_evaluator(cfg, name)


def test_ids_of_two_jsons_are_written_in_one_way(made):
    name = made(kind="coco_panoptic")
    path = Path(MetadataCatalog.get(name).json_file)
    content = json.loads(path.read_text())
    for key, entries in (("id", content["images"]), ("image_id", content["annotations"])):
        for entry in entries:
            entry[key] = str(entry[key])
    path.write_text(json.dumps(content))
    missing, _ = check_dataset(name).problems
    assert "4 images are missing" in missing and "ids are text in one" in missing
    cfg = get_cfg()
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    with pytest.raises(UserError, match=r"4 images are missing, .*ids are text in one"):
        build_evaluator(cfg, name)


# Panoptic


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.update(segments_info=None), r"000\.png has segments_info None, not a list"),
        (lambda s: s["segments_info"][0].update(id=2), r"000\.png \(image 0\) has two segments of"),
        (lambda s: s["segments_info"].append(3), r"000\.png: a segment lacks 'id': 3"),
        (lambda s: s["segments_info"][0].update(id=1 << 24), "the id 16777216, none of 1 to"),
        (lambda s: s["segments_info"][0].update(category_id=None), "segment 1 lacks 'category_id'"),
        (lambda s: s.update(image_id=1), r"image 1 \(001\.png\) has two entries"),
        (lambda s: s.update(file_name=None), "the annotation of image 0 is None for 'file_name'"),
    ],
)
def test_segments_that_contradict_each_other_are_refused(made, change, message):
    name = made(lambda c: change(c["annotations"][0]), "coco_panoptic")
    with pytest.raises(UserError, match=message):
        load_records([name])
    assert any(re.search(message, problem) for problem in check_dataset(name).problems)


def test_white_is_a_segment():
    """Transforms pad with white, too."""
    ids = np.array([[0xFFFFFF, 0], [7, 1]])
    pad = T.PadTransform(0, 0, 1, 1, seg_pad_value=255)
    assert transform_ids(ids, pad).tolist() == [[0xFFFFFF, 0, -1], [7, 1, -1], [-1, -1, -1]]


# Texts and label maps


@pytest.mark.parametrize(
    "text, message",
    [
        (lambda t: t[: len(t) // 2], "is not valid JSON"),
        (lambda t: "", "the file is empty"),
        (lambda t: "[" * 100_000, "nested too deeply"),
        (lambda t: "[]", "no list of 'categories'"),
    ],
)
def test_a_broken_json_is_named(made, text, message):
    with pytest.raises(UserError, match=rf"instances\.json.*{message}"):
        made(text=text)


def test_texts_of_windows_editors(made, tmp_path):
    assert len(DatasetCatalog.get(made(text=lambda t: "\ufeff" + t))) == 4
    path = tmp_path / "names.json"
    path.write_text("{}", encoding="utf-16")
    with pytest.raises(UserError, match=r"names\.json is saved as UTF-16"):
        KINDS["coco_instances"]("x", image_root=".", instances_json=str(path))


def test_values_of_label_maps():
    values = np.array([[0, 1, 2, 255]], dtype=np.uint8)
    assert decode_labels(values, 255).tolist() == [[0, 1, 2, UNLABELLED]]
    assert decode_labels(values, 255, 1).tolist() == [[UNLABELLED, 0, 1, UNLABELLED]]
    # 0 for none, and labels from 1 on.
    assert decode_labels(values[:, :3], 0, 1).tolist() == [[UNLABELLED, 0, 1]]


def test_formats_of_label_maps(tmp_path):
    ids = quarters(48, 64, [0, 1, 2, 3])
    for ending in ("png", "bmp", "tif"):
        Image.fromarray(ids).save(tmp_path / f"a.{ending}")
        assert np.array_equal(read_label_map(tmp_path / f"a.{ending}"), ids)
    floats = ids.astype(np.float32)
    Image.fromarray(floats).save(tmp_path / "float.tif")
    assert np.array_equal(read_label_map(tmp_path / "float.tif"), ids)
    for value, message in ((np.nan, "pixels are NaN"), (0.5, r"values such as 0\.5")):
        floats[0, 0] = value
        Image.fromarray(floats).save(tmp_path / "float.tif")
        with pytest.raises(ImageReadError, match=rf"float\.tif: .*{message}"):
            read_label_map(tmp_path / "float.tif")
    Image.fromarray(ids).save(tmp_path / "a.jpg")
    with pytest.raises(ImageReadError, match=r"a\.jpg: .*lossy"):
        read_label_map(tmp_path / "a.jpg")


def test_sizes_are_of_upright_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == (6, 4)
    (tmp_path / "b.jpg").write_bytes(b"")
    for path in (tmp_path / "b.jpg", tmp_path / "c.jpg", tmp_path):
        with pytest.raises(ImageReadError, match=str(path)):
            image_size(path)
    with pytest.raises(ImageReadError, match="backslashes"):
        image_size("images\\a.jpg")


# Folders


@pytest.fixture
def folders(tmp_path):
    """A semantic folder under change, and the names of its records."""
    maps = [quarters(48, 64, [0, 1, 2, 3])] * 3
    arguments = write_dataset(tmp_path / "set", maps)["semantic_folder"]

    def stems(**more):
        name = f"folders_{tmp_path.name}_{len(more)}"
        DatasetCatalog.data.pop(name, None)
        MetadataCatalog.data.pop(name, None)
        KINDS["semantic_folder"](name, **{**arguments, **more})
        return [record["image_id"] for record in DatasetCatalog.get(name)]

    return Path(arguments["image_root"]), Path(arguments["label_root"]), stems


def test_what_systems_leave_behind_is_passed_over(folders):
    images, labels, stems = folders
    for root in (images, labels):
        for place in (".ipynb_checkpoints/000-checkpoint.png", "@eaDir/000.png", "._000.png"):
            (root / place).parent.mkdir(exist_ok=True)
            (root / place).write_bytes((root / "000.png").read_bytes())
        (root / "Thumbs.db").touch()
    assert stems() == ["000", "001", "002"]


def test_photos_and_label_maps_are_told_apart(folders):
    images, labels, stems = folders
    for path in images.iterdir():
        Image.open(path).save(labels / f"{path.stem}.jpg")
    assert stems(image_root=str(labels)) == ["000", "001", "002"]
    (images / "000.jpg").write_bytes((labels / "000.jpg").read_bytes())
    with pytest.raises(UserError, match=r"000\.(png|jpg) .* are two photos of one name"):
        stems()
    with pytest.raises(UserError, match=r"000\.png is a photo and a label map at once"):
        stems(label_root=str(images), image_ending=".png")


def test_label_maps_that_are_jpeg_are_refused_with_the_reason(folders):
    _, labels, stems = folders
    for path in list(labels.iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    with pytest.raises(UserError, match=r"000\.jpg is JPEG, which is lossy"):
        stems()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("\ufeff001\r\n000\r\n", ["001", "000"]),
        ("001.png\n000.jpg\n", ["001", "000"]),
        ("001\n000\n001\n", ["001", "000"]),
    ],
)
def test_lists_of_names(folders, tmp_path, text, expected):
    (tmp_path / "list.txt").write_bytes(text.encode())
    assert folders[2](split_file=str(tmp_path / "list.txt")) == expected


def test_pixels_that_are_ignored_may_be_a_label(tmp_path):
    """Binary masks of 0 and 255."""
    maps = [quarters(48, 64, [0, 0, 255, 255])] * 2
    arguments = write_dataset(tmp_path / "set", maps)["semantic_folder"]
    name = f"binary_{tmp_path.name}"
    KINDS["semantic_folder"](name, **{**arguments, "classes": ["table", "cup"]})
    (remark,) = check_dataset(name).remarks
    assert "label 1 (cup) is never seen, while 50% of the pixels hold ignore_label=255" in remark
