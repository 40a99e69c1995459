#!/usr/bin/env python3
"""Prepare COCO-Stuff-10k (171 labels).

    python datasets/prepare_coco_stuff_10k.py [--root FOLDER] [--jobs N]

Read below coco/coco_stuff_10k/ (github.com/nightrome/cocostuff10k, version 1.1):
    images/*.jpg
    annotations/*.mat               S: 0 no label, COCO's ids 1 to 182
    imageLists/{train,test}.txt     names without ending
Written there:
    images_detectron2/{train,test}/*.jpg        the same files under a second name
    annotations_detectron2/{train,test}/*.png   0 to 170, 255 no label
"""

from functools import partial
from pathlib import Path

from preparing.maps import convert_maps, lookup, read_mat
from preparing.script import check_count, link, need, read_names, run_script

from rankseg_m2f.data.categories import read_categories

SOURCE = "cocostuff-10k-v1.1.zip of github.com/nightrome/cocostuff10k, below coco/coco_stuff_10k/"
SPLITS = {"train": 9_000, "test": 1_000}
IGNORE = 255


def prepare_coco_stuff_10k(
    root: Path, *, jobs: int | None = None, any_size: bool = False
) -> list[str]:
    """See preparing.script.Prepare."""
    base = Path(root) / "coco" / "coco_stuff_10k"
    lists = {split: f"imageLists/{split}.txt" for split in SPLITS}
    need(base, ["images", "annotations", *lists.values()], SOURCE)
    labels = {c["id"]: i for i, c in enumerate(read_categories("coco_stuff_171"))}
    table = lookup({0: IGNORE, **labels})
    for split, official in SPLITS.items():
        names = read_names(base / lists[split])
        check_count(len(names), official, f"images in {base / lists[split]}", any_size)
        needed = [f"images/{n}.jpg" for n in names] + [f"annotations/{n}.mat" for n in names]
        need(base, needed, SOURCE)
        for name in names:
            link(base / "images" / f"{name}.jpg", base / f"images_detectron2/{split}/{name}.jpg")
        maps = [
            (
                base / "images" / f"{name}.jpg",
                base / "annotations" / f"{name}.mat",
                base / "annotations_detectron2" / split / f"{name}.png",
            )
            for name in names
        ]
        convert_maps(
            maps, table, IGNORE, jobs, f"COCO-Stuff-10k, {split}", partial(read_mat, key="S")
        )
    return [f"coco_2017_{split}_stuff_10k_sem_seg" for split in SPLITS]


if __name__ == "__main__":
    run_script(prepare_coco_stuff_10k, __doc__, "coco_stuff_10k/semantic/mask2former-R50-rankseg")
