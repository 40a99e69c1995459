"""Tiny raw downloads of every known dataset, as their sites hand them out, written for a test.

Annotations are vertical stripes of equal width, so that what becomes of them can be said by hand.
Each function writes a whole tree below `root`, the folder of all datasets.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

from rankseg_m2f.data.categories import read_categories

H, W = 8, 12
COCO_PICTURES = {"train2017": (9, 25, 30), "val2017": (139,)}
# Numbers of the 59 labels among the 459 of PASCAL-Context, in the order of our table.
CONTEXT = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105),
    *(113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308),
    *(324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454),
    458,
)


def stripes(*values: int, height: int = H, width: int = W) -> np.ndarray:
    """(height, width) int32 of vertical stripes."""
    return np.tile(np.repeat(np.array(values, np.int32), width // len(values)), (height, 1))


def picture(path: Path, height: int = H, width: int = W) -> None:
    """Some image; JPEG or PNG."""
    y, x = np.mgrid[:height, :width]
    save(path, np.stack([y * 200 // height, x * 200 // width, (x + y) % 200], axis=-1), np.uint8)


def save(path: Path, values: np.ndarray, dtype: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(dtype)).save(path)


def write(path: Path, content: dict | list[str]) -> None:
    """A json of a dict, lines of a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(content) if isinstance(content, dict) else "\n".join(content) + "\n"
    path.write_text(lines, encoding="utf-8")


def save_mat(path: Path, **arrays: np.ndarray) -> None:
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, arrays)


def colours(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)


def run_lengths(mask: np.ndarray) -> dict:
    code = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


def box(left: float, right: float) -> list[list[float]]:
    """Polygon of the columns from `left` to `right`, over the whole height."""
    return [[left, 0, right, 0, right, H, left, H]]


def ade20k(root: Path) -> Path:
    """A bed and a second one where the label map has nothing; a person that is no object."""
    base = root / "ADEChallengeData2016"
    for folder, names in (
        ("training", ["ADE_train_00000001", "ADE_train_00000002"]),
        ("validation", ["ADE_val_00000001"]),
    ):
        for name in names:
            picture(base / "images" / folder / f"{name}.jpg")
            save(base / "annotations" / folder / f"{name}.png", stripes(0, 1, 8, 13))
            kind = stripes(0, 0, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0)
            number = stripes(0, 0, 2, 0, 0, 0, 1, 1, 1, 0, 0, 0)
            objects = np.stack([kind, number, np.zeros_like(kind)], axis=-1)
            save(base / "annotations_instance" / folder / f"{name}.png", objects)
    return base


def ade20k_full(root: Path) -> Path:
    """Wall, sky, an object too rare to have a label, and nothing."""
    base = root / "ADE20K_2021_17_01"
    for folder, stem, size in (
        ("training/home/a", "ADE_train_00000001", (H, W)),
        ("training/out/b", "ADE_train_00000002", (520, 780)),
        ("validation/home/a", "ADE_val_00000001", (H, W)),
    ):
        ids = stripes(2978, 2420, 5, 0, height=size[0], width=size[1])
        parts = np.stack([ids // 256 * 10 + 3, ids % 256, np.full_like(ids, 7)], axis=-1)
        picture(base / "images/ADE" / folder / f"{stem}.jpg", *size)
        save(base / "images/ADE" / folder / f"{stem}_seg.png", parts)
        # Parts of objects, which nobody asks for.
        save(base / "images/ADE" / folder / f"{stem}_parts_1.png", parts)
    return base


def coco(root: Path) -> Path:
    """Nothing, a person, a group of people, and a rug: colours beyond 16 bits."""
    base = root / "coco"
    ids = stripes(0, 70_000, 70_001, 16_000_000)
    segments = [
        {"id": 70_000, "category_id": 1, "iscrowd": 0},
        {"id": 70_001, "category_id": 1, "iscrowd": 1},
        {"id": 16_000_000, "category_id": 200, "iscrowd": 0},
    ]
    categories = list(read_categories("coco_panoptic_133"))
    for folder, numbers in COCO_PICTURES.items():
        images, panoptic, instances = [], [], []
        for number in numbers:
            name = f"{number:012d}"
            picture(base / folder / f"{name}.jpg")
            save(base / f"panoptic_{folder}" / f"{name}.png", colours(ids))
            images.append({"id": number, "file_name": f"{name}.jpg", "height": H, "width": W})
            info = {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}
            panoptic.append(info)
            for crowd in (0, 1):
                mask = ids == 70_000 + crowd
                instances.append(
                    {
                        "id": len(instances) + 1,
                        "image_id": number,
                        "category_id": 1,
                        "iscrowd": crowd,
                        "bbox": [3 * (crowd + 1), 0, 3, H],
                        "area": 3 * H,
                        "segmentation": run_lengths(mask),
                    }
                )
        for kind, annotations, listed in (
            ("panoptic", panoptic, categories),
            ("instances", instances, [c for c in categories if c["isthing"]]),
        ):
            content = {"images": images, "annotations": annotations, "categories": listed}
            write(base / "annotations" / f"{kind}_{folder}.json", content)
    return base


def coco_stuff_10k(root: Path) -> Path:
    base = root / "coco" / "coco_stuff_10k"
    for split, numbers in (("train", (77, 78)), ("test", (79,))):
        names = [f"COCO_train2014_{number:012d}" for number in numbers]
        for name in names:
            picture(base / "images" / f"{name}.jpg")
            save_mat(
                base / "annotations" / f"{name}.mat", S=stripes(0, 1, 92, 182).astype(np.uint8)
            )
        write(base / "imageLists" / f"{split}.txt", names)
    return base


def coco_lvis(root: Path) -> Path:
    """Two objects that overlap, over stuff; one validation image is of COCO's training folder."""
    objects = [
        {"category_id": 1203, "segmentation": box(2, 6)},
        {"category_id": 7, "segmentation": box(4, 8)},
    ]
    # Blanket, which is an LVIS category too; wood; the things in COCO's eyes.
    stuff = [
        {"category_id": category, "segmentation": run_lengths(stripes(*where) > 0)}
        for category, where in (
            (93, (1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)),
            (182, (0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0)),
            (183, (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0)),
        )
    ]
    lvis = {
        "train": [("train2017", 9), ("train2017", 30)],
        "val": [("train2017", 25), ("val2017", 139)],
    }
    for split, pictures in lvis.items():
        images = []
        for folder, number in pictures:
            picture(root / "coco" / folder / f"{number:012d}.jpg")
            address = f"http://images.cocodataset.org/{folder}/{number:012d}.jpg"
            images.append({"id": number, "coco_url": address, "height": H, "width": W})
        # Nobody has labelled the second training image.
        labelled = [number for _, number in pictures if number != 30]
        annotations = [{**a, "image_id": number} for number in labelled for a in objects]
        write(root / f"lvis/lvis_v1_{split}.json", {"images": images, "annotations": annotations})
    for split, numbers in (("train", (9, 25)), ("val", (139,))):
        annotations = [{**a, "image_id": number} for number in numbers for a in stuff]
        write(root / f"coco/annotations/stuff_{split}2017.json", {"annotations": annotations})
    return root / "coco_lvis"


def pascal_context(root: Path) -> Path:
    """No label, aeroplane (2), accordion (1: none of the 59), wood (458)."""
    base = root / "VOCdevkit" / "VOC2010"
    names = [c["name"] for c in read_categories("pascal_context_59")]
    listed = {1: "accordion", **dict(zip(CONTEXT, names, strict=True)), 459: "wool"}
    write(base / "labels.txt", [f"{number}: {name}" for number, name in listed.items()])
    for split, stems in (("train", ["2008_000002", "2008_000003"]), ("val", ["2008_000004"])):
        for stem in stems:
            picture(base / "JPEGImages" / f"{stem}.jpg")
            ids = stripes(0, 2, 1, 458).astype(np.uint16)
            save_mat(base / "trainval" / f"{stem}.mat", LabelMap=ids)
        write(base / "ImageSets" / "Main" / f"{split}.txt", stems)
    return base


def cityscapes(root: Path) -> Path:
    """Out of the region of interest, road, a group of people, two cars, a caravan (not rated)."""
    base = root / "cityscapes"
    for split, city, number in (("train", "aachen", 0), ("train", "bonn", 1), ("val", "ulm", 2)):
        stem = f"{city}_{number:06d}_000019"
        ids = stripes(3, 7, 24, 26_000, 26_001, 29_000)
        picture(base / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
        truth = base / "gtFine" / split / city
        save(truth / f"{stem}_gtFine_instanceIds.png", ids, np.uint16)
        save(truth / f"{stem}_gtFine_labelIds.png", np.where(ids < 1000, ids, ids // 1000))
    return base


def mapillary_vistas(root: Path) -> Path:
    """A bird, two cars, sky and void: training as of 2.0, validation as of 1.2 with its json."""
    base = root / "mapillary_vistas"
    values = stripes(0, 55 * 256 + 1, 55 * 256 + 2, 27 * 256, 27 * 256, 65 * 256)
    for folder, names in (("training", ["a", "b"]), ("validation", ["c"])):
        place = base / folder / ("v1.2" if folder == "training" else "")
        for name in names:
            picture(base / folder / "images" / f"{name}.jpg")
            save(place / "labels" / f"{name}.png", values // 256)
            save(place / "instances" / f"{name}.png", values, np.uint16)
    ids = stripes(1, 2, 3, 4, 4, 0)
    save(base / "validation/panoptic/c.png", colours(ids))
    segments = [
        {"id": i, "category_id": category, "iscrowd": 0}
        for i, category in ((1, 1), (2, 56), (3, 56), (4, 28))
    ]
    content = {
        "images": [{"id": "c", "file_name": "c.jpg", "height": H, "width": W}],
        "annotations": [{"image_id": "c", "file_name": "c.png", "segments_info": segments}],
        "categories": list(read_categories("mapillary_vistas_65")),
    }
    write(base / "validation/panoptic/panoptic_2018.json", content)
    return base


def vspw(root: Path) -> Path:
    """Other, wall, 124 and void, in frames of 24 x 37 pixels; no masks of the test video."""
    base = root / "VSPW"
    for split, videos in (("train", ["1_a", "2_b"]), ("val", ["3_c"]), ("test", ["4_d"])):
        for video in videos:
            for frame in ("00000001", "00000016"):
                picture(base / "data" / video / "origin" / f"{frame}.jpg", 24, 37)
                if split != "test":
                    ids = np.pad(stripes(0, 1, 124, 255, height=24, width=36), ((0, 0), (0, 1)))
                    save(base / "data" / video / "mask" / f"{frame}.png", ids)
        write(base / f"{split}.txt", videos)
    return base


def youtube_vis(root: Path) -> Path:
    """2019 with its json beside the folders, 2021 with it in them; no test videos."""
    for year in ("2019", "2021"):
        base = root / f"ytvis_{year}"
        for split, numbers in (("train", (1, 2)), ("valid", (3,))):
            content = _tracks(base / split / "JPEGImages", numbers, read_categories(base.name))
            write(
                base / (f"{split}.json" if year == "2019" else f"{split}/instances.json"), content
            )
    return root / "ytvis_2019"


def ovis(root: Path) -> Path:
    """Frames right below the split, and the json's own names."""
    base = root / "ovis"
    categories = [{"id": i, "name": name} for i, name in ((1, "Person"), (2, "Bird"))]
    for split, numbers in (("train", (1, 2)), ("valid", (3,)), ("test", (4,))):
        content = _tracks(base / split, numbers, categories)
        if split != "train":
            content["annotations"] = None
        write(base / f"annotations_{split}.json", content)
    return base


def _tracks(frames: Path, numbers: tuple[int, ...], categories) -> dict:
    """A YouTube-VIS json of videos of two frames, with an object that leaves."""
    videos, tracks = [], []
    for number in numbers:
        names = [f"v{number}/{frame:05d}.jpg" for frame in (0, 5)]
        for name in names:
            picture(frames / name)
        videos.append(
            {"id": number, "file_names": names, "height": H, "width": W, "length": len(names)}
        )
        tracks.append(
            {
                "id": number,
                "video_id": number,
                "category_id": 2,
                "iscrowd": 0,
                "segmentations": [run_lengths(stripes(0, 1, 0) > 0), None],
                "bboxes": [[4, 0, 4, H], None],
                "areas": [4 * H, None],
            }
        )
    return {"videos": videos, "annotations": tracks, "categories": list(categories)}
