#!/usr/bin/env python3
"""Prepare ADE20K (150 labels): label maps, and panoptic and instance annotations.

    python datasets/prepare_ade20k.py [--root FOLDER] [--jobs N]

Read below ADEChallengeData2016/ (the scene parsing challenge, sceneparsing.csail.mit.edu):
    images/{training,validation}/*.jpg
    annotations/{training,validation}/*.png             0 other, 1 to 150
    annotations_instance/{training,validation}/*.png    optional, annotations_instance.tar of the
                                                        same site: R label 1 to 100, G object
Written there:
    annotations_detectron2/{training,validation}/*.png  0 to 149, 255 other
    ade20k_panoptic_{train,val}/*.png, ade20k_{panoptic,instance}_{train,val}.json
"""

from functools import partial
from pathlib import Path

import numpy as np
from preparing.coco import instances, picture_records, segments, write_annotations
from preparing.maps import convert_maps, lookup, picture_size, same_size, translate
from preparing.processes import in_processes
from preparing.script import check_count, files, need, paired, run_script

from rankseg_m2f.data.categories import read_categories
from rankseg_m2f.images import read_image, read_label_map

SOURCE = (
    "ADEChallengeData2016.zip and, for panoptic and instance segmentation, annotations_instance.tar"
    " of sceneparsing.csail.mit.edu"
)
# Our split: the release's folder and number of images.
SPLITS = {"train": ("training", 20_210), "val": ("validation", 2_000)}
IGNORE = 255
# Segment ids are this times (label + 1), plus the number of the object: 0 of stuff.
STEP = 256


def prepare_ade20k(root: Path, *, jobs: int | None = None, any_size: bool = False) -> list[str]:
    """See preparing.script.Prepare."""
    base = Path(root) / "ADEChallengeData2016"
    need(base, [f"{k}/{f}" for k in ("images", "annotations") for f, _ in SPLITS.values()], SOURCE)
    names = []
    for split, (folder, official) in SPLITS.items():
        pictures = files(base / "images" / folder, ".jpg")
        check_count(len(pictures), official, f"images in {base / 'images' / folder}", any_size)
        pairs = paired(pictures, files(base / "annotations" / folder, ".png"), base / "annotations")
        target = base / "annotations_detectron2" / folder
        table = lookup({0: IGNORE, **{i + 1: i for i in range(150)}})
        maps = [(picture, source, target / source.name) for picture, source in pairs]
        convert_maps(maps, table, IGNORE, jobs, f"ADE20K, label maps, {split}")
        names.append(f"ade20k_sem_seg_{split}")
        if (base / "annotations_instance").is_dir():
            _write_objects(base, split, folder, pairs, jobs)
            names += [f"ade20k_panoptic_{split}", f"ade20k_instance_{split}"]
    return names


def _write_objects(base: Path, split: str, folder: str, pairs: list, jobs: int | None) -> None:
    pictures = {picture.stem: picture for picture, _ in pairs}
    objects = files(base / "annotations_instance" / folder, ".png")
    paired(pictures, objects, base / "annotations_instance")
    write = partial(_write_picture, target=base / f"ade20k_panoptic_{split}")
    items = [(picture, semantic, objects[picture.stem]) for picture, semantic in pairs]
    found = in_processes(write, items, jobs, f"ADE20K, segments, {split}", "picture")
    panoptic, instance = (base / f"ade20k_{k}_{split}.json" for k in ("panoptic", "instance"))
    write_annotations(found, read_categories("ade20k_150"), panoptic, instance)


def _write_picture(paths: tuple[Path, Path, Path], target: Path) -> tuple[dict, dict, list[dict]]:
    """Write one panoptic PNG; COCO's records of the image, its segments and its objects."""
    picture, semantic, objects = paths
    size = picture_size(picture)
    stuff = same_size(read_label_map(semantic), size, semantic)
    ids = segment_ids(stuff, same_size(read_image(objects), size, objects), objects)
    records = [
        {**record, "category_id": record["id"] // STEP - 1, "iscrowd": 0}
        for record in segments(ids)
    ]
    image, annotation = picture_records(
        picture.stem, picture.name, records, ids, target / f"{picture.stem}.png"
    )
    things = [record for record in records if record["id"] % STEP]
    return image, annotation, instances(ids, things, picture.stem)


def segment_ids(semantic: np.ndarray, objects: np.ndarray, path: Path) -> np.ndarray:
    """Segments as Mask2Former makes them: stuff of the label map, with the objects over it.

    What the label map calls a thing is no segment where no object is.

    Args:
        semantic: (H, W) 0 other, 1 to 150.
        objects: (H, W, 3), R the number of the thing's label among the 100, from 1, G the object.
        path: of the objects, for errors.

    Returns:
        (H, W) int32: STEP * (label + 1) + object.

    Raises:
        ValueError: an object of no label, or of several.
    """
    table = read_categories("ade20k_150")
    # Things of the instance challenge are numbered in the order of the 150 labels.
    things = [i for i, category in enumerate(table) if category["isthing"]]
    stuff = lookup({i + 1: 0 if c["isthing"] else STEP * (i + 1) for i, c in enumerate(table)}, 0)
    number = objects[:, :, 1].astype(np.int32)
    there = number > 0
    kind = lookup({i: STEP * (label + 1) for i, label in enumerate(things, start=1)})
    found = translate(objects[:, :, 0][there].astype(np.int32), kind, path) + number[there]
    one_each = np.unique(found) % STEP
    if len(one_each) != len(np.unique(one_each)):
        raise ValueError(f"{path}: an object has more than one label")
    ids = translate(semantic, stuff, path)
    ids[there] = found
    return ids


if __name__ == "__main__":
    run_script(prepare_ade20k, __doc__, "ade20k/semantic/mask2former-R50-rankseg")
