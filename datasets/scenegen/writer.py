"""From scenes to files: images, label maps, COCO annotations, statistics.

Label id i of the vocabulary is category i + 1 of the annotations and value i of the label maps.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from preparing import coco

from rankseg_m2f.evaluation.rle import encode
from scenegen.render import render
from scenegen.vocabulary import Vocabulary
from scenegen.world import STILL, View, World, sample_world

SPLITS = ("train", "val")
MIN_AREA = 0.004  # share of the image; what is left of a part below this is unlabelled


def ignore_label(num_labels: int) -> int:
    """Value of unlabelled pixels in the label maps: 255 in 8 bits, 65535 in 16."""
    return 255 if num_labels <= 255 else 65535


def make_example(
    vocabulary: Vocabulary, seed: int, split: str, index: int, size: int
) -> tuple[World, np.ndarray, np.ndarray]:
    """Scene number `index` of a split: it depends on nothing but these arguments.

    Returns:
        The world; image (size, size, 3) uint8; parts (size, size) int32 as `render` numbers
        them, small ones made 0.
    """
    world = sample_world(vocabulary, np.random.default_rng([seed, SPLITS.index(split), index]))
    return world, *render_clean(world, size)


def render_clean(world: World, size: int, view: View = STILL) -> tuple[np.ndarray, np.ndarray]:
    """As `render`, with small parts made unlabelled."""
    image, parts = render(world, size, view)
    parts[(np.bincount(parts.ravel()) < MIN_AREA * size * size)[parts]] = 0
    return image, parts


def write_example(
    index: int, *, root: Path, vocabulary: Vocabulary, seed: int, split: str, size: int
) -> tuple[dict, dict, list[dict]]:
    """Write the image and both maps of one scene.

    Returns:
        The COCO records: image, panoptic annotation, instance annotations (ids not yet set).
    """
    world, image, parts = make_example(vocabulary, seed, split, index, size)
    ignored = ignore_label(len(vocabulary.labels))
    semantic = np.full(parts.shape, ignored, np.uint8 if ignored == 255 else np.uint16)
    panoptic = np.zeros(parts.shape, np.int32)
    segments, instances = [], []
    for part, element in enumerate((*world.bands, *world.things), start=1):
        mask = parts == part
        if not mask.any():
            continue
        segment = {
            "category_id": element.label + 1,
            "area": int(mask.sum()),
            "bbox": tight_box(mask),
            "iscrowd": 0,
        }
        # The label is in the two upper bytes, so that the PNG is not all black to the eye.
        number = (element.label + 1) * 256 + part
        segments.append({"id": number, **segment})
        semantic[mask] = element.label
        panoptic[mask] = number
        if vocabulary.labels[element.label].is_thing:
            instances.append({"image_id": index, "segmentation": encode(mask), **segment})
    name = f"{index:06d}"
    save_pixels(image, root / split / f"{name}.jpg", quality=95)
    save_pixels(coco.panoptic_colours(panoptic), root / f"panoptic_{split}" / f"{name}.png")
    save_pixels(semantic, root / f"semantic_{split}" / f"{name}.png")
    record = {"id": index, "file_name": f"{name}.jpg", "height": size, "width": size}
    annotation = {"image_id": index, "file_name": f"{name}.png", "segments_info": segments}
    return record, annotation, instances


def write_annotations(
    root: Path,
    split: str,
    vocabulary: Vocabulary,
    examples: Iterable[tuple[dict, dict, list[dict]]],
) -> dict:
    """Write the COCO panoptic and instance json of one split.

    Returns:
        Statistics: images, labels per image, and in how many images each label is (most frequent
        first, all labels).
    """
    examples, categories = list(examples), make_categories(vocabulary)
    panoptic, objects = (
        root / "annotations" / f"{k}_{split}.json" for k in ("panoptic", "instances")
    )
    coco.write_annotations(examples, categories, panoptic, objects)
    present = [{s["category_id"] for s in a["segments_info"]} for _, a, _ in examples]
    return {
        "images": len(examples),
        "instances": sum(len(found) for _, _, found in examples),
        **label_statistics(present, categories, "image"),
    }


def make_categories(vocabulary: Vocabulary) -> list[dict]:
    """COCO categories of all labels."""
    return [
        {"id": i, "name": x.name, "isthing": int(x.is_thing), "color": list(x.colour)}
        for i, x in enumerate(vocabulary.labels, start=1)
    ]


def label_statistics(present: list[set[int]], categories: list[dict], unit: str) -> dict:
    """Labels per unit (image or video), and how many units hold each label.

    Args:
        present: category ids found in each unit.
    """
    counts = Counter(category for labels in present for category in labels)
    by_count = sorted(categories, key=lambda category: -counts[category["id"]])
    sizes = [len(labels) for labels in present]
    return {
        f"labels_per_{unit}": {"mean": round(float(np.mean(sizes)), 3), "max": max(sizes)},
        "label_frequencies": {c["name"]: counts[c["id"]] for c in by_count},
    }


def describe_scene_types(vocabulary: Vocabulary) -> list[dict]:
    """Name, share and labels of each scene type, for scenes.json."""
    return [
        {
            "name": t.name,
            "share": round(t.weight, 4),
            "labels": [vocabulary.labels[i].name for i in (*t.stuff, *t.things)],
        }
        for t in vocabulary.scene_types
    ]


def save_pixels(pixels: np.ndarray, path: Path, **options) -> None:
    """Write an image (h, w, 3) or a map (h, w); the suffix says the format."""
    Image.fromarray(pixels).save(path, **options)


def tight_box(mask: np.ndarray) -> list[int]:
    """COCO box of a mask that is not empty: x, y, width, height."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]
