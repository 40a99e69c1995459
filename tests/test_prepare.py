"""Preparation scripts on tiny raw downloads: what they write, what they refuse, going on."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import raw_trees
from conftest import ROOT
from PIL import Image
from prepare_ade20k import segment_ids
from prepare_ade20k_full import read_objects, target_size
from prepare_coco_lvis import stuff_values
from prepare_vspw import target_size as vspw_size
from preparing.coco import segments
from preparing.maps import lookup, picture_size, translate
from pycocotools import mask as mask_util
from raw_trees import H, W, stripes

from rankseg_m2f.data.categories import read_categories
from rankseg_m2f.images import read_label_map, read_panoptic_map

SHARED = ROOT.parent / "shared"
DATASETS = (
    "ade20k",
    "ade20k_full",
    "coco",
    "coco_stuff_10k",
    "coco_lvis",
    "pascal_context",
    "cityscapes",
    "mapillary_vistas",
    "vspw",
    "youtube_vis",
    "ovis",
)


def prepare(name, root, jobs=1, any_size=True):
    script = importlib.import_module(f"prepare_{name}")
    return getattr(script, f"prepare_{name}")(root, jobs=jobs, any_size=any_size)


def the(root, pattern):
    """The one file or folder that a pattern says."""
    (path,) = root.glob(pattern)
    return path


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def contents(root):
    return {
        str(p.relative_to(root)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folder of all datasets, raw and prepared; names that each script calls ready."""
    root = tmp_path_factory.mktemp("datasets")
    names = {}
    for name in DATASETS:
        getattr(raw_trees, name)(root)
        names[name] = prepare(name, root)
    return root, names


def test_what_is_ready_is_named_as_it_is_registered(prepared):
    _, names = prepared
    assert names["ade20k"] == [
        f"ade20k_{kind}_{split}"
        for split in ("train", "val")
        for kind in ("sem_seg", "panoptic", "instance")
    ]
    assert names["youtube_vis"] == [
        f"ytvis_{year}_{split}" for year in (2019, 2021) for split in ("train", "val")
    ]
    assert names["ovis"] == ["ovis_train", "ovis_val", "ovis_test"]
    assert sum(map(len, names.values())) == 6 + 2 + 8 + 2 + 2 + 4 + 6 + 4 + 2 + 4 + 3


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("ADE*16/annotations_detectron2/training/*01.png", (255, 0, 7, 12)),
        ("ADE*17_01/annotations_detectron2/training/*01.tif", (0, 2, 65535, 65535)),
        ("coco/panoptic_semseg_train2017/000000000009.png", (255, 0, 0, 132)),
        ("coco/*10k/annotations_detectron2/test/*79.png", (255, 0, 80, 170)),
        ("VOCdevkit/VOC2010/SegmentationClassContext/2008_000004.png", (0, 1, 0, 59)),
        ("cityscapes/gtFine/train/bonn/*_labelTrainIds.png", (255, 0, 11, 13, 13, 255)),
        ("mapillary_vistas/training/labels/a.png", (0, 55, 55, 27, 27, 65)),
    ],
)
def test_label_maps(prepared, path, values):
    path = the(prepared[0], path)
    labels = read_label_map(path)
    assert np.array_equal(labels, stripes(*values))
    assert Image.open(path).mode in ("L", "P", "I;16")


def test_label_maps_are_those_of_the_categories_by_name():
    def at(table, label):
        return read_categories(table)[label]["name"]

    assert [at("ade20k_150", i) for i in (0, 7, 12)] == ["wall", "bed", "person"]
    assert [at("ade20k_full_847", i) for i in (0, 2)] == ["wall", "sky"]
    assert [at("coco_panoptic_133", i) for i in (0, 132)] == ["person", "rug-merged"]
    assert [at("coco_stuff_171", i) for i in (0, 80, 170)] == ["person", "banner", "wood"]
    assert [at("pascal_context_60", i) for i in (1, 59)] == ["aeroplane", "wood"]
    assert [at("cityscapes_19", i) for i in (0, 11, 13)] == ["road", "person", "car"]
    assert [at("mapillary_vistas_65", i) for i in (0, 27, 55)] == ["Bird", "Sky", "Car"]


def test_sixteen_bits_where_labels_need_them(prepared):
    root, _ = prepared
    for folder in ("ADE20K_2021_17_01/annotations_detectron2", "coco_lvis/annotations"):
        assert {Image.open(p).mode for p in (root / folder).rglob("*.*")} == {"I;16"}


def test_ade20k_segments_are_stuff_with_objects_over_it(prepared):
    base = prepared[0] / "ADEChallengeData2016"
    panoptic = load(base / "ade20k_panoptic_train.json")
    assert [image["id"] for image in panoptic["images"]] == [
        "ADE_train_00000001",
        "ADE_train_00000002",
    ]
    ids = read_panoptic_map(base / "ade20k_panoptic_train/ADE_train_00000002.png")
    # The person is no object, so no segment.
    wall, first, second = 256 * 1, 256 * 8 + 1, 256 * 8 + 2
    assert np.array_equal(ids, stripes(0, 0, second, *3 * [wall], *3 * [first], 0, 0, 0))
    info = panoptic["annotations"][1]["segments_info"]
    assert [(s["id"], s["category_id"], s["area"], s["bbox"]) for s in info] == [
        (wall, 0, 3 * H, [3, 0, 3, H]),
        (first, 7, 3 * H, [6, 0, 3, H]),
        (second, 7, H, [2, 0, 1, H]),
    ]
    objects = load(base / "ade20k_instance_val.json")
    assert [(a["id"], a["image_id"], a["category_id"]) for a in objects["annotations"]] == [
        (1, "ADE_val_00000001", 7),
        (2, "ADE_val_00000001", 7),
    ]
    assert np.array_equal(mask_util.decode(objects["annotations"][0]["segmentation"]), ids == first)
    assert len(panoptic["categories"]) == 150
    assert len(objects["categories"]) == 100


def test_ade20k_full_is_resized_to_a_short_side_of_512(prepared):
    base = prepared[0] / "ADE20K_2021_17_01"
    assert Image.open(base / "images_detectron2/training/ADE_train_00000002.jpg").size == (768, 512)
    labels = read_label_map(base / "annotations_detectron2/training/ADE_train_00000002.tif")
    assert labels.shape == (512, 768)
    assert labels[0, [0, 250, 500, 700]].tolist() == [0, 2, 65535, 65535]
    assert target_size(600, 800) == (512, 683)
    assert target_size(900, 600) == (768, 512)
    assert target_size(512, 4000) == (512, 4000)


def test_ade20k_full_stays_as_its_masks_were_drawn(tmp_path):
    """EXIF says that the image stands on its head; its mask does not."""
    base = raw_trees.ade20k_full(tmp_path)
    path = next(base.rglob("ADE_val_00000001.jpg"))
    pixels = np.zeros((*picture_size(path), 3), np.uint8)
    pixels[: len(pixels) // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(path, exif=exif)
    prepare("ade20k_full", tmp_path)
    made = np.asarray(Image.open(base / "images_detectron2/validation/ADE_val_00000001.jpg"))
    assert made[0].min() > 250 and made[-1].max() < 5


def test_coco_lvis_puts_the_first_object_in_front_and_stuff_behind(prepared):
    base = prepared[0] / "coco_lvis/annotations"
    names = {c["name"]: i for i, c in enumerate(read_categories("coco_lvis_1284"), start=1)}
    blanket, wood = names["blanket"], names["wood"]
    expected = stripes(blanket, blanket, 1203, 1203, 1203, 1203, 7, 7, wood, wood, 0, 0)
    # As LVIS has it, a validation image may be of COCO's training folder.
    for path in ("train/000000000009.png", "val/000000000025.png", "val/000000000139.png"):
        assert np.array_equal(read_label_map(base / path), expected)
    # An image that nobody labelled is not of the dataset.
    assert len(list(base.rglob("*.png"))) == 3


def test_stuff_of_coco_lvis_has_the_labels_of_the_same_names():
    values = stuff_values()
    table, stuff = read_categories("coco_lvis_1284"), read_categories("coco_stuff_171")
    named = {c["id"]: c["name"] for c in stuff if not c["isthing"]}
    assert {i: table[v - 1]["name"] for i, v in enumerate(values) if v > 0} == named
    assert values[[0, 183]].tolist() == [0, 0]
    # 81 labels behind LVIS's 1,203; ten are LVIS's own.
    assert sum(v > 1203 for v in values) == 81


def test_pascal_context_lists_and_ready_maps(prepared, tmp_path):
    base = prepared[0] / "VOCdevkit/VOC2010"
    lists = base / "ImageSets/SegmentationContext"
    assert (lists / "train.txt").read_text(encoding="utf-8") == "2008_000002\n2008_000003\n"
    # MMSegmentation's folder alone serves too.
    copy = tmp_path / "VOCdevkit/VOC2010"
    for folder in ("JPEGImages", "SegmentationClassContext", "ImageSets"):
        shutil.copytree(base / folder, copy / folder)
    assert prepare("pascal_context", tmp_path) == prepared[1]["pascal_context"]


def test_cityscapes_segments_are_the_official_ones(prepared):
    base = prepared[0] / "cityscapes/gtFine"
    panoptic = load(base / "cityscapes_panoptic_train.json")
    ids = read_panoptic_map(
        base / "cityscapes_panoptic_train/bonn_000001_000019_gtFine_panoptic.png"
    )
    assert np.array_equal(ids, stripes(0, 7, 24, 26_000, 26_001, 0))
    annotation = panoptic["annotations"][1]
    assert annotation["image_id"] == "bonn_000001_000019"
    assert annotation["file_name"] == "bonn_000001_000019_gtFine_panoptic.png"
    assert [(s["id"], s["category_id"], s["iscrowd"]) for s in annotation["segments_info"]] == [
        (7, 7, 0),
        (24, 24, 1),
        (26_000, 26, 0),
        (26_001, 26, 0),
    ]
    objects = load(base / "cityscapes_instances_val.json")
    assert objects["images"][0]["file_name"] == "ulm/ulm_000002_000019_leftImg8bit.png"
    assert [(a["category_id"], a["iscrowd"], a["area"]) for a in objects["annotations"]] == [
        (24, 1, 2 * H),
        (26, 0, 2 * H),
        (26, 0, 2 * H),
    ]
    assert [c["id"] for c in objects["categories"]] == [24, 25, 26, 27, 28, 31, 32, 33]


def test_mapillary_vistas_segments_from_instances(prepared):
    base = prepared[0] / "mapillary_vistas/training"
    ids = read_panoptic_map(base / "panoptic/b.png")
    one, two, sky = 56 * 256 + 1, 56 * 256 + 2, 28 * 256
    assert np.array_equal(ids, stripes(256, one, two, sky, sky, 0))
    info = load(base / "panoptic/panoptic_2018.json")["annotations"][1]["segments_info"]
    assert [(s["id"], s["category_id"]) for s in info] == [
        (256, 1),
        (sky, 28),
        (one, 56),
        (two, 56),
    ]
    assert (base / "labels/a.png").samefile(base / "v1.2/labels/a.png")


def test_vspw_has_480_lines_and_whole_masks(prepared):
    base = prepared[0] / "VSPW_480p"
    with Image.open(base / "data/1_a/origin/00000001.jpg") as image:
        assert image.size == (740, 480)
    mask = read_label_map(base / "data/3_c/mask/00000016.png")
    assert mask.shape == (480, 740)
    assert np.unique(mask).tolist() == [0, 1, 124, 255]
    assert mask[0, [0, 200, 400, 700]].tolist() == [0, 1, 124, 255]
    assert (base / "data/4_d/origin").is_dir() and not (base / "data/4_d/mask").exists()
    assert (base / "val.txt").read_text(encoding="utf-8") == "3_c\n"


def test_widths_of_vspw_are_rounded_down(tmp_path):
    raw_trees.picture(tmp_path / "a.jpg", 1080, 1921)
    assert vspw_size(tmp_path / "a.jpg", in_place=False) == (480, 853)
    assert vspw_size(tmp_path / "a.jpg", in_place=True) == (1080, 1921)


def test_a_downloaded_vspw_480p_is_checked_in_place(prepared, tmp_path):
    shutil.copytree(prepared[0] / "VSPW_480p", tmp_path / "VSPW_480p")
    before = contents(tmp_path)
    prepare("vspw", tmp_path)
    assert contents(tmp_path) == before
    mask = tmp_path / "VSPW_480p/data/3_c/mask/00000001.png"
    raw_trees.save(mask, stripes(0, 200, height=480, width=740))
    with pytest.raises(ValueError, match=r"3_c/mask/00000001.png: id 200 is not one of VSPW's"):
        prepare("vspw", tmp_path)


def test_video_jsons_get_their_names(prepared):
    root, _ = prepared
    assert (root / "ytvis_2021/train.json").samefile(root / "ytvis_2021/train/instances.json")
    assert (root / "ovis/test.json").samefile(root / "ovis/annotations_test.json")


@pytest.mark.parametrize("name", DATASETS)
def test_a_second_run_does_nothing(prepared, name, capsys):
    before = contents(prepared[0])
    assert prepare(name, prepared[0]) == prepared[1][name]
    assert contents(prepared[0]) == before


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("ade20k", "ADE*16/annotations_detectron2/training/*01.png"),
        ("ade20k", "ADEChallengeData2016/ade20k_panoptic_val/ADE_val_00000001.png"),
        ("ade20k", "ADEChallengeData2016/ade20k_panoptic_val.json"),
        ("ade20k_full", "ADE20K_2021_17_01/annotations_detectron2/validation/ADE_val_00000001.tif"),
        ("ade20k_full", "ADE20K_2021_17_01/images_detectron2/validation/ADE_val_00000001.jpg"),
        ("coco", "coco/panoptic_semseg_val2017/000000000139.png"),
        ("coco_lvis", "coco_lvis/annotations/val/000000000025.png"),
        ("vspw", "VSPW_480p/data/1_a/mask/00000001.png"),
    ],
)
def test_what_was_broken_or_not_finished_is_made_again(prepared, name, path):
    root, _ = prepared
    path = the(root, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    prepare(name, root)
    assert path.read_bytes() == whole
    path.unlink()
    prepare(name, root)
    assert path.read_bytes() == whole


def test_an_interrupted_run_leaves_no_half_file(tmp_path, monkeypatch):
    base = raw_trees.ade20k(tmp_path)

    def stop(self, path, **options):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, "save", stop)
        prepare("ade20k", tmp_path)
    assert list(base.rglob("annotations_detectron2/*/*")) == []
    assert len(prepare("ade20k", tmp_path)) == 6


def test_processes_do_not_change_the_files(prepared, tmp_path):
    """Two scripts: maps alone, and records that come back from the processes."""
    for name, folder in (("cityscapes", "cityscapes"), ("coco_lvis", "coco_lvis")):
        getattr(raw_trees, name)(tmp_path)
        prepare(name, tmp_path, jobs=2)
        found, expected = contents(tmp_path / folder), contents(prepared[0] / folder)
        assert {k: v for k, (v, _) in found.items()} == {k: v for k, (v, _) in expected.items()}


@pytest.mark.parametrize(
    ("name", "path", "values", "message"),
    [
        ("ade20k", "ADE*/annotations/validation/*.png", (0, 151), "id 151"),
        ("ade20k", "ADE*/annotations/validation/*.png", None, "pixels, its image"),
        ("cityscapes", "cityscapes/gtFine/val/*/*_labelIds.png", (7, 34), "id 34"),
        ("cityscapes", "cityscapes/gtFine/val/*/*_instanceIds.png", (7, 99), "id 99"),
        ("mapillary_vistas", "map*/validation/labels/c.png", (0, 66), "above 65"),
        ("mapillary_vistas", "map*/training/v1.2/instances/a.png", (0, 66 * 256), "label 66"),
        ("vspw", "VSPW/data/3_c/mask/00000001.png", (0, 125), "id 125"),
    ],
)
def test_ids_out_of_range_and_wrong_sizes_name_the_file(tmp_path, name, path, values, message):
    getattr(raw_trees, name)(tmp_path)
    wrong = stripes(1, 2, height=H + 1) if values is None else stripes(*values)
    path = the(tmp_path, path)
    raw_trees.save(path, wrong, np.uint16 if wrong.max() > 255 else np.uint8)
    with pytest.raises(ValueError, match=message) as error:
        prepare(name, tmp_path)
    assert path.name in str(error.value)


def test_objects_of_ade20k_are_over_its_stuff():
    objects = np.stack([stripes(1, 0, 0), stripes(4, 0, 0), stripes(0, 0, 0)], axis=-1)
    ids = segment_ids(stripes(1, 1, 8), objects, Path("x.png"))
    assert np.array_equal(ids, stripes(8 * 256 + 4, 256, 0))


def test_an_object_of_two_labels_is_named(tmp_path):
    base = raw_trees.ade20k(tmp_path)
    path = base / "annotations_instance/validation/ADE_val_00000001.png"
    raw_trees.save(path, np.stack([stripes(1, 2), stripes(1, 1), stripes(0, 0)], axis=-1))
    with pytest.raises(ValueError, match=r"ADE_val_00000001.png: an object has more than one"):
        prepare("ade20k", tmp_path)


def test_coco_segments_that_do_not_fit_the_json_are_named(tmp_path):
    base = raw_trees.coco(tmp_path)
    path = base / "panoptic_val2017/000000000139.png"
    raw_trees.save(path, raw_trees.colours(stripes(5, 70_000)))
    with pytest.raises(ValueError, match=r"000000000139.png: segment 5 is drawn but not"):
        prepare("coco", tmp_path)
    path = base / "annotations/panoptic_val2017.json"
    raw_trees.write(
        path, json.loads(path.read_text().replace('"category_id": 200', '"category_id": 12'))
    )
    with pytest.raises(ValueError, match="category 12 is not a category of COCO panoptic"):
        prepare("coco", tmp_path)


def test_coco_instances_of_other_pictures_are_named(tmp_path):
    base = raw_trees.coco(tmp_path)
    path = base / "annotations/instances_train2017.json"
    raw_trees.write(path, load(path) | {"images": load(path)["images"][:1]})
    with pytest.raises(ValueError, match=r"instances_train2017.json and panoptic_.*\(25, "):
        prepare("coco", tmp_path)


def test_matlab_files_of_other_releases_are_named(tmp_path):
    base = raw_trees.coco_stuff_10k(tmp_path)
    path = base / "annotations/COCO_train2014_000000000079.mat"
    raw_trees.save_mat(path, T=stripes(0, 1))
    with pytest.raises(ValueError, match=r"79.mat: has no 'S'"):
        prepare("coco_stuff_10k", tmp_path)
    path.write_bytes(b"no MATLAB")
    with pytest.raises(ValueError, match=r"79.mat: missing or broken"):
        prepare("coco_stuff_10k", tmp_path)
    head = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    path.write_bytes(head + bytes(400))
    with pytest.raises(ValueError, match=r"79.mat: of MATLAB 7.3"):
        prepare("coco_stuff_10k", tmp_path)


def test_labels_txt_must_list_the_59(tmp_path):
    base = raw_trees.pascal_context(tmp_path)
    lines = (base / "labels.txt").read_text(encoding="utf-8").splitlines()
    raw_trees.write(base / "labels.txt", [line for line in lines if "aeroplane" not in line])
    with pytest.raises(ValueError, match=r"labels.txt does not list aeroplane"):
        prepare("pascal_context", tmp_path)
    raw_trees.write(base / "labels.txt", ["aeroplane"])
    with pytest.raises(ValueError, match=r"labels.txt: 'aeroplane' is not a line such as"):
        prepare("pascal_context", tmp_path)


@pytest.mark.parametrize(
    ("name", "gone", "missing"),
    [
        ("ade20k", "ADEChallengeData2016/annotations/validation", "annotations/validation"),
        ("ade20k", "ADE*/annotations/training/*2.png", "ADE_train_00000002"),
        ("ade20k", "ADE*/images/training/*2.jpg", "ADE_train_00000002"),
        ("ade20k_full", "ADE20K_2021_17_01", "ADE20K_2021_17_01/images/ADE/training"),
        ("coco", "coco/panoptic_val2017", "coco/panoptic_val2017"),
        ("coco", "coco/val2017/000000000139.jpg", "coco/val2017/000000000139.jpg"),
        ("coco_stuff_10k", "coco/coco_stuff_10k/imageLists/test.txt", "imageLists/test.txt"),
        ("coco_lvis", "lvis/lvis_v1_val.json", "lvis/lvis_v1_val.json"),
        ("pascal_context", "VOCdevkit/VOC2010/trainval/*4.mat", "trainval/2008_000004.mat"),
        ("cityscapes", "cityscapes/gtFine/val", "cityscapes/gtFine/val"),
        ("mapillary_vistas", "mapillary_vistas/validation/images", "validation/images"),
        ("mapillary_vistas", "mapillary_vistas/validation/panoptic/c.png", "panoptic/c.png"),
        ("vspw", "VSPW/data/1_a/mask", "data/1_a/mask"),
        ("youtube_vis", "ytvis_2019/train/JPEGImages/v2/00005.jpg", "JPEGImages/v2/00005.jpg"),
        ("ovis", "ovis/annotations_train.json", "ovis/train.json"),
    ],
)
def test_what_is_missing_is_named(tmp_path, name, gone, missing):
    getattr(raw_trees, name)(tmp_path)
    path = the(tmp_path, gone)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        prepare(name, tmp_path)
    assert missing in str(error.value)


@pytest.mark.parametrize("name", DATASETS)
def test_nothing_downloaded_says_where_to_get_it(tmp_path, name):
    site = r"does not exist.* Needed: .*\.(com|org|edu|site|uk)"
    with pytest.raises(FileNotFoundError, match=site):
        prepare(name, tmp_path)


def test_another_number_of_pictures_needs_the_flag(tmp_path, capsys):
    raw_trees.ade20k(tmp_path)
    with pytest.raises(ValueError, match=r"2 images in .*images/training, the release has 20,210"):
        prepare("ade20k", tmp_path, any_size=False)
    assert not (tmp_path / "ADEChallengeData2016/annotations_detectron2").exists()
    prepare("ade20k", tmp_path)
    assert "the release has 2,000" in capsys.readouterr().out


def test_videos_of_another_year_or_size_are_named(tmp_path):
    base = raw_trees.youtube_vis(tmp_path)
    shutil.copy(tmp_path / "ytvis_2021/train/instances.json", base / "train.json")
    with pytest.raises(ValueError, match=r"train.json: category 1 is 'airplane', but in this data"):
        prepare("youtube_vis", tmp_path)
    raw_trees.youtube_vis(tmp_path)
    raw_trees.picture(base / "valid/JPEGImages/v3/00000.jpg", H, W + 2)
    with pytest.raises(ValueError, match=r"v3/00000.jpg: \(8, 14\) pixels, .*valid.json says"):
        prepare("youtube_vis", tmp_path)


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path):
    base = raw_trees.vspw(tmp_path)
    raw_trees.write(base / "train.txt", ["../../elsewhere"])
    with pytest.raises(ValueError, match=r"train.txt: '../../elsewhere' leads out"):
        prepare("vspw", tmp_path)


def test_broken_json_is_named(tmp_path):
    base = raw_trees.ovis(tmp_path)
    path = base / "annotations_train.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"annotations_train.json is not valid JSON"):
        prepare("ovis", tmp_path)


@pytest.mark.parametrize(
    ("name", "path", "key", "change", "message"),
    [
        (
            "coco",
            "coco/annotations/panoptic_val2017.json",
            "images",
            {},
            "0 of 'images' lacks 'id'",
        ),
        (
            "coco",
            "coco/annotations/panoptic_val2017.json",
            "annotations",
            {"image_id": 139, "category_id": 1},
            "0 of 'annotations' lacks 'file_name'",
        ),
        (
            "coco",
            "coco/annotations/panoptic_val2017.json",
            "annotations",
            {"image_id": 140, "file_name": "a.png", "segments_info": []},
            "139 has an image or an annotation, not both",
        ),
        ("coco_lvis", "lvis/lvis_v1_val.json", "images", {"id": 25}, "lacks 'coco_url'"),
        (
            "coco_lvis",
            "lvis/lvis_v1_val.json",
            "annotations",
            {"image_id": 25, "category_id": 1, "segmentation": []},
            "000000000025.jpg: an annotation has no sound outline",
        ),
        ("ovis", "ovis/annotations_train.json", "videos", {"id": 1}, "lacks 'file_names'"),
    ],
)
def test_json_of_another_kind_is_named(tmp_path, name, path, key, change, message):
    getattr(raw_trees, name)(tmp_path)
    content = load(tmp_path / path)
    content[key][0] = change
    raw_trees.write(tmp_path / path, content)
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(name, tmp_path)


def run(name, *options):
    command = [sys.executable, ROOT / f"datasets/prepare_{name}.py", "--jobs", "1", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/home/of/someone"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_command_line(tmp_path):
    assert "/home/of/someone/data/coco/train2017" in run("coco", "--root=~/data").stderr
    failed = run("cityscapes", "--root", tmp_path)
    assert failed.returncode == 1
    missing = tmp_path / "cityscapes/leftImg8bit/train"
    assert failed.stderr.startswith(f"prepare_cityscapes: {missing} does not exist")
    assert failed.stderr.count("\n") == 1
    raw_trees.cityscapes(tmp_path)
    done = run("cityscapes", "--root", tmp_path, "--any-size")
    assert done.returncode == 0, done.stderr
    assert f"DETECTRON2_DATASETS={tmp_path} python tools/check_dataset.py cityscapes" in done.stdout
    assert "python train_net.py --config-file configs/cityscapes/" in done.stdout


def test_segments_of_ids():
    ids = np.array([[0, 5, 5], [300, 0, 5]])
    assert segments(ids) == [
        {"id": 5, "area": 3, "bbox": [1, 0, 2, 2]},
        {"id": 300, "area": 1, "bbox": [0, 1, 1, 1]},
    ]
    assert segments(np.zeros((2, 3), np.int32)) == []


def test_lookup_and_translate():
    table = lookup({0: 255, 2: 7})
    assert table.tolist() == [255, -1, 7]
    assert translate(np.array([[2, 0]]), table, Path("x.png")).tolist() == [[7, 255]]
    for bad in (1, 3, -1):
        with pytest.raises(ValueError, match=f"x.png: id {bad} is not one"):
            translate(np.array([[0, bad]]), table, Path("x.png"))


@pytest.mark.shared
@pytest.mark.parametrize("stem", ["ADE_train_00016869", "ADE_train_00016900"])
def test_ids_of_real_ade20k_full_are_the_names_of_its_json(stem, tmp_path):
    folder = SHARED / "data/ADE20K_full"
    target = tmp_path / "ADE20K_2021_17_01/images/ADE/training"
    target.mkdir(parents=True)
    for ending in (".jpg", "_seg.png"):
        shutil.copy(folder / f"{stem}{ending}", target)
    shutil.copytree(target, target.parent / "validation")
    prepare("ade20k_full", tmp_path)
    objects = json.loads((folder / f"{stem}.json").read_text(encoding="latin-1"))
    names = {o["name_ndx"]: o["name"] for o in objects["annotation"]["object"]}
    with Image.open(folder / f"{stem}.jpg") as image:
        size = image.height, image.width
    drawn = set(np.unique(read_objects(folder / f"{stem}_seg.png", size)).tolist()) - {0}
    known = {c["id"]: c["name"] for c in read_categories("ade20k_full_847")}
    assert len(drawn) > 10
    assert {i: known[i] for i in drawn} == {i: names[i] for i in drawn}
    made = tmp_path / "ADE20K_2021_17_01/annotations_detectron2/training" / f"{stem}.tif"
    labels = read_label_map(made)
    assert min(labels.shape) == 512
    found = {read_categories("ade20k_full_847")[i]["id"] for i in np.unique(labels) if i != 65535}
    assert found <= drawn
    assert len(found) > len(drawn) // 2


@pytest.mark.shared
def test_real_coco_gives_the_label_maps_that_came_with_it(tmp_path):
    shutil.copytree(SHARED / "data/coco", tmp_path / "coco")
    shutil.rmtree(tmp_path / "coco/panoptic_semseg_val2017")
    shutil.rmtree(tmp_path / "coco/panoptic_semseg_train2017")
    prepare("coco", tmp_path)
    for split in ("train2017", "val2017"):
        expected = sorted((SHARED / f"data/coco/panoptic_semseg_{split}").glob("*.png"))
        assert expected
        for path in expected:
            made = read_label_map(tmp_path / f"coco/panoptic_semseg_{split}" / path.name)
            assert np.array_equal(made, read_label_map(path))


@pytest.mark.shared
def test_real_ade20k_gives_the_label_maps_that_came_with_it(tmp_path):
    source = SHARED / "data/ADEChallengeData2016"
    for folder in ("images", "annotations"):
        shutil.copytree(source / folder, tmp_path / "ADEChallengeData2016" / folder)
    prepare("ade20k", tmp_path)
    expected = sorted((source / "annotations_detectron2").rglob("*.png"))
    assert expected
    for path in expected:
        made = tmp_path / "ADEChallengeData2016" / path.relative_to(source)
        assert np.array_equal(read_label_map(made), read_label_map(path))
