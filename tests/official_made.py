"""Tiny datasets as their preparation leaves them, every official one, written for a test."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from rankseg_m2f.data.categories import read_categories
from rankseg_m2f.evaluation.rle import encode

H, W = 16, 20
SPLITS = ("train", "val")
COCO_IDS = {"train": (0, 1), "val": (2, 3)}
# The releases' own names of splits.
LONG = {"train": "training", "val": "validation"}
VALID = {"train": "train", "val": "valid", "test": "test"}


def scenes(table: str) -> list[list[tuple[np.ndarray, int, bool]]]:
    """Two images of a table's labels, the last among them: mask, label and crowd of segments."""
    categories = read_categories(table)
    stuff = [k for k, c in enumerate(categories) if not c.get("isthing", 0)] or [0]
    things = [k for k, c in enumerate(categories) if c.get("isthing", 1)] or [len(categories) - 1]
    quarter = [np.zeros((H, W), dtype=bool) for _ in range(4)]
    for i, mask in enumerate(quarter):
        mask[i // 2 * H // 2 :, i % 2 * W // 2 :][: H // 2, : W // 2] = True
    # A quarter of the first image stays unlabelled.
    first = [(0, stuff[0], False), (1, things[-1], False), (2, things[-1], False)]
    second = [
        (0, things[0], False),
        (1, things[0], "isthing" in categories[0]),
        (2, stuff[-1], False),
        (3, things[-1], False),
    ]
    return [[(quarter[i], k, crowd) for i, k, crowd in picture] for picture in (first, second)]


def label_map(scene: list, offset: int = 0, unlabelled: int = 255) -> np.ndarray:
    """(H, W) of labels plus `offset`; uint8 if they fit."""
    ids = np.full((H, W), unlabelled, dtype=np.int64)
    for mask, label, _ in scene:
        ids[mask] = label + offset
    return ids.astype(np.uint8 if ids.max() <= 255 else np.uint16)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_json(path: Path, **content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def semantic(
    root: Path, table: str, picture: str | None, labels: str, ids: tuple = (0, 1), **values
) -> None:
    """Images and label maps at paths with the id for {}."""
    for number, scene in zip(ids, scenes(table), strict=True):
        if picture is not None:
            save(root / picture.format(number), np.full((H, W, 3), 60 * number, dtype=np.uint8))
        save(root / labels.format(number), label_map(scene, **values))


def panoptic(
    root: Path,
    table: str,
    json_file: str,
    folder: str,
    ids: tuple,
    names: str,
    pngs: str = "{}.png",
) -> None:
    """Panoptic PNGs and json; `names` and `pngs` of images and PNGs, with the id for {}."""
    annotations = []
    for number, scene in zip(ids, scenes(table), strict=True):
        drawn, segments = np.zeros((H, W), dtype=np.int64), []
        for i, (mask, label, crowd) in enumerate(scene):
            drawn[mask] = 70000 * (i + 1) + 300
            category = read_categories(table)[label]["id"]
            segments.append(
                {"id": 70000 * (i + 1) + 300, "category_id": category, "iscrowd": int(crowd)}
            )
        colours = np.stack([drawn & 255, drawn >> 8 & 255, drawn >> 16], axis=2)
        save(root / folder / pngs.format(number), colours.astype(np.uint8))
        annotations.append(
            {"image_id": number, "file_name": pngs.format(number), "segments_info": segments}
        )
    images = [image(number, names) for number in ids]
    categories = [{"supercategory": "", **c} for c in read_categories(table)]
    write_json(root / json_file, images=images, annotations=annotations, categories=categories)


def instances(root: Path, table: str, json_file: str, ids: tuple, names: str) -> None:
    """COCO instances of the things."""
    categories, annotations = read_categories(table), []
    for number, scene in zip(ids, scenes(table), strict=True):
        for mask, label, crowd in scene:
            if categories[label]["isthing"]:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": categories[label]["id"],
                        "iscrowd": int(crowd),
                        "area": int(mask.sum()),
                        "bbox": [0, 0, W, H],
                        "segmentation": encode(mask),
                    }
                )
    things = [{"id": c["id"], "name": c["name"]} for c in categories if c["isthing"]]
    images = [image(number, names) for number in ids]
    write_json(root / json_file, images=images, annotations=annotations, categories=things)


def image(number: int | str, names: str) -> dict:
    return {"id": number, "file_name": names.format(number), "height": H, "width": W}


def ade20k(root: Path) -> None:
    root = root / "ADEChallengeData2016"
    for split, folder in LONG.items():
        labels = f"annotations_detectron2/{folder}/{{}}.png"
        semantic(root, "ade20k_150", f"images/{folder}/{{}}.jpg", labels)
        name = f"ade20k_panoptic_{split}"
        panoptic(root, "ade20k_150", f"{name}.json", name, (0, 1), "{}.jpg")
        instances(root, "ade20k_150", f"ade20k_instance_{split}.json", (0, 1), "{}.jpg")


def ade20k_full(root: Path) -> None:
    for folder in LONG.values():
        semantic(
            root / "ADE20K_2021_17_01",
            "ade20k_full_847",
            f"images_detectron2/{folder}/{{}}.jpg",
            f"annotations_detectron2/{folder}/{{}}.tif",
            unlabelled=65535,
        )


def coco(root: Path) -> None:
    root, table = root / "coco", "coco_panoptic_133"
    for split, ids in COCO_IDS.items():
        pngs = f"panoptic_semseg_{split}2017/{{}}.png"
        semantic(root, table, f"{split}2017/{{}}.jpg", pngs, ids)
        name = f"panoptic_{split}2017"
        panoptic(root, table, f"annotations/{name}.json", name, ids, "{}.jpg")
        instances(root, table, f"annotations/instances_{split}2017.json", ids, "{}.jpg")


def coco_stuff_10k(root: Path) -> None:
    for split in ("train", "test"):
        semantic(
            root / "coco" / "coco_stuff_10k",
            "coco_stuff_171",
            f"images_detectron2/{split}/{{}}.jpg",
            f"annotations_detectron2/{split}/{{}}.png",
        )


def coco_lvis(root: Path) -> None:
    coco(root)
    # Validation has images of both of COCO's folders.
    for split, ids in (("train", COCO_IDS["train"]), ("val", (1, 2))):
        labels = f"coco_lvis/annotations/{split}/{{}}.png"
        semantic(root, "coco_lvis_1284", None, labels, ids, offset=1, unlabelled=0)


def pascal_context(root: Path) -> None:
    root = root / "VOCdevkit" / "VOC2010"
    # One set of maps is of both tables: 0 is background in one of them and ignored in the other.
    semantic(
        root,
        "pascal_context_59",
        "JPEGImages/{}.jpg",
        "SegmentationClassContext/{}.png",
        offset=1,
        unlabelled=0,
    )
    save(root / "JPEGImages" / "unlisted.jpg", np.zeros((H, W, 3), dtype=np.uint8))
    for split, names in (("train", "1\n"), ("val", "0\n1\n")):
        path = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(names)


def cityscapes(root: Path) -> None:
    root, table, city = root / "cityscapes", "cityscapes_19", "aachen"
    for split in SPLITS:
        stem = f"{city}_{{}}_000019"
        semantic(
            root,
            table,
            f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png",
            f"gtFine/{split}/{city}/{stem}_gtFine_labelTrainIds.png",
        )
        # The release has other label maps beside these.
        save(root / "gtFine" / split / city / "x_gtFine_labelIds.png", label_map([]))
        ids = tuple(stem.format(i) for i in (0, 1))
        name = f"gtFine/cityscapes_panoptic_{split}"
        # As the official script has it: images by names that do not exist.
        pictures, pngs = "{}_gtFine_leftImg8bit.png", "{}_gtFine_panoptic.png"
        panoptic(root, table, f"{name}.json", name, ids, pictures, pngs)
        json_file = f"gtFine/cityscapes_instances_{split}.json"
        instances(root, table, json_file, ids, f"{city}/{{}}_leftImg8bit.png")


def mapillary_vistas(root: Path) -> None:
    for folder in LONG.values():
        base, table = root / "mapillary_vistas" / folder, "mapillary_vistas_65"
        semantic(base, table, "images/{}.jpg", "labels/{}.png", unlabelled=65)
        panoptic(base, table, "panoptic/panoptic_2018.json", "panoptic", ("0", "1"), "{}.jpg")


def vspw(root: Path) -> None:
    root = root / "VSPW_480p"
    for split in SPLITS:
        for number, scene in enumerate(scenes("vspw_124")):
            for frame in range(18):
                folder = root / "data" / f"{split}{number}"
                picture = np.full((H, W, 3), frame, dtype=np.uint8)
                save(folder / "origin" / f"{frame:08d}.jpg", picture)
                maps = label_map(scene, offset=1, unlabelled=frame % 2 * 255)
                save(folder / "mask" / f"{frame:08d}.png", maps)
        (root / f"{split}.txt").write_text(f"{split}0\n{split}1\n")


def tracks(root: Path, table: str, split: str, frames: str) -> None:
    """Two videos of two frames, with a track that leaves and a crowd; none in the test set."""
    categories, annotations, videos = read_categories(table), [], []
    for number, scene in enumerate(scenes(table), start=1):
        names = [f"v{number}/{frame}.jpg" for frame in (0, 1)]
        for name in names:
            save(root / frames / name, np.zeros((H, W, 3), dtype=np.uint8))
        videos.append(
            {"id": number, "file_names": names, "height": H, "width": W, "length": len(names)}
        )
        for mask, label, crowd in scene:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": number,
                    "category_id": categories[label]["id"],
                    "iscrowd": int(crowd),
                    "segmentations": [encode(mask), None if mask[0, 0] else encode(mask)],
                }
            )
    content = {"videos": videos, "categories": list(categories)}
    known = {} if split == "test" else {"annotations": annotations}
    write_json(root / f"{split}.json", **content, **known)


def ytvis(root: Path, year: str) -> None:
    for split in VALID.values():
        tracks(root / year, year, split, f"{split}/JPEGImages")


def ovis(root: Path) -> None:
    for split in VALID.values():
        # Both places are in use.
        tracks(
            root / "ovis", "ovis_25", split, split if split == "train" else f"{split}/JPEGImages"
        )


def write_official(root: Path) -> None:
    """All of them below `root`."""
    for write in (ade20k, ade20k_full, coco_lvis, coco_stuff_10k, pascal_context, cityscapes):
        write(root)
    for write in (mapillary_vistas, vspw, ovis):
        write(root)
    for year in ("ytvis_2019", "ytvis_2021"):
        ytvis(root, year)
