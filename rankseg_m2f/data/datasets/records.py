"""From annotation files to Detectron2's dataset dicts, with contiguous labels."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.data.datasets import load_coco_json

from rankseg_m2f.data.datasets.checks import (
    check_agreement,
    entry_of,
    existing_file,
    files_below,
    raise_incomplete,
    read_coco,
    read_lines,
)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
LABEL_SUFFIXES = (".png", ".tif", ".tiff")


def load_panoptic(
    path: Path,
    images: Path,
    segments: Path,
    semantic: Path | None,
    names: dict[int, str],
    endings: tuple[str, str] | None = None,
) -> list[dict]:
    """Records of a COCO panoptic json.

    Args:
        names: of the labels, by category id and in the order of the labels.
        endings: what follows an image's id in the names of images and of label maps, which lie in
            subfolders of the same names; None: the json names them.

    Raises:
        ValueError: the json lacks something, or has other categories.
    """
    content = read_coco(path, "images", "annotations", "categories")
    check_agreement(path, content["categories"], names)
    ids = {category: label for label, category in enumerate(names)}
    by_id = {entry_of(image, "id", f"{path}: an image"): image for image in content["images"]}
    pictures = {} if endings is None else _by_id(images, endings[0])
    records = []
    for annotation in content["annotations"]:
        number = entry_of(annotation, "image_id", f"{path}: an annotation")
        if number not in by_id:
            raise ValueError(f"{path}: annotation of an unknown image {number}")
        image, where = by_id[number], f"{path}: image {number}"
        png = entry_of(annotation, "file_name", f"{path}: the annotation of image {number}")
        listed = entry_of(image, "file_name", where)
        picture, label_map = images / listed, Path(png)
        if endings is not None:
            # Where it would be without subfolders, so that a missing one is named.
            picture = pictures.get(str(number), images / f"{number}{endings[0]}")
            label_map = picture.parent.relative_to(images) / f"{number}{endings[1]}"
        record = {
            "file_name": str(picture),
            "image_id": number,
            "height": entry_of(image, "height", where),
            "width": entry_of(image, "width", where),
            "pan_seg_file_name": str(segments / png),
            "segments_info": _segments(annotation, ids, f"{path}: {png}"),
        }
        if semantic is not None:
            record["sem_seg_file_name"] = str(semantic / label_map)
        records.append(record)
    return records


def _by_id(images: Path, ending: str) -> dict[str, Path]:
    """Images by what comes before the ending of their names, whatever their folders."""
    return {stem.name: path for stem, path in _by_stem([images], (ending,)).items()}


def _segments(annotation: dict, ids: dict[int, int], where: str) -> list[dict]:
    """`segments_info` with contiguous labels."""
    found = []
    for segment in entry_of(annotation, "segments_info", where):
        entry_of(segment, "id", f"{where}: a segment")
        category = entry_of(segment, "category_id", f"{where}: segment {segment['id']}")
        if category not in ids:
            raise ValueError(f"{where} has category {category}, which the json does not list")
        found.append(dict(segment, category_id=ids[category]))
    return found


def load_instances(name: str, path: Path, images: Path, names: dict[int, str]) -> list[dict]:
    """Records of a COCO instances json; see `load_panoptic`."""
    # Read twice, but by code of its own: a json of objects is small beside its images.
    content = read_coco(path, "images", "categories")
    check_agreement(path, content["categories"], names)
    try:
        # Without the dataset's name: Detectron2 would make labels of the ids by its own rule.
        records = load_coco_json(str(path), str(images))
    except (KeyError, TypeError, AssertionError) as error:
        reason = str(error.args[0]) if error.args else "its annotations contradict each other"
        # A KeyError of Detectron2 holds a sentence, one of Python the missing key.
        if " " not in reason:
            reason = f"an image or annotation lacks {reason!r}"
        raise ValueError(f"{path}: {reason}") from error
    ids = {category: label for label, category in enumerate(names)}
    for record in records:
        for annotation in record["annotations"]:
            where = f"{path}: an annotation of image {record['image_id']}"
            category = entry_of(annotation, "category_id", where)
            if category not in ids:
                raise ValueError(f"{where} has category_id={category}, which the json lacks")
            annotation["category_id"] = ids[category]
    return records


def load_semantic(
    name: str,
    image_root: str | Sequence[str],
    label_root: str,
    *,
    image_ending: str | None,
    label_ending: str | None,
    split_file: str | None,
    labelled_only: bool,
    label_offset: int,
) -> list[dict]:
    """Records of images and label maps of the same relative names.

    Args: see `register_semantic_folder`.

    Raises:
        FileNotFoundError: no such folder or list.
        ValueError: an image has no label map, or what is listed has no image.
    """
    several = isinstance(image_root, (list, tuple))
    images, labels = [*map(Path, image_root if several else [image_root])], Path(label_root)
    for folder in (*images, labels):
        if not folder.is_dir():
            raise FileNotFoundError(f"dataset {name!r}: folder {folder} does not exist")
    pictures = _by_stem(images, IMAGE_SUFFIXES if image_ending is None else (image_ending,))
    maps = _by_stem([labels], LABEL_SUFFIXES if label_ending is None else (label_ending,))
    stems = sorted(maps if labelled_only else pictures)
    if split_file is not None:
        stems = [Path(line) for line in read_lines(existing_file(split_file, name))]
    raise_incomplete(
        name,
        [
            f"{pictures[stem]} has no label map in {labels}"
            if stem in pictures
            else f"{stem} has no image in {', '.join(map(str, images))}"
            for stem in stems
            if stem not in pictures or stem not in maps
        ],
    )
    shared = {"label_offset": label_offset} if label_offset else {}
    return [
        {
            "file_name": str(pictures[stem]),
            "image_id": str(stem),
            "sem_seg_file_name": str(maps[stem]),
            **shared,
        }
        for stem in stems
    ]


def _by_stem(folders: Sequence[Path], endings: Sequence[str]) -> dict[Path, Path]:
    """Files below `folders` by relative path without ending, in whichever case it is."""
    found = {}
    for folder in folders:
        for path in files_below(folder):
            # Some systems leave ._name.jpg beside name.jpg.
            if path.name.startswith("."):
                continue
            name = path.name.lower()
            ending = next((e for e in endings if name.endswith(e.lower()) and name != e), None)
            if ending is not None:
                found[path.relative_to(folder).with_name(path.name[: -len(ending)])] = path
    return found
