"""From moving scenes to files: frames, label maps, YouTube-VIS tracks, statistics.

Shapes: T frames of (size, size). Label id i of the vocabulary is category i + 1 of the tracks and
value i + 1 of the label maps.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from preparing.coco import numbered, write_json

from rankseg_m2f.evaluation.rle import encode
from scenegen.motion import sample_motion
from scenegen.vocabulary import Vocabulary
from scenegen.world import World
from scenegen.writer import (
    SPLITS,
    label_statistics,
    make_categories,
    render_clean,
    save_pixels,
    tight_box,
)

VOID = 0  # in the label maps; 255 is never written as void
MOST_IN_8_BITS = 254  # labels; readers take 255 of 8 bits for void


def video_name(split: str, index: int) -> str:
    return f"{split}_{index:05d}"


def make_video(
    vocabulary: Vocabulary, seed: int, split: str, index: int, frames: int, size: int
) -> tuple[list[World], np.ndarray, np.ndarray]:
    """Video number `index` of a split: it depends on nothing but these arguments.

    Returns:
        The world at each frame; images (T, size, size, 3) uint8; parts (T, size, size) int32 as
        `render` numbers them, small ones made 0. A part has one number in all frames.
    """
    # Images draw from 0 and 1, the vocabulary from 2; 3 and 4 keep these streams apart.
    rng = np.random.default_rng([seed, 3 + SPLITS.index(split), index])
    motion = sample_motion(vocabulary, rng)
    moments = [motion.at(time) for time in np.linspace(0, 1, frames)]
    drawn = [render_clean(world, size, view) for world, view in moments]
    images, parts = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
    return [world for world, _ in moments], images, parts


def write_video(
    index: int,
    *,
    root: Path,
    vocabulary: Vocabulary,
    seed: int,
    split: str,
    frames: int,
    size: int,
) -> tuple[dict, list[dict], list[int]]:
    """Write the frames and label maps of one video.

    Returns:
        The YouTube-VIS record of the video, its tracks (ids not yet set), and the category ids of
        all labels seen, things and stuff.
    """
    (world, *_), images, parts = make_video(vocabulary, seed, split, index, frames, size)
    elements = (*world.bands, *world.things)
    # Value of each part: 0 stays void, and so does what no label describes.
    values = [VOID, *(VOID if x.label is None else x.label + 1 for x in elements)]
    dtype = np.uint8 if len(vocabulary.labels) <= MOST_IN_8_BITS else np.uint16
    maps = np.array(values, dtype)[parts]
    name = video_name(split, index)
    for kind in ("origin", "mask"):
        (root / "data" / name / kind).mkdir(parents=True)
    for frame in range(frames):
        save_pixels(images[frame], root / "data" / name / "origin" / f"{frame:05d}.jpg", quality=95)
        save_pixels(maps[frame], root / "data" / name / "mask" / f"{frame:05d}.png")
    record = {
        "id": index + 1,
        "width": size,
        "height": size,
        "length": frames,
        "file_names": [f"{name}/origin/{frame:05d}.jpg" for frame in range(frames)],
    }
    tracks = [
        _track(parts == part, record["id"], elements[part - 1].label + 1)
        for part in np.unique(parts[parts > 0]).tolist()
        if vocabulary.labels[elements[part - 1].label].is_thing
    ]
    return record, tracks, np.unique(maps[maps != VOID]).tolist()


def _track(masks: np.ndarray, video_id: int, category_id: int) -> dict:
    """Masks (T, h, w) of one thing; frames without it hold null."""
    visible = masks.any(axis=(1, 2))
    seen = list(zip(masks, visible, strict=True))
    return {
        "video_id": video_id,
        "category_id": category_id,
        "iscrowd": 0,
        "height": masks.shape[1],
        "width": masks.shape[2],
        "length": len(masks),
        "segmentations": [encode(mask) if there else None for mask, there in seen],
        "bboxes": [tight_box(mask) if there else None for mask, there in seen],
        "areas": [int(mask.sum()) if there else None for mask, there in seen],
    }


def write_video_annotations(
    root: Path,
    split: str,
    vocabulary: Vocabulary,
    videos: Iterable[tuple[dict, list[dict], list[int]]],
) -> dict:
    """Write the YouTube-VIS json and the VSPW list of one split.

    Returns:
        Statistics: videos, frames, tracks, how many tracks enter and leave after the first and
        before the last frame, labels per video, and in how many videos each label is.
    """
    records, tracks, present = [], [], []
    for record, found, labels in videos:
        records.append(record)
        tracks += found
        present.append(set(labels))
    tracks, categories = numbered(tracks), make_categories(vocabulary)
    things = [category for category in categories if category["isthing"]]
    content = {"videos": records, "annotations": tracks, "categories": things}
    write_json(root / "annotations" / f"instances_{split}.json", content)
    names = [video_name(split, index) for index in range(len(records))]
    (root / f"{split}.txt").write_text("".join(f"{x}\n" for x in names), encoding="utf-8")
    return {
        "videos": len(records),
        "frames": sum(record["length"] for record in records),
        "tracks": len(tracks),
        "tracks_that_enter": sum(track["areas"][0] is None for track in tracks),
        "tracks_that_leave": sum(track["areas"][-1] is None for track in tracks),
        **label_statistics(present, categories, "video"),
    }


def write_label_numbers(root: Path, vocabulary: Vocabulary) -> None:
    """Write VSPW's table of names and values in the label maps; it has them as strings."""
    numbers = {label.name: str(i) for i, label in enumerate(vocabulary.labels, start=1)}
    write_json(root / "label_num_dic_final.json", numbers)
