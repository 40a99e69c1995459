#!/usr/bin/env python3
"""Prepare COCO: label maps from its panoptic annotations, and a check of the rest.

    python datasets/prepare_coco.py [--root FOLDER] [--jobs N]

Read below coco/ (cocodataset.org, 2017):
    {train,val}2017/*.jpg
    annotations/{instances,panoptic}_{train,val}2017.json
    panoptic_{train,val}2017/*.png      the two archives inside that of the panoptic annotations
Written there:
    panoptic_semseg_{train,val}2017/*.png       0 to 132, 255 no label
"""

from functools import partial
from pathlib import Path

import numpy as np
from preparing.maps import (
    is_label_map,
    picture_size,
    same_size,
    write_label_map,
)
from preparing.processes import in_processes
from preparing.script import check_count, inside, need, run_script

from rankseg_m2f.annotations.coco import read_coco
from rankseg_m2f.data.categories import read_categories
from rankseg_m2f.images import read_panoptic_map

SOURCE = (
    "2017 Train and Val images, 2017 Train/Val annotations and 2017 Panoptic Train/Val annotations "
    "(with the two archives inside unpacked too) of cocodataset.org, below coco/"
)
SPLITS = {"train": ("train2017", 118_287), "val": ("val2017", 5_000)}
IGNORE = 255
# What an image and an annotation of segments must say.
IMAGE, ANNOTATION = ("id", "file_name"), ("image_id", "file_name", "segments_info")


def prepare_coco(root: Path, *, jobs: int | None = None, any_size: bool = False) -> list[str]:
    """See preparing.script.Prepare."""
    base = Path(root) / "coco"
    kinds = (
        "{0}",
        "panoptic_{0}",
        "annotations/panoptic_{0}.json",
        "annotations/instances_{0}.json",
    )
    need(base, [kind.format(folder) for folder, _ in SPLITS.values() for kind in kinds], SOURCE)
    labels = {c["id"]: i for i, c in enumerate(read_categories("coco_panoptic_133"))}
    for split, (folder, official) in SPLITS.items():
        path = base / "annotations" / f"panoptic_{folder}.json"
        content = read_coco(path, images=IMAGE, annotations=ANNOTATION)
        names = {image["id"]: image["file_name"] for image in content["images"]}
        check_count(len(names), official, f"images in {path}", any_size)
        _check_instances(base, folder, names)
        need(base / folder, names.values(), SOURCE)
        found = content["annotations"]
        if alone := sorted(names.keys() ^ {a["image_id"] for a in found}):
            raise ValueError(f"{path}: {alone[0]} has an image or an annotation, not both")
        need(base / f"panoptic_{folder}", [a["file_name"] for a in found], SOURCE)
        items = [
            (names[a["image_id"]], inside(a["file_name"], path), a["segments_info"]) for a in found
        ]
        convert = partial(_convert, base=base, folder=folder, labels=labels)
        for _ in in_processes(convert, items, jobs, f"COCO, label maps, {split}", "map"):
            pass
    kinds = ("{}_panoptic", "{}_panoptic_with_sem_seg", "{}", "{}_sem_seg")
    return [kind.format(f"coco_2017_{split}") for kind in kinds for split in SPLITS]


def _check_instances(base: Path, folder: str, names: dict[int, str]) -> None:
    """The instances are of the same images."""
    path = base / "annotations" / f"instances_{folder}.json"
    others = {image["id"]: image["file_name"] for image in read_coco(path, images=IMAGE)["images"]}
    if different := sorted(others.items() ^ names.items()):
        raise ValueError(
            f"{path} and panoptic_{folder}.json are not of the same images: first {different[0]}"
        )


def _convert(
    item: tuple[str, str, list[dict]], *, base: Path, folder: str, labels: dict[int, int]
) -> None:
    picture, name, segments = item
    size = picture_size(base / folder / picture)
    target, source = base / f"panoptic_semseg_{folder}" / name, base / f"panoptic_{folder}" / name
    if not is_label_map(target, size, np.array([*labels.values(), IGNORE])):
        ids = same_size(read_panoptic_map(source), size, source)
        write_label_map(target, labels_of(ids, segments, labels, source), IGNORE)


def labels_of(
    ids: np.ndarray, segments: list[dict], labels: dict[int, int], path: Path
) -> np.ndarray:
    """(H, W) labels of panoptic ids; 255 where there is no segment.

    Raises:
        ValueError: a category without label, or a segment that is not listed.
    """
    values = {0: IGNORE}
    for segment in segments:
        if lacking := {"id", "category_id"} - segment.keys():
            raise ValueError(f"{path}: a segment lacks {min(lacking)!r}")
        category = segment["category_id"]
        if category not in labels:
            raise ValueError(f"{path}: category {category} is not a category of COCO panoptic")
        values[segment["id"]] = labels[category]
    known = np.array(sorted(values))
    place = np.searchsorted(known, ids).clip(max=len(known) - 1)
    if (wrong := known[place] != ids).any():
        raise ValueError(f"{path}: segment {ids[wrong][0]} is drawn but not in the json")
    return np.array([values[i] for i in known.tolist()])[place]


if __name__ == "__main__":
    run_script(prepare_coco, __doc__, "coco/panoptic/mask2former-R50-rankseg")
