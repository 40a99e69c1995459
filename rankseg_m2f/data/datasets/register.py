"""Registering your own datasets with Detectron2: one call, all metadata.

K labels have contiguous ids 0..K-1, things and stuff in one space.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

logger = logging.getLogger(__name__)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def register_coco_panoptic(
    name: str,
    *,
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    semantic_root: str | None = None,
    instances_json: str | None = None,
    ignore_label: int = 255,
) -> None:
    """Register a dataset in COCO panoptic format.

    Labels are the json's categories in file order.

    Args:
        image_root: folder of the json's images.
        panoptic_root: folder of panoptic PNGs.
        panoptic_json: annotations.
        semantic_root: folder of label-map PNGs with contiguous ids; None: made from the panoptic
            PNGs where needed.
        instances_json: COCO instances of the same images, for AP; None: no AP.
        ignore_label: id of ignored pixels in the label maps.

    Raises:
        FileNotFoundError: no such json.
        ValueError: a json without sound categories, an `ignore_label` that is a label, or a name
            registered with other arguments. Loading raises it for annotations that lack a key.
    """
    path = existing_file(panoptic_json, name)
    categories = coco_categories(path, name)
    ids = {c["id"]: i for i, c in enumerate(categories)}
    things = [c for c in categories if c.get("isthing", 1)]
    instances = None if instances_json is None else str(existing_file(instances_json, name))
    # Only label maps hold the ignore label: panoptic PNGs have ids of their own.
    check_ignore_label(ignore_label, 0 if semantic_root is None else len(categories), name)

    def load() -> list[dict]:
        return _load_panoptic(path, Path(image_root), Path(panoptic_root), semantic_root, ids)

    add_dataset(
        name,
        load,
        evaluator_type="coco_panoptic_seg",
        label_names=[c["name"] for c in categories],
        stuff_classes=[c["name"] for c in categories],
        stuff_colors=label_colours(categories),
        thing_classes=[c["name"] for c in things],
        thing_colors=label_colours(things),
        thing_dataset_id_to_contiguous_id={c["id"]: ids[c["id"]] for c in things},
        stuff_dataset_id_to_contiguous_id=ids,
        ignore_label=ignore_label,
        num_classes=len(categories),
        image_root=str(image_root),
        panoptic_root=str(panoptic_root),
        panoptic_json=str(path),
        sem_seg_root=None if semantic_root is None else str(semantic_root),
        json_file=instances,
    )


def register_semantic_folder(
    name: str,
    *,
    image_root: str,
    label_root: str,
    classes: Sequence[str],
    ignore_label: int = 255,
    colours: Sequence[Sequence[int]] | None = None,
) -> None:
    """Register a folder of images and one of label-map PNGs of the same relative names.

    Args:
        classes: K different names; pixel value i means classes[i].
        ignore_label: pixel value of ignored pixels.
        colours: K RGB triples; None: made up.

    Raises:
        ValueError: bad `classes` or `colours`, an `ignore_label` that is a label, or a name
            registered with other arguments. Loading raises it for pictures without label map.
    """
    check_classes(classes, name)
    check_ignore_label(ignore_label, len(classes), name)
    categories = [{"name": c} for c in classes]
    if colours is not None:
        _check_colours(colours, len(classes), name)
        categories = [dict(c, color=rgb) for c, rgb in zip(categories, colours, strict=True)]

    def load() -> list[dict]:
        return _load_semantic(name, Path(image_root), Path(label_root))

    add_dataset(
        name,
        load,
        evaluator_type="sem_seg",
        label_names=list(classes),
        stuff_classes=list(classes),
        stuff_colors=label_colours(categories),
        ignore_label=ignore_label,
        num_classes=len(classes),
        image_root=str(image_root),
        sem_seg_root=str(label_root),
    )


def register_coco_instances(name: str, *, image_root: str, instances_json: str) -> None:
    """Register a dataset in COCO instance format (polygons or RLE).

    Labels are the json's categories by ascending id, as Detectron2 has it.

    Raises:
        FileNotFoundError: no such json.
        ValueError: a json without sound categories, or a name registered with other arguments.
            Loading raises it for images or annotations that lack a key.
    """
    add_objects(name, "coco", image_root, instances_json, _load_instances)


def add_objects(
    name: str,
    evaluator_type: str,
    image_root: str,
    instances_json: str,
    load: Callable[[str, Path, Path, dict[int, int]], list[dict]],
) -> None:
    """Register objects of pictures or of videos, labels by ascending category id.

    Args:
        load: makes the records from name, json, `image_root` and {category id: label}.
    """
    path = existing_file(instances_json, name)
    categories = sorted(coco_categories(path, name), key=lambda c: c["id"])
    ids = {c["id"]: i for i, c in enumerate(categories)}
    add_dataset(
        name,
        lambda: load(name, path, Path(image_root), ids),
        evaluator_type=evaluator_type,
        label_names=[c["name"] for c in categories],
        thing_classes=[c["name"] for c in categories],
        thing_colors=label_colours(categories),
        thing_dataset_id_to_contiguous_id=ids,
        num_classes=len(categories),
        image_root=str(image_root),
        json_file=str(path),
    )


def read_coco(path: Path, *lists: str) -> dict:
    """A COCO json.

    Args:
        lists: keys under which it must have lists.

    Raises:
        ValueError: no json, or such a key is missing, naming the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no json ({error})") from error
    for key in lists:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{path} is no COCO json: it has no list of {key!r}")
    return content


def add_dataset(name: str, load, **metadata) -> None:
    """Put a dataset into the catalogs; the same again is harmless, another so named an error."""
    known = MetadataCatalog.get(name)
    if name in DatasetCatalog.list():
        changed = [k for k, v in metadata.items() if known.get(k) != v]
        if not changed:
            return
        raise ValueError(
            f"dataset {name!r} is registered already with other {', '.join(changed)}; "
            "choose another name"
        )
    DatasetCatalog.register(name, load)
    known.set(name=name, **metadata)


def existing_file(path: str, name: str) -> Path:
    """The path of a file of dataset `name`, which must exist."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"dataset {name!r}: {path} does not exist")
    return Path(path)


def coco_categories(path: Path, name: str) -> list[dict]:
    """The categories of a COCO json, each with an id of its own and a name."""
    categories = read_coco(path, "categories")["categories"]
    if not categories:
        raise ValueError(f"dataset {name!r}: {path} lists no categories")
    for number, category in enumerate(categories):
        where = f"dataset {name!r}: {path}: category number {number}"
        if not is_int(entry_of(category, "id", where)):
            raise ValueError(f"{where} has the id {category['id']!r}, which is no integer")
        if not _is_name(entry_of(category, "name", where)):
            raise ValueError(f"{where} has the name {category['name']!r}, which is no text")
        if "color" in category and not _is_rgb(category["color"]):
            raise ValueError(f"{where} has the color {category['color']!r}, which is no RGB triple")
    if (twice := _first_repeated([c["id"] for c in categories])) is not None:
        raise ValueError(f"dataset {name!r}: {path} has several categories of id {twice}")
    return categories


def check_classes(classes: Sequence[str], name: str) -> None:
    """Raise unless `classes` are unique, non-empty texts."""
    if not isinstance(classes, (list, tuple)) or not classes:
        raise ValueError(f"dataset {name!r}: classes must be a list of names, not {classes!r}")
    for number, entry in enumerate(classes):
        if not _is_name(entry):
            raise ValueError(
                f"dataset {name!r}: classes[{number}] is {entry!r}, which is no text; quote names "
                "that YAML takes for something else, such as yes, no, on, off or numbers"
            )
    if (twice := _first_repeated(classes)) is not None:
        raise ValueError(f"dataset {name!r}: classes names {twice!r} more than once")


def _check_colours(colours: Sequence[Sequence[int]], count: int, name: str) -> None:
    if not isinstance(colours, (list, tuple)) or not all(map(_is_rgb, colours)):
        raise ValueError(f"dataset {name!r}: colours must be a list of RGB triples, 0 to 255")
    if len(colours) != count:
        raise ValueError(f"dataset {name!r} has {count} classes but {len(colours)} colours")


def check_ignore_label(ignore_label: int, num_labels: int, name: str) -> None:
    """Raise unless `ignore_label` is an integer outside [0, num_labels)."""
    if not is_int(ignore_label):
        raise ValueError(f"dataset {name!r}: ignore_label={ignore_label!r} is no integer")
    if 0 <= ignore_label < num_labels:
        raise ValueError(
            f"dataset {name!r}: ignore_label={ignore_label} is one of its {num_labels} labels; "
            "set one that is not, such as 65535 with 16-bit label maps"
        )


def is_int(value: Any) -> bool:
    """Whether a value is an integer, and no boolean."""
    # Python counts True as an integer.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_rgb(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(is_int(x) and 0 <= x <= 255 for x in value)
    )


def _first_repeated(values: Sequence) -> Any:
    seen = set()
    # set.add returns None.
    return next((v for v in values if v in seen or seen.add(v)), None)


def entry_of(mapping: Any, key: str, where: str) -> Any:
    """`mapping[key]`, or an error that says where it is missing."""
    if not isinstance(mapping, dict) or key not in mapping:
        raise ValueError(f"{where} lacks {key!r}")
    return mapping[key]


def label_colours(categories: Sequence[dict]) -> list[list[int]]:
    """The given colours, else hues a golden angle apart."""
    # Lazy: matplotlib is only needed for datasets without colours.
    from matplotlib.colors import hsv_to_rgb

    return [
        list(c["color"])
        if "color" in c
        else [int(255 * x) for x in hsv_to_rgb((i * 0.618 % 1, 0.55 + 0.4 * (i % 2), 0.9))]
        for i, c in enumerate(categories)
    ]


def _load_panoptic(
    path: Path, images: Path, segments: Path, semantic_root: str | None, ids: dict[int, int]
) -> list[dict]:
    content = read_coco(path, "images", "annotations")
    by_id = {entry_of(image, "id", f"{path}: an image"): image for image in content["images"]}
    records = []
    for annotation in content["annotations"]:
        number = entry_of(annotation, "image_id", f"{path}: an annotation")
        if number not in by_id:
            raise ValueError(f"{path}: annotation of an unknown image {number}")
        image, where = by_id[number], f"{path}: image {number}"
        file_name = entry_of(annotation, "file_name", f"{path}: the annotation of image {number}")
        record = {
            "file_name": str(images / entry_of(image, "file_name", where)),
            "image_id": number,
            "height": entry_of(image, "height", where),
            "width": entry_of(image, "width", where),
            "pan_seg_file_name": str(segments / file_name),
            "segments_info": _segments(annotation, ids, f"{path}: {file_name}"),
        }
        if semantic_root is not None:
            record["sem_seg_file_name"] = str(Path(semantic_root) / file_name)
        records.append(record)
    return records


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


def _load_instances(name: str, path: Path, image_root: Path, ids: dict[int, int]) -> list[dict]:
    # Detectron2 makes the same `ids` of the json for itself.
    try:
        return load_coco_json(str(path), str(image_root), name)
    except (KeyError, TypeError, AssertionError) as error:
        reason = str(error.args[0]) if error.args else "its annotations contradict each other"
        # A KeyError of Detectron2 holds a sentence, one of Python the missing key.
        if " " not in reason:
            reason = f"an image or annotation lacks {reason!r}"
        raise ValueError(f"{path}: {reason}") from error


def _load_semantic(name: str, images: Path, labels: Path) -> list[dict]:
    for folder in (images, labels):
        if not folder.is_dir():
            raise FileNotFoundError(f"dataset {name!r}: folder {folder} does not exist")
    by_stem = {p.relative_to(labels).with_suffix(""): p for p in sorted(labels.rglob("*.png"))}
    records, unlabelled = [], []
    for path in sorted(images.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        stem = path.relative_to(images).with_suffix("")
        if stem not in by_stem:
            unlabelled.append(str(path))
            continue
        records.append(
            {
                "file_name": str(path),
                "image_id": str(stem),
                "sem_seg_file_name": str(by_stem[stem]),
            }
        )
    if unlabelled:
        raise ValueError(
            f"dataset {name!r}: {len(unlabelled)} images have no label map in {labels}, "
            f"first {unlabelled[0]}"
        )
    return records
