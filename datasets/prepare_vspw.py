#!/usr/bin/env python3
"""Prepare VSPW (124 labels): videos of 480 lines.

    python datasets/prepare_vspw.py [--root FOLDER] [--jobs N]

Read below VSPW/ (github.com/VSPW-dataset/VSPW-dataset-download), of any size:
    data/<video>/origin/*.jpg, data/<video>/mask/*.png      0 and 255 void, 1 to 124
    train.txt, val.txt, and test.txt where it is            names of videos
    label_num_dic_final.json                                optional: our table is the same
Written below VSPW_480p/, as the official change2_480p.py does: the same, frames resized to a height
of 480 pixels. Where VSPW_480p/ was downloaded, it is checked.
"""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from preparing.maps import is_label_map, is_picture, picture_size, save_picture, write_label_map
from preparing.processes import in_processes
from preparing.script import check_count, files, link, need, paired, read_names, run_script

from rankseg_m2f.images import read_image, read_label_map

SOURCE = (
    "VSPW or VSPW_480p of github.com/VSPW-dataset/VSPW-dataset-download: data/ with train.txt "
    "and val.txt"
)
# Videos of each list.
SPLITS = {"train": 2_806, "val": 343, "test": 387}
NAMES = "label_num_dic_final.json"
HEIGHT = 480
VALUES = np.array([*range(125), 255])


def prepare_vspw(root: Path, *, jobs: int | None = None, any_size: bool = False) -> list[str]:
    """See preparing.script.Prepare."""
    target = Path(root) / "VSPW_480p"
    raw = Path(root) / "VSPW"
    source = raw if raw.is_dir() else target
    need(source, ["data", "train.txt", "val.txt"], SOURCE)
    for split, official in SPLITS.items():
        path = source / f"{split}.txt"
        if not path.is_file():
            continue
        videos = read_names(path)
        check_count(len(videos), official, f"videos in {path}", any_size)
        need(source / "data", [f"{video}/origin" for video in videos], SOURCE)
        if split != "test":
            need(source / "data", [f"{video}/mask" for video in videos], SOURCE)
        work = partial(_resize, source=source / "data", target=target / "data")
        for _ in in_processes(work, videos, jobs, f"VSPW, {split}", "video"):
            pass
        link(path, target / path.name)
    if (source / NAMES).is_file():
        link(source / NAMES, target / NAMES)
    return ["vspw_train", "vspw_val"]


def _resize(video: str, *, source: Path, target: Path) -> None:
    """Write the frames and masks of one video, or check them where they are in their place."""
    frames = files(source / video / "origin", ".jpg")
    masks = source / video / "mask"
    for frame in frames.values():
        size = target_size(frame, source == target)
        path = target / video / "origin" / frame.name
        if is_picture(path, size):
            continue
        if path == frame:
            raise ValueError(f"{path}: broken; unpack it again")
        pixels = Image.fromarray(read_image(frame))
        save_picture(path, pixels.resize(size[::-1], Image.Resampling.BILINEAR))
    # Of the test videos there may be no masks.
    pairs = paired(frames, files(masks, ".png"), masks) if masks.is_dir() else []
    for frame, mask in pairs:
        size = target_size(frame, source == target)
        _resize_mask(mask, target / video / "mask" / mask.name, size)


def _resize_mask(mask: Path, path: Path, size: tuple[int, int]) -> None:
    if is_label_map(path, size, VALUES):
        return
    labels = read_label_map(mask)
    if wrong := sorted(set(np.unique(labels).tolist()) - set(VALUES.tolist())):
        raise ValueError(f"{mask}: id {wrong[0]} is not one of VSPW's")
    if path == mask:
        raise ValueError(f"{path}: {labels.shape} pixels, its frame has {size}")
    resized = Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST)
    write_label_map(path, np.asarray(resized), 255)


def target_size(path: Path, in_place: bool) -> tuple[int, int]:
    """(H, W) of a frame in VSPW_480p: its own shape, with the width rounded down."""
    height, width = picture_size(path)
    return (height, width) if in_place else (HEIGHT, int(HEIGHT * width / height))


if __name__ == "__main__":
    run_script(prepare_vspw, __doc__, "vspw/semantic/mask2former-R50-rankseg", "train_net_video.py")
