"""COCO's panoptic and instance annotations from maps of segment ids.

Shapes: H, W pixels of an image.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from preparing.maps import save_picture
from rankseg_m2f.evaluation.rle import encode
from rankseg_m2f.files import replacing
from rankseg_m2f.images import ImageReadError, read_panoptic_map


def segments(ids: np.ndarray) -> list[dict]:
    """`id`, `area` and `bbox` (x, y, width, height) of each segment, by ascending id.

    Args:
        ids: (H, W) integers from 0 on; 0 is no segment.
    """
    # Lazy: most datasets come with their segments.
    from scipy.ndimage import find_objects

    areas = np.bincount(ids.ravel())
    areas[0] = 0
    found = np.flatnonzero(areas)
    number = np.zeros(len(areas), dtype=np.int32)
    number[found] = np.arange(1, len(found) + 1)
    return [
        {
            "id": int(i),
            "area": int(areas[i]),
            "bbox": [x.start, y.start, x.stop - x.start, y.stop - y.start],
        }
        for i, (y, x) in zip(found, find_objects(number[ids]), strict=True)
    ]


def instances(ids: np.ndarray, records: Iterable[dict], image_id: int | str) -> list[dict]:
    """COCO annotations of the segments `records`, masks as run lengths; `id` is the segment's."""
    return [
        {**record, "image_id": image_id, "segmentation": encode(ids == record["id"])}
        for record in records
    ]


def numbered(annotations: Iterable[dict]) -> list[dict]:
    """Annotations with `id` from 1 on: COCO's evaluation takes 0 for "no match"."""
    return [{**annotation, "id": i} for i, annotation in enumerate(annotations, start=1)]


def write_annotations(
    found: Iterable[tuple[dict, dict, list[dict]]],
    categories: Sequence[dict],
    panoptic: Path,
    objects: Path | None = None,
) -> None:
    """Write the json of panoptic annotations, and that of objects where there is one.

    Args:
        found: of each image COCO's record of it, its panoptic annotation, its objects.
    """
    found = list(found)
    images = [image for image, _, _ in found]
    annotations = [annotation for _, annotation, _ in found]
    write_json(panoptic, {"images": images, "annotations": annotations, "categories": categories})
    if objects is not None:
        things = [c for c in categories if c["isthing"]]
        annotations = numbered(x for _, _, records in found for x in records)
        write_json(objects, {"images": images, "annotations": annotations, "categories": things})


def picture_records(
    number: str, file_name: str, segments_info: list[dict], ids: np.ndarray, panoptic: Path
) -> tuple[dict, dict]:
    """Write a panoptic PNG; COCO's records of the image and of the annotation.

    Args:
        number: id of the image.
        file_name: its path.
        ids: (H, W) of the segments.
    """
    write_panoptic(panoptic, ids)
    height, width = ids.shape
    image = {"id": number, "file_name": file_name, "height": height, "width": width}
    annotation = {
        "image_id": number,
        "file_name": panoptic.name,
        "segments_info": segments_info,
    }
    return image, annotation


def write_panoptic(path: Path, ids: np.ndarray) -> None:
    """Write (H, W) segment ids as COCO's PNG, unless it is there."""
    try:
        if np.array_equal(read_panoptic_map(path), ids):
            return
    except ImageReadError:
        pass
    save_picture(path, Image.fromarray(panoptic_colours(ids)))


def panoptic_colours(ids: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 whose R + 256 G + 65536 B are the ids."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def write_json(path: Path, content: dict) -> None:
    """Write a json whole or not at all, unless it is there."""
    text = json.dumps(content)
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
        return
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
