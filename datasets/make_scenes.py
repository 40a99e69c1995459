#!/usr/bin/env python3
"""Make the built-in synthetic scenes: a data set for trying everything out, without downloads.

    python datasets/make_scenes.py [--root datasets/scenes] [--num-labels 40] [--size 128]

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

import argparse
import json
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from scenegen.sheet import write_contact_sheet
from scenegen.vocabulary import SceneType, Vocabulary, make_vocabulary
from scenegen.writer import (
    SPLITS,
    ignore_label,
    write_annotations,
    write_example,
    write_json,
)
from tqdm import tqdm

VERSION = 1  # of the pictures: raise it when the same settings would give others
FINISHED, MARKER, SHEET = "scenes.json", ".making_scenes", "contact_sheet.png"
LIMITS = {
    "train": (1, 999_999),
    "val": (1, 999_999),
    "num_labels": (8, 1000),
    "size": (32, 2048),
    "seed": (0, 2**31),
    "ambiguity": (0, 1),
    "jobs": (1, 1024),
}
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
    _check({**settings, "jobs": 1 if jobs is None else jobs})
    if not _is_finished(root, settings, force):
        _clear(root)
        _make(root, settings, jobs or os.cpu_count() or 1)
    return root


def _make(root: Path, settings: dict, jobs: int) -> None:
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
        "scene_types": [_describe(t, vocabulary) for t in vocabulary.scene_types],
        "statistics": statistics,
    }
    write_json(root / FINISHED, content)
    (root / MARKER).unlink()


def _describe(scene_type: SceneType, vocabulary: Vocabulary) -> dict:
    labels = [vocabulary.labels[i].name for i in (*scene_type.stuff, *scene_type.things)]
    return {"name": scene_type.name, "share": round(scene_type.weight, 4), "labels": labels}


def _check(settings: dict) -> None:
    for name, (low, high) in LIMITS.items():
        if not low <= settings[name] <= high:
            raise ValueError(f"{name}={settings[name]} is outside {low} to {high}")


def _is_finished(root: Path, settings: dict, force: bool) -> bool:
    """Whether there is nothing to do; an error where something of value would be lost."""
    path = root / FINISHED
    if not path.is_file():
        if root.exists() and any(root.iterdir()) and not (root / MARKER).is_file():
            raise FileExistsError(
                f"{root} is not empty and holds no scenes; choose another root or empty it"
            )
        return False
    if force:
        return False
    try:
        there = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise FileExistsError(
            f"{path} cannot be read; make the scenes again with --force"
        ) from error
    if there != settings:
        changed = [
            f"{key} {there.get(key)} instead of {value}"
            for key, value in settings.items()
            if there.get(key) != value
        ]
        raise FileExistsError(
            f"{root} holds scenes of other settings ({', '.join(changed)}); "
            "use --force to replace them or choose another root"
        )
    return True


def _clear(root: Path) -> None:
    """Empty folders, marked as unfinished. Files that are not ours stay."""
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).touch()
    # scenes.json first: without it nobody takes the rest for complete.
    for name in (FINISHED, SHEET):
        (root / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()


def _make_split(root: Path, split: str, settings: dict, vocabulary: Vocabulary, jobs: int) -> dict:
    write = partial(
        write_example,
        root=root,
        vocabulary=vocabulary,
        seed=settings["seed"],
        split=split,
        size=settings["size"],
    )
    numbers = range(settings[split])
    bar = partial(tqdm, total=len(numbers), desc=f"scenes, {split}", unit="image")
    if jobs == 1:
        return write_annotations(root, split, vocabulary, bar(map(write, numbers)))
    with ProcessPoolExecutor(jobs) as pool:
        found = pool.map(write, numbers, chunksize=min(32, -(-len(numbers) // jobs)))
        return write_annotations(root, split, vocabulary, bar(found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve().parent
    parser.add_argument("--root", type=Path, default=here / "scenes", help="folder to write")
    parser.add_argument("--train", type=int, default=800, help="training images")
    parser.add_argument("--val", type=int, default=100, help="validation images")
    parser.add_argument("--num-labels", type=int, default=40, help="K, 8 to 1000")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, help="processes (default: one per CPU)")
    parser.add_argument(
        "--ambiguity", type=float, default=0.5, help="share of labels that look alike, 0 to 1"
    )
    parser.add_argument("--force", action="store_true", help="replace other scenes")
    try:
        root = make_scenes(**vars(parser.parse_args()))
    except (ValueError, FileExistsError) as error:
        sys.exit(f"make_scenes: {error}")
    print(f"Scenes are in {root}; see {root / SHEET}")


if __name__ == "__main__":
    main()
