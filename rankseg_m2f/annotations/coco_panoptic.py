"""Segments of images: COCO panoptic jsons and their PNGs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankseg_m2f.annotations.coco import (
    IMAGES,
    Media,
    MediaList,
    check_entries,
    read_coco,
    read_media,
    report_unlisted,
    resolve_sizes,
)
from rankseg_m2f.annotations.coco_categories import contiguous_labels, namesakes, sound_categories
from rankseg_m2f.annotations.fields import as_flag, as_int, shown
from rankseg_m2f.annotations.findings import Findings
from rankseg_m2f.annotations.folders import by_stem

# Ids are colours; 0 is no segment.
_MAX_SEGMENT = 0xFFFFFF


def load_panoptic(
    findings: Findings,
    *,
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
        UserError: not such a json, or other categories than the dataset's.
    """
    content = read_coco(path, "images", "annotations", "categories")
    categories = sound_categories(path, content["categories"])
    findings.remarks += [f"{path}: {remark}" for remark in namesakes(categories)]
    labels = {category: label for label, category in enumerate(names)}
    labels = contiguous_labels(path, categories, names, labels)
    media = read_media(path, IMAGES, content["images"], findings)
    pictures = {} if endings is None else _by_id(images, endings[0])

    def picture(one: Media) -> Path:
        if endings is None:
            return images / one.files[0]
        # Where it would be without subfolders, so that a missing one is named.
        return pictures.get(str(one.id), images / f"{one.id}{endings[0]}")

    resolve_sizes(media, picture, findings)
    records = []
    for one, png, segments_info in _annotated(media, content["annotations"], labels, findings):
        record = {
            "file_name": str(picture(one)),
            "image_id": one.id,
            "height": one.size[0],
            "width": one.size[1],
            "pan_seg_file_name": str(segments / png),
            "segments_info": segments_info,
        }
        if semantic is not None:
            label_map = Path(png)
            if endings is not None:
                label_map = picture(one).parent.relative_to(images) / f"{one.id}{endings[1]}"
            record["sem_seg_file_name"] = str(semantic / label_map)
        records.append(record)
    return records


def _by_id(images: Path, ending: str) -> dict[str, Path]:
    """Images by what comes before the ending of their names, whatever their folders."""
    return {stem.name: paths[0] for stem, paths in by_stem([images], (ending,)).items()}


def _annotated(
    media: MediaList, annotations: list, labels: Mapping[int, int], findings: Findings
) -> list[tuple[Media, str, list[dict]]]:
    """Images that have one annotation, with its PNG and its segments."""
    path = media.path
    annotations = check_entries(path, "annotations", annotations, findings)
    found: dict[Any, tuple[Media, str, list[dict]]] = {}
    unlisted = []
    for place, annotation in enumerate(annotations):
        if "image_id" not in annotation:
            findings.errors.append(f"{path}: an annotation lacks 'image_id' (number {place})")
            continue
        number = annotation["image_id"]
        usable = type(number) in (int, str, float)
        one = media.known.get(number) if usable else None
        if one is None:
            if not usable or number not in media.dropped:
                unlisted.append((place, number))
            continue
        if number in found:
            findings.errors.append(
                f"{path}: image {number} ({one.files[0]}) has two entries of annotations; put all "
                "its segments into one"
            )
            continue
        png = annotation.get("file_name")
        if not isinstance(png, str) or not png.strip() or "\0" in png:
            what = "lacks" if "file_name" not in annotation else f"is {shown(png)} for"
            findings.errors.append(f"{path}: the annotation of image {number} {what} 'file_name'")
            continue
        where = f"{path}: {png}"
        found[number] = one, png, _segments(annotation, labels, where, findings)
    report_unlisted(media, unlisted, len(annotations), findings)
    return list(found.values())


def _segments(
    annotation: dict, labels: Mapping[int, int], where: str, findings: Findings
) -> list[dict]:
    """`segments_info` with contiguous labels, integer ids and crowds of 0 or 1."""
    entries = annotation.get("segments_info")
    if not isinstance(entries, list):
        said = "lacks 'segments_info'"
        if "segments_info" in annotation:
            said = f"has segments_info {shown(entries)}, not a list"
        findings.errors.append(
            f"{where} {said} (image {annotation['image_id']}); of an image without segments it is "
            "[]"
        )
        return []
    found: dict[int, dict] = {}
    for entry in entries:
        number = as_int(entry.get("id")) if isinstance(entry, dict) else None
        if number is None or not 0 <= number <= _MAX_SEGMENT:
            said = f"lacks 'id': {shown(entry)}"
            if isinstance(entry, dict) and "id" in entry:
                said = f"has the id {shown(entry['id'])}, none of 1 to {_MAX_SEGMENT}"
            findings.errors.append(f"{where}: a segment {said}")
            continue
        category = entry.get("category_id")
        label = labels.get(category) if type(category) in (int, float) else None
        if label is None:
            said = f"has category {shown(category)}, which the json does not list"
            if category is None:
                said = f": segment {number} lacks 'category_id'"
            findings.errors.append(f"{where} {said}".replace(" : ", ": "))
        elif number in found:
            findings.errors.append(
                f"{where} (image {annotation['image_id']}) has two segments of id {number}"
            )
        elif number == 0:
            findings.problems.append(
                f"{where} has a segment of id 0, which means no segment: it is left out"
            )
        else:
            crowd = as_flag(entry.get("iscrowd"))
            if crowd is None:
                findings.problems.append(
                    f"{where}: segment {number} has iscrowd {shown(entry['iscrowd'])}, which is "
                    "neither 0 nor 1: it counts as 0"
                )
            found[number] = dict(entry, id=number, category_id=label, iscrowd=crowd or 0)
    return list(found.values())
