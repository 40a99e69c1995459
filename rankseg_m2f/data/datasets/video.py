"""Registering videos: YouTube-VIS json (also OVIS), VSPW folders, any folders of frames.

Shapes: T frames, K labels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rankseg_m2f.annotations.coco import VIDEOS
from rankseg_m2f.annotations.fields import as_int
from rankseg_m2f.annotations.findings import Findings
from rankseg_m2f.annotations.folders import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    existing_folder,
    files_below,
    listed_names,
    listed_once,
)
from rankseg_m2f.annotations.label_folders import load_frames, natural
from rankseg_m2f.data.datasets.arguments import (
    check_count,
    check_path,
    check_values,
    existing_file,
)
from rankseg_m2f.data.datasets.catalog import DatasetSource, add_dataset
from rankseg_m2f.data.datasets.register import add_objects, named_categories, stuff_metadata
from rankseg_m2f.data.frames import evaluation_clips
from rankseg_m2f.errors import UserError
from rankseg_m2f.files import read_json

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
    add_objects(name, "ytvis", image_root, instances_json, VIDEOS, table)


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
    check_path("split", split, name)
    check_path("mask_folder", mask_folder, name)
    base = Path(root)
    videos = base / (split if split.endswith(".txt") else f"{split}.txt")
    if table is None:
        existing_file(videos, name)
    if classes is None and (table is None or (base / _VSPW_NAMES).is_file()):
        classes, table = _vspw_names(existing_file(base / _VSPW_NAMES, name)), None
    if clip_length is None:
        clip_length = 0 if split == "train" else _VSPW_CLIP

    def folders(findings: Findings) -> dict[str, tuple[Path, Path]]:
        names = listed_names(existing_file(videos, name), findings)
        return {
            video: (base / "data" / video / "origin", base / "data" / video / mask_folder)
            for video in listed_once(videos, names, findings)
        }

    _register_label_maps(
        name,
        folders,
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

    def folders(findings: Findings) -> dict[str, tuple[Path, Path]]:
        videos = {
            str(path.parent.relative_to(root))
            for root, suffixes in ((images, IMAGE_SUFFIXES), (labels, LABEL_SUFFIXES))
            for path in files_below(existing_folder(root, name))
            if path.suffix.lower() in suffixes
        }
        if not videos:
            findings.errors.append(
                f"{images} has no videos: there is no {', '.join(IMAGE_SUFFIXES)} below it"
            )
        return {
            images.name if video == "." else video: (images / video, labels / video)
            for video in sorted(videos, key=natural)
        }

    _register_label_maps(
        name,
        folders,
        named_categories(name, classes, table),
        ignore_label=ignore_label,
        label_offset=label_offset,
        clip_length=clip_length,
        image_root=str(images),
        sem_seg_root=str(labels),
    )


def _register_label_maps(
    name: str,
    folders: Callable[[Findings], dict[str, tuple[Path, Path]]],
    categories: list[dict],
    *,
    ignore_label: int,
    label_offset: int,
    clip_length: int,
    **sources: str,
) -> None:
    check_count("clip_length", clip_length, name)
    check_values(ignore_label, len(categories), name, label_offset)
    clips = partial(evaluation_clips, clip_length=clip_length)

    def load(findings: Findings) -> list[dict]:
        videos = folders(findings)
        return load_frames(findings, folders=videos, clips=clips, label_offset=label_offset)

    add_dataset(
        name,
        DatasetSource(name, load, f"dataset {name!r} is incomplete: "),
        evaluator_type="vspw",
        **stuff_metadata(categories),
        ignore_label=ignore_label,
        label_offset=label_offset,
        clip_length=clip_length,
        **sources,
    )


def _vspw_names(path: Path) -> list[str]:
    """Labels' names by their numbers 1..K; number 0 is void."""
    numbers = read_json(path)
    if not isinstance(numbers, dict) or any(as_int(n) is None for n in numbers.values()):
        raise UserError(f"{path} must map names of labels to numbers")
    named = {as_int(number): label for label, number in numbers.items() if as_int(number) > 0}
    if sorted(named) != list(range(1, len(named) + 1)):
        raise UserError(f"{path}: numbers of labels must be 1 to {len(named)}, each once")
    return [named[number] for number in sorted(named)]
