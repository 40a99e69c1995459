"""A tiny dataset in every annotation style, written for a test."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

# Label of each quarter of an image; its colour says the label.
COLOURS = {0: (200, 0, 0), 1: (0, 200, 0), 2: (0, 0, 200), 3: (200, 200, 0)}
NAMES = ["sky", "road", "car", "person"]
THINGS = {2, 3}
IGNORE = 255


def quarters(height: int, width: int, labels: list[int]) -> np.ndarray:
    """(height, width) label map of four quarters."""
    ids = np.empty((height, width), dtype=np.uint8)
    ids[: height // 2, : width // 2], ids[: height // 2, width // 2 :] = labels[:2]
    ids[height // 2 :, : width // 2], ids[height // 2 :, width // 2 :] = labels[2:]
    return ids


def write_dataset(root: Path, maps: list[np.ndarray]) -> dict[str, dict]:
    """Write images, label maps, panoptic and instance files; registration arguments by kind."""
    for folder in ("images", "labels", "panoptic"):
        (root / folder).mkdir(parents=True)
    images, panoptic, instances = [], [], []
    for number, ids in enumerate(maps):
        stem, (height, width) = f"{number:03d}", ids.shape
        picture = np.zeros((height, width, 3), dtype=np.uint8)
        segments = []
        for label in sorted(set(np.unique(ids).tolist()) - {IGNORE}):
            mask = ids == label
            picture[mask] = COLOURS.get(label, (90, 90, 90))
            segments.append({"id": label + 1, "category_id": 10 + label, "iscrowd": 0})
            if label in THINGS:
                rle = mask_util.encode(np.asfortranarray(mask))
                instances.append(
                    {
                        "id": len(instances) + 1,
                        "image_id": number,
                        "category_id": 10 + label,
                        "segmentation": dict(rle, counts=rle["counts"].decode()),
                        "bbox": mask_util.toBbox(rle).tolist(),
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                    }
                )
        Image.fromarray(picture).save(root / "images" / f"{stem}.png")
        Image.fromarray(ids).save(root / "labels" / f"{stem}.png")
        colours = np.zeros_like(picture)
        colours[:, :, 0] = np.where(ids == IGNORE, 0, ids + 1)
        Image.fromarray(colours).save(root / "panoptic" / f"{stem}.png")
        images.append({"id": number, "file_name": f"{stem}.png", "height": height, "width": width})
        panoptic.append({"image_id": number, "file_name": f"{stem}.png", "segments_info": segments})
    categories = [
        {"id": 10 + i, "name": name, "isthing": int(i in THINGS)} for i, name in enumerate(NAMES)
    ]
    write_json(root / "panoptic.json", images, panoptic, categories)
    things = [c for c in categories if c["isthing"]]
    write_json(root / "instances.json", images, instances, things)
    return {
        "coco_panoptic": {
            "image_root": str(root / "images"),
            "panoptic_root": str(root / "panoptic"),
            "panoptic_json": str(root / "panoptic.json"),
            "instances_json": str(root / "instances.json"),
        },
        "semantic_folder": {
            "image_root": str(root / "images"),
            "label_root": str(root / "labels"),
            "classes": NAMES,
        },
        "coco_instances": {
            "image_root": str(root / "images"),
            "instances_json": str(root / "instances.json"),
        },
    }


def write_json(path: Path, images: list, annotations: list, categories: list) -> None:
    """A COCO json."""
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
