#!/usr/bin/env python3
"""Make the built-in synthetic scenes: a data set for trying everything out, without downloads.

    python datasets/make_scenes.py [--root FOLDER] [--num-labels 40] [--size 128]

The root is $DETECTRON2_DATASETS/scenes, else datasets/scenes below the current folder.

Each image shows one of about K/10 scene types with at most 12 of K labels; some labels look alike
and only the rest of the image tells them apart. The same settings give the same images, whatever
--jobs; an image does not depend on how many others there are.

Written below the root (K labels; category ids 1 to K, label maps 0 to K - 1):
    {train,val}/000000.jpg              images
    panoptic_{train,val}/000000.png     COCO panoptic, id = R + 256 G + 65536 B, 0 is unlabelled
    semantic_{train,val}/000000.png     label maps, unlabelled 255 (16 bits and 65535 if K > 255)
    annotations/panoptic_{train,val}.json, instances_{train,val}.json
    contact_sheet.png                   the first validation images with their labels
    scenes.json                         settings and statistics; written last
"""

from functools import partial
from pathlib import Path

from preparing.processes import in_processes
from scenegen.job import SHEET, finish, prepare, run_script, scene_parser
from scenegen.sheet import write_contact_sheet
from scenegen.vocabulary import Vocabulary, make_vocabulary
from scenegen.writer import (
    SPLITS,
    describe_scene_types,
    ignore_label,
    write_annotations,
    write_example,
)

from rankseg_m2f.files import datasets_root

VERSION = 1  # of the images: raise it when the same settings would give others
FOLDERS = (
    "annotations",
    *(kind + split for kind in ("", "panoptic_", "semantic_") for split in SPLITS),
)


def make_scenes(
    root: str | Path,
    *,
    train: int = 800,
    val: int = 100,
    num_labels: int = 40,
    size: int = 128,
    seed: int = 0,
    jobs: int | None = None,
    ambiguity: float = 0.5,
    force: bool = False,
) -> Path:
    """Make the scenes, unless they are there already with these settings.

    Args:
        train, val: numbers of images.
        num_labels: K, 8 to 1000.
        size: side of the images in pixels, 32 to 2048.
        jobs: processes; None means one per CPU. It does not change the images.
        ambiguity: share of the labels that look like labels of other scene types, in [0, 1].
        force: replace scenes of other settings.

    Returns:
        The root.

    Raises:
        ValueError: a setting out of its range.
        FileExistsError: the root holds scenes of other settings, or files that are not scenes.
    """
    root = Path(root)
    settings = {
        "version": VERSION,
        "train": train,
        "val": val,
        "num_labels": num_labels,
        "size": size,
        "seed": seed,
        "ambiguity": float(ambiguity),
    }
    if prepare(root, settings, jobs, FOLDERS, force):
        _make(root, settings, jobs)
    return root


def _make(root: Path, settings: dict, jobs: int | None) -> None:
    num_labels, seed = settings["num_labels"], settings["seed"]
    vocabulary = make_vocabulary(num_labels, seed, settings["ambiguity"])
    statistics = {split: _make_split(root, split, settings, vocabulary, jobs) for split in SPLITS}
    write_contact_sheet(
        root / SHEET,
        vocabulary,
        seed=seed,
        split="val",
        count=min(settings["val"], 12),
        size=settings["size"],
    )
    content = {
        "settings": settings,
        "ignore_label": ignore_label(num_labels),
        "scene_types": describe_scene_types(vocabulary),
        "statistics": statistics,
    }
    finish(root, content)


def _make_split(
    root: Path, split: str, settings: dict, vocabulary: Vocabulary, jobs: int | None
) -> dict:
    write = partial(
        write_example,
        root=root,
        vocabulary=vocabulary,
        seed=settings["seed"],
        split=split,
        size=settings["size"],
    )
    found = in_processes(write, range(settings[split]), jobs, f"scenes, {split}", "image")
    return write_annotations(root, split, vocabulary, found)


def main() -> None:
    # Where registration looks for them.
    root = datasets_root() / "scenes"
    parser = scene_parser(__doc__, root=root, train=800, val=100, size=128, unit="images")
    run_script(make_scenes, parser, "Scenes")


if __name__ == "__main__":
    main()
