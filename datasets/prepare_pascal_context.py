#!/usr/bin/env python3
"""Prepare PASCAL-Context (59 labels, or 60 with background).

    python datasets/prepare_pascal_context.py [--root FOLDER] [--jobs N]

Read below VOCdevkit/VOC2010/ (VOC 2010: host.robots.ox.ac.uk/pascal/VOC/voc2010; annotations:
cs.stanford.edu/~roozbeh/pascal-context):
    JPEGImages/*.jpg
    ImageSets/Main/{train,val}.txt
    trainval/*.mat, labels.txt          LabelMap: 0 no label, 1 to 459; trainval.tar.gz
or, in place of the last, SegmentationClassContext/*.png as MMSegmentation makes them.
Written there:
    SegmentationClassContext/*.png                  0 background, 1 to 59
    ImageSets/SegmentationContext/{train,val}.txt   names without ending
"""

from functools import partial
from pathlib import Path

import numpy as np
from preparing.maps import convert_maps, lookup, read_mat
from preparing.script import check_count, need, read_names, run_script, some

from rankseg_m2f.data.categories import read_categories
from rankseg_m2f.files import read_lines, replacing
from rankseg_m2f.images import read_label_map

SOURCE = (
    "VOCtrainval of host.robots.ox.ac.uk/pascal/VOC/voc2010; trainval.tar.gz and labels.txt of "
    "cs.stanford.edu/~roozbeh/pascal-context, below VOCdevkit/VOC2010/"
)
SPLITS = {"train": 4_998, "val": 5_105}
# 8-bit maps; no pixel has it, since what is none of the 59 is background.
IGNORE = 255
MAPS = "SegmentationClassContext"


def prepare_pascal_context(
    root: Path, *, jobs: int | None = None, any_size: bool = False
) -> list[str]:
    """See preparing.script.Prepare."""
    base = Path(root) / "VOCdevkit" / "VOC2010"
    raw = (base / "trainval").is_dir()
    annotations = ["trainval", "labels.txt"] if raw else [MAPS]
    lists = {split: _list_of(base, split) for split in SPLITS}
    need(base, ["JPEGImages", *annotations, *lists.values()], SOURCE)
    table = context_table(base / "labels.txt") if raw else lookup({i: i for i in range(60)})
    for split, official in SPLITS.items():
        names = read_names(base / lists[split])
        check_count(len(names), official, f"images in {base / lists[split]}", any_size)
        form = "trainval/{}.mat" if raw else f"{MAPS}/{{}}.png"
        needed = [form.format(name) for name in names]
        need(base, [f"JPEGImages/{name}.jpg" for name in names] + needed, SOURCE)
        maps = [
            (base / f"JPEGImages/{name}.jpg", base / source, base / f"{MAPS}/{name}.png")
            for name, source in zip(names, needed, strict=True)
        ]
        read = partial(read_mat, key="LabelMap") if raw else read_label_map
        convert_maps(maps, table, IGNORE, jobs, f"PASCAL-Context, {split}", read)
        _write_list(base / f"ImageSets/SegmentationContext/{split}.txt", names)
    return [f"pascal_context_{k}_sem_seg_{split}" for k in (59, 60) for split in SPLITS]


def _list_of(base: Path, split: str) -> str:
    """The split's list: PASCAL-Context has the images and splits of VOC 2010."""
    ready = f"ImageSets/SegmentationContext/{split}.txt"
    return ready if (base / ready).is_file() else f"ImageSets/Main/{split}.txt"


def _write_list(path: Path, names: list[str]) -> None:
    if not path.is_file():
        with replacing(path) as unfinished:
            unfinished.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def context_table(path: Path) -> np.ndarray:
    """Value of each of the release's 459 labels in our maps.

    Args:
        path: labels.txt, lines such as "2: aeroplane".

    Returns:
        (460,) 1 to 59, and 0 for all that is none of these.

    Raises:
        ValueError: a line of another form, or a label of ours that is not listed.
    """
    numbers = {}
    for line in read_lines(path):
        number, _, name = line.partition(":")
        if not number.isdecimal():
            raise ValueError(f"{path}: {line!r} is not a line such as '2: aeroplane'")
        numbers[name.replace(" ", "")] = int(number)
    names = [c["name"] for c in read_categories("pascal_context_59")]
    if missing := [name for name in names if name not in numbers]:
        raise ValueError(f"{path} does not list {some(missing)}")
    values = {numbers[name]: value for value, name in enumerate(names, start=1)}
    return lookup(values, default=0, size=max(numbers.values()) + 1)


if __name__ == "__main__":
    run_script(
        prepare_pascal_context, __doc__, "pascal_context_59/semantic/mask2former-R50-rankseg"
    )
