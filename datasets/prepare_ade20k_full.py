#!/usr/bin/env python3
"""Prepare ADE20K-Full (847 labels): images and label maps of MaskFormer's size.

    python datasets/prepare_ade20k_full.py [--root FOLDER] [--jobs N]

Read below ADE20K_2021_17_01/ (groups.csail.mit.edu/vision/datasets/ADE20K, full dataset):
    images/ADE/{training,validation}/**/ADE_*.jpg, ADE_*_seg.png
Written there:
    images_detectron2/{training,validation}/*.jpg       short side at most 512 pixels
    annotations_detectron2/{training,validation}/*.tif  0 to 846 in 16 bits, 65535 no label
"""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from preparing.maps import (
    is_label_map,
    is_picture,
    lookup,
    picture_size,
    same_size,
    save_picture,
    write_label_map,
)
from preparing.processes import in_processes
from preparing.script import check_count, files, need, paired, run_script

from rankseg_m2f.data.categories import read_categories
from rankseg_m2f.images import read_image

SOURCE = "the full dataset ADE20K_2021_17_01 of groups.csail.mit.edu/vision/datasets/ADE20K"
SPLITS = {"train": ("training", 25_574), "val": ("validation", 2_000)}
IGNORE = 65535
SHORT_SIDE = 512
# The release's index has 3,688 objects; its masks can hold 26 * 256 ids.
IDS = 26 * 256


def prepare_ade20k_full(
    root: Path, *, jobs: int | None = None, any_size: bool = False
) -> list[str]:
    """See preparing.script.Prepare."""
    base = Path(root) / "ADE20K_2021_17_01"
    need(base, [f"images/ADE/{folder}" for folder, _ in SPLITS.values()], SOURCE)
    labels = {c["id"]: i for i, c in enumerate(read_categories("ade20k_full_847"))}
    # Rare objects have no label.
    table = lookup(labels, default=IGNORE, size=IDS)
    for split, (folder, official) in SPLITS.items():
        raw = base / "images" / "ADE" / folder
        pictures = files(raw, ".jpg")
        check_count(len(pictures), official, f"images in {raw}", any_size)
        pairs = paired(pictures, files(raw, "_seg.png"), raw)
        convert = partial(_convert, base=base, folder=folder, table=table)
        for _ in in_processes(convert, pairs, jobs, f"ADE20K-Full, {split}", "picture"):
            pass
    return [f"ade20k_full_sem_seg_{split}" for split in SPLITS]


def _convert(paths: tuple[Path, Path], *, base: Path, folder: str, table: np.ndarray) -> None:
    """Write one image and its label map, unless they are there."""
    # Lazy, as everywhere in this project.
    import cv2

    picture, source = paths
    full = picture_size(picture)
    size = target_size(*full)
    target = base / "images_detectron2" / folder / picture.name
    # cv2 takes (width, height); the two interpolations are MaskFormer's, as is that pixels stay as
    # they are stored: the masks know of no EXIF orientation, and the new file has none.
    if not is_picture(target, size):
        pixels = read_image(picture, upright=False)
        pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
        save_picture(target, Image.fromarray(pixels))
    target = base / "annotations_detectron2" / folder / f"{picture.stem}.tif"
    if not is_label_map(target, size, table):
        labels = table[read_objects(source, full)]
        labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
        write_label_map(target, labels, IGNORE)


def read_objects(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The release's object index of each pixel (H, W); 0 is none."""
    colours = same_size(read_image(path), size, path).astype(np.int32)
    return colours[:, :, 0] // 10 * 256 + colours[:, :, 1]


def target_size(height: int, width: int) -> tuple[int, int]:
    """Height and width with a short side of 512 at most, rounded as MaskFormer does."""
    if min(height, width) <= SHORT_SIDE:
        return height, width
    if width >= height:
        return SHORT_SIDE, round(width / height * SHORT_SIDE)
    return round(height / width * SHORT_SIDE), SHORT_SIDE


if __name__ == "__main__":
    run_script(prepare_ade20k_full, __doc__, "ade20k_full/semantic/mask2former-R50-rankseg")
