#!/usr/bin/env python3
"""Prepare Cityscapes (19 labels, 8 of things), without cityscapesscripts.

    python datasets/prepare_cityscapes.py [--root FOLDER] [--jobs N]

Read below cityscapes/ (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip of
cityscapes-dataset.com):
    leftImg8bit/{train,val}/<city>/*_leftImg8bit.png
    gtFine/{train,val}/<city>/*_gtFine_{labelIds,instanceIds}.png
Written there:
    gtFine/{train,val}/<city>/*_gtFine_labelTrainIds.png            0 to 18, 255 no label
    gtFine/cityscapes_panoptic_{train,val}/*.png, cityscapes_panoptic_{train,val}.json
                                                        as cityscapesscripts' createPanopticImgs
    gtFine/cityscapes_instances_{train,val}.json        COCO instances
"""

from functools import partial
from pathlib import Path

import numpy as np
from preparing.coco import instances, picture_records, segments, write_annotations
from preparing.maps import convert_maps, lookup, picture_size, same_size, translate
from preparing.processes import in_processes
from preparing.script import check_count, files, need, paired, run_script

from rankseg_m2f.data.categories import read_categories
from rankseg_m2f.images import read_label_map

SOURCE = "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of cityscapes-dataset.com"
SPLITS = {"train": 2_975, "val": 500}
IGNORE = 255
# The release has ids 0 to 33; 19 of them have labels.
IDS = 34
# Ids of single things are this times their category, plus a number; what is below is stuff, or
# things that nobody could tell apart.
STEP = 1000


def prepare_cityscapes(root: Path, *, jobs: int | None = None, any_size: bool = False) -> list[str]:
    """See preparing.script.Prepare."""
    base = Path(root) / "cityscapes"
    need(base, [f"{k}/{s}" for k in ("leftImg8bit", "gtFine") for s in SPLITS], SOURCE)
    labels = {c["id"]: i for i, c in enumerate(read_categories("cityscapes_19"))}
    table = lookup(labels, default=IGNORE, size=IDS)
    for split, official in SPLITS.items():
        truth = base / "gtFine" / split
        pictures = files(base / "leftImg8bit" / split, "_leftImg8bit.png")
        what = f"images in {base / 'leftImg8bit' / split}"
        check_count(len(pictures), official, what, any_size)
        maps = [
            (picture, ids, ids.with_name(ids.name.replace("labelIds", "labelTrainIds")))
            for picture, ids in paired(pictures, files(truth, "_gtFine_labelIds.png"), truth)
        ]
        convert_maps(maps, table, IGNORE, jobs, f"Cityscapes, label maps, {split}")
        pairs = paired(pictures, files(truth, "_gtFine_instanceIds.png"), truth)
        _write_objects(base / "gtFine", split, pairs, jobs)
    kinds = ("sem_seg", "panoptic", "instance_seg")
    return [f"cityscapes_fine_{kind}_{split}" for kind in kinds for split in SPLITS]


def _write_objects(base: Path, split: str, pairs: list, jobs: int | None) -> None:
    write = partial(_write_picture, target=base / f"cityscapes_panoptic_{split}")
    found = in_processes(write, pairs, jobs, f"Cityscapes, segments, {split}", "picture")
    panoptic, objects = (base / f"cityscapes_{k}_{split}.json" for k in ("panoptic", "instances"))
    write_annotations(found, read_categories("cityscapes_19"), panoptic, objects)


def _write_picture(paths: tuple[Path, Path], target: Path) -> tuple[dict, dict, list[dict]]:
    """Write one panoptic PNG; COCO's records of the image, its segments and its objects."""
    picture, source = paths
    name = picture.name.removesuffix("_leftImg8bit.png")
    size = picture_size(picture)
    ids = segment_ids(same_size(read_label_map(source), size, source), source)
    things = {c["id"] for c in read_categories("cityscapes_19") if c["isthing"]}
    records = [
        {
            **record,
            "category_id": int(category_of(record["id"])),
            "iscrowd": int(record["id"] in things),
        }
        for record in segments(ids)
    ]
    # With the city, unlike the official json, so that the path below leftImg8bit is told.
    file_name = f"{picture.parent.name}/{picture.name}"
    panoptic = target / f"{name}_gtFine_panoptic.png"
    image, annotation = picture_records(name, file_name, records, ids, panoptic)
    objects = [record for record in records if record["category_id"] in things]
    return image, annotation, instances(ids, objects, name)


def category_of(ids: np.ndarray | int) -> np.ndarray:
    """The release's categories of segment ids."""
    return np.where(np.less(ids, STEP), ids, np.floor_divide(ids, STEP))


def segment_ids(ids: np.ndarray, path: Path) -> np.ndarray:
    """Ids of a file *_instanceIds.png with 0 where the category has no label.

    Raises:
        ValueError: a category that Cityscapes does not have, naming the file.
    """
    evaluated = {c["id"]: 1 for c in read_categories("cityscapes_19")}
    categories = category_of(ids.astype(np.int32))
    return ids * translate(categories, lookup(evaluated, default=0, size=IDS), path)


if __name__ == "__main__":
    run_script(prepare_cityscapes, __doc__, "cityscapes/panoptic/mask2former-R50-rankseg")
