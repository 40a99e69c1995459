#!/usr/bin/env python3
"""Prepare Mapillary Vistas 1.2 (65 labels).

    python datasets/prepare_mapillary_vistas.py [--root FOLDER] [--jobs N]

Read below mapillary_vistas/ (mapillary.com/dataset/vistas), from the package of version 1.2, or
from that of 2.0, which has 1.2 in folders of that name:
    {training,validation}/images/*.jpg
    {training,validation}[/v1.2]/{labels,instances}/*.png
    {training,validation}[/v1.2]/panoptic/*.png, panoptic_2018.json
Written there:
    {training,validation}/labels/*.png      0 to 64, 65 no label; the same files under a second
                                            name where they are in a folder v1.2
    {training,validation}/panoptic/*.png, panoptic_2018.json    likewise; made of the instances
                                            (256 * label + number) where the package lacks them
"""

from functools import partial
from pathlib import Path

import numpy as np
from preparing.coco import picture_records, segments, write_annotations
from preparing.maps import is_label_map, picture_size, same_size
from preparing.processes import in_processes
from preparing.script import check_count, files, inside, link, need, paired, run_script

from rankseg_m2f.annotations.coco import read_coco
from rankseg_m2f.data.categories import read_categories
from rankseg_m2f.images import read_label_map

SOURCE = "Mapillary Vistas 1.2, or 2.0 with its folders v1.2, of mapillary.com/dataset/vistas"
SPLITS = {"train": ("training", 18_000), "val": ("validation", 2_000)}
# What is none of the labels, in `labels` and in `instances`.
VOID = 65
STEP = 256


def prepare_mapillary_vistas(
    root: Path, *, jobs: int | None = None, any_size: bool = False
) -> list[str]:
    """See preparing.script.Prepare."""
    base = Path(root) / "mapillary_vistas"
    need(base, [f"{folder}/images" for folder, _ in SPLITS.values()], SOURCE)
    for split, (folder, official) in SPLITS.items():
        _link_version(base / folder)
        need(base / folder, ["labels"], SOURCE)
        pictures = files(base / folder / "images", ".jpg")
        check_count(len(pictures), official, f"images in {base / folder / 'images'}", any_size)
        labels = base / folder / "labels"
        pairs = paired(pictures, files(labels, ".png"), labels)
        for _ in in_processes(_check, pairs, jobs, f"Mapillary Vistas, labels, {split}", "map"):
            pass
        if (base / folder / "panoptic" / "panoptic_2018.json").is_file():
            _check_panoptic(base / folder / "panoptic", pictures)
        else:
            _write_panoptic(base / folder, split, pictures, jobs)
    kinds = ("sem_seg", "panoptic")
    return [f"mapillary_vistas_{kind}_{split}" for kind in kinds for split in SPLITS]


def _link_version(folder: Path) -> None:
    """Give the files of v1.2 their places in the package of version 1.2."""
    for path in (folder / "v1.2").rglob("*"):
        if path.is_file():
            link(path, folder / path.relative_to(folder / "v1.2"))


def _check(paths: tuple[Path, Path]) -> None:
    picture, labels = paths
    if not is_label_map(labels, picture_size(picture), np.arange(VOID + 1)):
        raise ValueError(
            f"{labels}: broken, not of its image's size, or with labels above {VOID} (those of "
            "version 2.0 must stay in folders v2.0)"
        )


def _check_panoptic(folder: Path, pictures: dict[str, Path]) -> None:
    """All images are in the json, and all of its PNGs are there."""
    path = folder / "panoptic_2018.json"
    content = read_coco(path, annotations=("image_id", "file_name"))
    annotations = {a["image_id"]: a["file_name"] for a in content["annotations"]}
    need(folder, [inside(name, path) for name in annotations.values()], SOURCE)
    paired(pictures, {i: folder / name for i, name in annotations.items()}, path)


def _write_panoptic(folder: Path, split: str, pictures: dict, jobs: int | None) -> None:
    need(folder, ["instances"], f"folders panoptic or instances of {SOURCE}")
    pairs = paired(pictures, files(folder / "instances", ".png"), folder / "instances")
    write = partial(_write_picture, target=folder / "panoptic")
    found = in_processes(write, pairs, jobs, f"Mapillary Vistas, segments, {split}", "picture")
    categories = read_categories("mapillary_vistas_65")
    write_annotations(found, categories, folder / "panoptic" / "panoptic_2018.json")


def _write_picture(paths: tuple[Path, Path], target: Path) -> tuple[dict, dict, list[dict]]:
    picture, source = paths
    values = same_size(read_label_map(source), picture_size(picture), source).astype(np.int32)
    if (high := int(values.max(initial=0)) // STEP) > VOID:
        raise ValueError(f"{source}: label {high} is above {VOID}")
    # From 1 on, as 0 says that there is no segment; category ids are labels + 1.
    ids = np.where(values // STEP == VOID, 0, values + STEP)
    records = [
        {**record, "category_id": record["id"] // STEP, "iscrowd": 0} for record in segments(ids)
    ]
    panoptic = target / f"{picture.stem}.png"
    return *picture_records(picture.stem, picture.name, records, ids, panoptic), []


if __name__ == "__main__":
    run_script(prepare_mapillary_vistas, __doc__, "mapillary_vistas/semantic/mask2former-R50")
