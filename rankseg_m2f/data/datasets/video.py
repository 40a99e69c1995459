"""Registering videos: YouTube-VIS json (also OVIS), VSPW folders, any folders of frames.

Shapes: T frames, K labels.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_util

from rankseg_m2f.data.datasets.checks import (
    check_agreement,
    check_count,
    check_ignore_label,
    entry_of,
    existing_file,
    files_below,
    missing_files,
    raise_incomplete,
    read_coco,
    read_lines,
)
from rankseg_m2f.data.datasets.records import IMAGE_SUFFIXES, LABEL_SUFFIXES
from rankseg_m2f.data.datasets.register import (
    add_dataset,
    add_objects,
    named_categories,
    stuff_metadata,
)
from rankseg_m2f.data.frames import evaluation_clips

# VSPW's label maps: 0 and 255 are void, 1..K the labels.
_VSPW_OFFSET, _VSPW_IGNORE = 1, 255
_VSPW_NAMES = "label_num_dic_final.json"
# Frames per clip of the official VSPW evaluation.
_VSPW_CLIP = 20


def register_ytvis(
    name: str, *, image_root: str, instances_json: str, table: str | None = None
) -> None:
    """Register a dataset in YouTube-VIS format (2019, 2021, OVIS): one record per video.

    Labels are the json's categories by ascending id. A json without annotations, as the
    challenges give it for testing, makes records without them.

    Args:
        image_root: folder of the json's frames.
        instances_json: videos, tracks (RLE, polygons or null per frame) and categories.
        table: of `data/categories`, whose labels the dataset has: then the json is not opened
            before it is loaded. None: the json's.

    Raises:
        FileNotFoundError: no such json.
        ValueError: a json without sound categories, or a name registered with other arguments.
            Loading raises it for missing frames and for tracks that do not fit their video.
    """
    add_objects(name, "ytvis", image_root, instances_json, _load_ytvis, table)


def register_vspw(
    name: str,
    *,
    root: str,
    split: str,
    classes: Sequence[str] | None = None,
    clip_length: int | None = None,
    mask_folder: str = "mask",
    table: str | None = None,
) -> None:
    """Register videos in VSPW's layout: data/<video>/origin/*.jpg, data/<video>/mask/*.png.

    In the masks, 0 and 255 are void and i means classes[i - 1].

    Args:
        root: folder of data/ and of the lists of videos.
        split: list of videos: <split>.txt below `root`, or a path that ends in .txt.
        classes: K different names; None: read from label_num_dic_final.json below `root`.
        clip_length: frames per record; 0: whole videos. None: whole videos for the split "train",
            else 20, the official evaluation.
        mask_folder: name of the videos' folders of label maps.
        table: of `data/categories`, for when label_num_dic_final.json is missing; then the list of
            videos is not opened before it is loaded.

    Raises:
        FileNotFoundError: no list of videos or no table of names.
        ValueError: bad `classes` or `clip_length`, or a name registered with other arguments.
            Loading raises it for missing or extra videos, frames and masks.
    """
    base = Path(root)
    videos = base / (split if split.endswith(".txt") else f"{split}.txt")
    if table is None:
        existing_file(videos, name)
    if classes is None and (table is None or (base / _VSPW_NAMES).is_file()):
        classes, table = _vspw_names(existing_file(base / _VSPW_NAMES, name)), None
    if clip_length is None:
        clip_length = 0 if split == "train" else _VSPW_CLIP

    def load() -> list[dict]:
        folders = {
            video: (base / "data" / video / "origin", base / "data" / video / mask_folder)
            for video in read_lines(existing_file(videos, name))
        }
        return _load_folders(name, folders, clip_length, _VSPW_OFFSET)

    _register_label_maps(
        name,
        load,
        named_categories(name, classes, table),
        ignore_label=_VSPW_IGNORE,
        label_offset=_VSPW_OFFSET,
        clip_length=clip_length,
        image_root=str(base / "data"),
        split_file=str(videos),
        mask_folder=mask_folder,
    )


def register_frames_folder(
    name: str,
    *,
    image_root: str,
    label_root: str,
    classes: Sequence[str] | None = None,
    ignore_label: int = 255,
    label_offset: int = 0,
    clip_length: int = 0,
    table: str | None = None,
) -> None:
    """Register any folder of <video>/<frame>.jpg and one of <video>/<frame>.png label maps.

    Frames are in the order of the numbers in their names.

    Args:
        classes: K different names; pixel value i + label_offset means classes[i].
        ignore_label: pixel value of ignored pixels; so are values below `label_offset`.
        clip_length: frames per record; 0: whole videos.
        table: of `data/categories`, in place of `classes`.

    Raises:
        ValueError: bad arguments, or a name registered with others. Loading raises it for missing
            or extra frames and masks.
    """
    images, labels = Path(image_root), Path(label_root)

    def load() -> list[dict]:
        for folder in (images, labels):
            if not folder.is_dir():
                raise FileNotFoundError(f"dataset {name!r}: folder {folder} does not exist")
        videos = {
            str(path.parent.relative_to(root))
            for root, suffixes in ((images, IMAGE_SUFFIXES), (labels, LABEL_SUFFIXES))
            for path in files_below(root)
            if path.suffix.lower() in suffixes
        }
        folders = {
            images.name if video == "." else video: (images / video, labels / video)
            for video in sorted(videos, key=_natural)
        }
        return _load_folders(name, folders, clip_length, label_offset)

    _register_label_maps(
        name,
        load,
        named_categories(name, classes, table),
        ignore_label=ignore_label,
        label_offset=label_offset,
        clip_length=clip_length,
        image_root=str(images),
        sem_seg_root=str(labels),
    )


def _register_label_maps(
    name: str,
    load: Callable[[], list[dict]],
    categories: list[dict],
    *,
    ignore_label: int,
    label_offset: int,
    clip_length: int,
    **sources: str,
) -> None:
    check_count("label_offset", label_offset, name)
    check_count("clip_length", clip_length, name)
    # Neither the files' values nor the labels made of them may mean two things.
    check_ignore_label(ignore_label, len(categories) + label_offset, name)
    add_dataset(
        name,
        load,
        evaluator_type="vspw",
        **stuff_metadata(categories),
        ignore_label=ignore_label,
        label_offset=label_offset,
        clip_length=clip_length,
        **sources,
    )


def _vspw_names(path: Path) -> list[str]:
    """Labels' names by their numbers 1..K; number 0 is void."""
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
        named = {int(number): label for label, number in numbers.items() if int(number) > 0}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no json of names and numbers ({error})") from error
    if sorted(named) != list(range(1, len(named) + 1)):
        raise ValueError(f"{path}: numbers of labels must be 1 to {len(named)}, each once")
    return [named[number] for number in sorted(named)]


def _load_folders(
    name: str, folders: dict[str, tuple[Path, Path]], clip_length: int, offset: int
) -> list[dict]:
    """Records of videos given as folders of frames and of label maps."""
    records, problems = [], []
    for video, (images, labels) in folders.items():
        frames = _by_stem(images, IMAGE_SUFFIXES, problems)
        masks = _by_stem(labels, LABEL_SUFFIXES, problems)
        problems += [
            f"{frames[s]} has no label map in {labels}" for s in sorted({*frames} - {*masks})
        ]
        problems += [f"{masks[s]} has no frame in {images}" for s in sorted({*masks} - {*frames})]
        stems = sorted({*frames} & {*masks}, key=_natural)
        for number, part in enumerate(evaluation_clips(len(stems), clip_length)):
            record = {
                "video_id": video,
                "clip": number,
                "file_names": [str(frames[stems[i]]) for i in part],
                "sem_seg_file_names": [str(masks[stems[i]]) for i in part],
                "length": len(part),
            }
            records.append(record | ({"label_offset": offset} if offset else {}))
    if not folders:
        problems.append("no videos")
    raise_incomplete(name, problems)
    return records


def _by_stem(folder: Path, suffixes: Sequence[str], problems: list[str]) -> dict[str, Path]:
    """Files of these types by name without suffix."""
    if not folder.is_dir():
        problems.append(f"{folder} does not exist")
        return {}
    found = {}
    for path in sorted(folder.iterdir()):
        # Some systems leave ._name.jpg beside name.jpg.
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            problems.append(f"{path} is the same frame as {found[path.stem].name}")
        found[path.stem] = path
    if not found:
        problems.append(f"{folder} has no {' or '.join(suffixes)} files")
    return found


def _load_ytvis(name: str, path: Path, image_root: Path, names: dict[int, str]) -> list[dict]:
    content = read_coco(path, "videos", "categories")
    check_agreement(path, content["categories"], names)
    ids = {category: label for label, category in enumerate(names)}
    records: dict[Any, dict] = {}
    for video in content["videos"]:
        record = _video(video, image_root, f"{path}: a video", content.get("annotations"))
        if record["video_id"] in records:
            raise ValueError(f"{path} has several videos of id {record['video_id']}")
        records[record["video_id"]] = record
    frames = (frame for record in records.values() for frame in record["file_names"])
    raise_incomplete(name, missing_files(frames))
    seen = set()
    for track in content.get("annotations") or ():
        number = entry_of(track, "id", f"{path}: an annotation")
        where = f"{path}: annotation {number}"
        if number in seen:
            raise ValueError(f"{where} is there more than once")
        seen.add(number)
        video = entry_of(track, "video_id", where)
        if video not in records:
            raise ValueError(f"{where} is of an unknown video {video}")
        _add_track(records[video], track, ids, where)
    return list(records.values())


def _video(video: dict, image_root: Path, where: str, annotations: list | None) -> dict:
    number = entry_of(video, "id", where)
    where = f"{where[: where.rindex(':')]}: video {number}"
    names = entry_of(video, "file_names", where)
    if not isinstance(names, list) or not names:
        raise ValueError(f"{where} has no frames")
    if video.get("length", len(names)) != len(names):
        raise ValueError(f"{where} names {len(names)} frames, its length is {video['length']}")
    record = {
        "video_id": number,
        "file_names": [str(image_root / frame) for frame in names],
        "height": entry_of(video, "height", where),
        "width": entry_of(video, "width", where),
        "length": len(names),
    }
    return record if annotations is None else record | {"annotations": [[] for _ in names]}


def _add_track(record: dict, track: dict, ids: dict[int, int], where: str) -> None:
    """Put the frames of a track among the annotations of its video's frames."""
    category = entry_of(track, "category_id", where)
    if category not in ids:
        raise ValueError(f"{where} has category {category}, which the json does not list")
    outlines = entry_of(track, "segmentations", where)
    boxes = track.get("bboxes") or [None] * len(outlines)
    for what, values in (("segmentations", outlines), ("bboxes", boxes)):
        if len(values) != record["length"]:
            raise ValueError(
                f"{where} has {len(values)} {what}, video {record['video_id']} has "
                f"{record['length']} frames"
            )
    size = record["height"], record["width"]
    for frame, (outline, box) in enumerate(zip(outlines, boxes, strict=True)):
        # Null or an empty list: the object is not there.
        if outline and (outline := _compressed(outline, size, f"{where}, frame {frame}")):
            record["annotations"][frame].append(
                {
                    "id": track["id"],
                    "category_id": ids[category],
                    "segmentation": outline,
                    "bbox": box,
                    "iscrowd": track.get("iscrowd", 0),
                }
            )


def _compressed(outline: list | dict, size: tuple[int, int], where: str) -> list | dict:
    """Polygons as they are, RLE in its compressed form."""
    if isinstance(outline, list):
        # As Detectron2: pycocotools would take four numbers for a box.
        return [p for p in outline if len(p) >= 6 and len(p) % 2 == 0]
    if tuple(entry_of(outline, "size", where)) != size:
        raise ValueError(f"{where}: its mask is of {outline['size']}, its video of {[*size]}")
    if isinstance(entry_of(outline, "counts", where), list):
        outline = mask_util.frPyObjects(outline, *size)
    counts = outline["counts"]
    return {
        "size": [*size],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def _natural(name: str) -> list:
    """Sorts 2 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
