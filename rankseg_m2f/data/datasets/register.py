"""Registering your own datasets with Detectron2: one call, all metadata.

K labels have contiguous ids 0..K-1, things and stuff in one space.
"""

import colorsys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rankseg_m2f.annotations.coco import IMAGES, Kind, read_coco
from rankseg_m2f.annotations.coco_categories import sound_categories
from rankseg_m2f.annotations.coco_panoptic import load_panoptic
from rankseg_m2f.annotations.fields import shown
from rankseg_m2f.annotations.label_folders import load_semantic
from rankseg_m2f.annotations.objects import load_objects
from rankseg_m2f.data.categories import read_categories
from rankseg_m2f.data.datasets.arguments import (
    check_classes,
    check_colours,
    check_endings,
    check_flag,
    check_ignore_label,
    check_values,
    existing_file,
)
from rankseg_m2f.data.datasets.catalog import DatasetSource, add_dataset
from rankseg_m2f.errors import UserError


def register_coco_panoptic(
    name: str,
    *,
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    semantic_root: str | None = None,
    instances_json: str | None = None,
    ignore_label: int = 255,
    table: str | None = None,
    image_ending: str | None = None,
    label_ending: str = ".png",
    evaluator_type: str = "coco_panoptic_seg",
) -> None:
    """Register a dataset in COCO panoptic format; labels are the json's categories in file order.

    Args:
        image_root: folder of the json's images.
        panoptic_root, panoptic_json: folder of panoptic PNGs, and annotations.
        semantic_root: folder of label maps with contiguous ids; None: made from the panoptic PNGs.
        instances_json: COCO instances of the same images, for AP; None: no AP.
        ignore_label: id of ignored pixels in the label maps.
        table: of `data/categories`, whose labels the dataset has: then the json is not opened
            before it is loaded. None: the json's.
        image_ending, label_ending: what follows the image id in the names of images, which may
            lie in subfolders, and of label maps; None: the json names them.
        evaluator_type: key of `EVALUATORS` in evaluation/build.py.

    Raises:
        FileNotFoundError: no such json.
        ValueError: a json without sound categories, an `ignore_label` that is a label, or a name
            registered with other arguments. Loading raises it for unsound annotations.
    """
    categories = _categories(panoptic_json, name, table)
    names = {c["id"]: c["name"] for c in categories}
    # Only label maps hold the ignore label: panoptic PNGs have ids of their own.
    check_ignore_label(ignore_label, 0 if semantic_root is None else len(categories), name)
    check_endings(name, image_ending=image_ending, label_ending=label_ending)
    load = partial(
        load_panoptic,
        path=Path(panoptic_json),
        images=Path(image_root),
        segments=Path(panoptic_root),
        semantic=semantic_root and Path(semantic_root),
        names=names,
        endings=None if image_ending is None else (image_ending, label_ending),
    )
    add_dataset(
        name,
        DatasetSource(name, load),
        evaluator_type=evaluator_type,
        **stuff_metadata(categories),
        **_things([c for c in categories if c.get("isthing", 1)], list(names)),
        ignore_label=ignore_label,
        image_root=str(image_root),
        panoptic_root=str(panoptic_root),
        panoptic_json=str(panoptic_json),
        sem_seg_root=semantic_root and str(semantic_root),
        json_file=None if instances_json is None else str(existing_file(instances_json, name)),
    )


def register_semantic_folder(
    name: str,
    *,
    image_root: str | Sequence[str],
    label_root: str,
    classes: Sequence[str] | None = None,
    ignore_label: int = 255,
    colours: Sequence[Sequence[int]] | None = None,
    table: str | None = None,
    label_offset: int = 0,
    split_file: str | None = None,
    labelled_only: bool = False,
    image_ending: str | None = None,
    label_ending: str | None = None,
    evaluator_type: str = "sem_seg",
) -> None:
    """Register a folder of images and one of label maps (PNG, BMP or TIFF) of the same relative
    names.

    Args:
        image_root: the folder of images, or several that are searched together.
        classes: K different names; pixel value i + label_offset means classes[i].
        ignore_label: pixel value of ignored pixels, in the files; so are values below
            `label_offset`, so that 0 may be the one and `label_offset` 1.
        colours: K RGB triples; None: made up.
        table: of `data/categories`, in place of `classes` and `colours`.
        split_file: a text of relative names, one per line, with or without endings; None: all
            images.
        labelled_only: leave out images without label map.
        image_ending: of the images' names, such as "_photo.png"; None: that of any image.
        label_ending: of the label maps' names; None: .png, .bmp, .tif or .tiff.
        evaluator_type: key of `EVALUATORS` in evaluation/build.py.

    Raises:
        ValueError: bad `classes` or `colours`, an `ignore_label` that is a label, or a name
            registered with other arguments. Loading raises it for images without label map.
    """
    categories = named_categories(name, classes, table)
    check_values(ignore_label, len(categories), name, label_offset)
    check_flag("labelled_only", labelled_only, name)
    if colours is not None:
        check_colours(colours, len(categories), name)
        categories = [dict(c, color=rgb) for c, rgb in zip(categories, colours, strict=True)]
    options = {"image_ending": image_ending, "label_ending": label_ending}
    check_endings(name, **options)
    options |= {"split_file": split_file, "labelled_only": labelled_only}
    roots = {"image_root": image_root, "label_root": label_root, "label_offset": label_offset}
    load = partial(load_semantic, name=name, **roots, **options)
    add_dataset(
        name,
        DatasetSource(name, load, f"dataset {name!r} is incomplete: "),
        evaluator_type=evaluator_type,
        **stuff_metadata(categories),
        ignore_label=ignore_label,
        label_offset=label_offset,
        image_root=image_root,
        sem_seg_root=str(label_root),
        **options,
    )


def register_coco_instances(
    name: str,
    *,
    image_root: str,
    instances_json: str,
    table: str | None = None,
    evaluator_type: str = "coco",
) -> None:
    """Register a dataset in COCO instance format (polygons or RLE).

    Labels are the json's categories by ascending id, as Detectron2 has it.

    Args:
        table: of `data/categories`, whose things the dataset has: then the json is not opened
            before it is loaded. None: the json's.
        evaluator_type: key of `EVALUATORS` in evaluation/build.py.

    Raises:
        FileNotFoundError: no such json.
        ValueError: a json without sound categories, or a name registered with other arguments.
            Loading raises it for images or annotations that lack a key.
    """
    add_objects(name, evaluator_type, image_root, instances_json, IMAGES, table)


def add_objects(
    name: str,
    evaluator_type: str,
    image_root: str,
    instances_json: str,
    kind: Kind,
    table: str | None,
) -> None:
    """Register objects of images or of videos, labels by ascending category id."""
    categories = sorted(_categories(instances_json, name, table), key=lambda c: c["id"])
    if table is not None:
        categories = [c for c in categories if c["isthing"]]
    names = {c["id"]: c["name"] for c in categories}
    load = partial(
        load_objects, path=Path(instances_json), root=Path(image_root), kind=kind, names=names
    )
    add_dataset(
        name,
        DatasetSource(name, load),
        evaluator_type=evaluator_type,
        label_names=list(names.values()),
        **_things(categories, list(names)),
        num_classes=len(categories),
        image_root=str(image_root),
        json_file=str(instances_json),
    )


def named_categories(name: str, classes: Sequence[str] | None, table: str | None) -> list[dict]:
    """Categories of label maps, from either their names or a table."""
    if table is None:
        check_classes(classes, name)
        return [{"name": c} for c in classes]
    if classes is not None:
        raise UserError(f"dataset {name!r} has both classes and a table; give one of them")
    return _table(table, name)


def _categories(path: str, name: str, table: str | None) -> list[dict]:
    """Categories of a table of ours, else of a json, which must exist then."""
    if table is None:
        path = existing_file(path, name)
        return sound_categories(path, read_coco(path, "categories")["categories"])
    return _table(table, name)


def _table(table: str, name: str) -> list[dict]:
    if not isinstance(table, str):
        raise UserError(f"dataset {name!r}: table={shown(table)} is not the name of a table")
    return list(read_categories(table))


def stuff_metadata(categories: Sequence[dict]) -> dict:
    """Metadata of K labels, whether or not they are countable."""
    names = [c["name"] for c in categories]
    ids = {c["id"]: i for i, c in enumerate(categories) if "id" in c}
    return {
        "label_names": names,
        "stuff_classes": names,
        "stuff_colors": label_colours(categories),
        "num_classes": len(names),
        **({"stuff_dataset_id_to_contiguous_id": ids} if ids else {}),
    }


def _things(things: Sequence[dict], ids: list[int]) -> dict:
    """Metadata of countable labels.

    Args:
        ids: of all labels, in their order.
    """
    return {
        "thing_classes": [c["name"] for c in things],
        "thing_colors": label_colours(things),
        "thing_dataset_id_to_contiguous_id": {c["id"]: ids.index(c["id"]) for c in things},
    }


def label_colours(categories: Sequence[dict]) -> list[list[int]]:
    """The given colours, else hues a golden angle apart."""
    return [
        list(c["color"])
        if "color" in c
        else [int(255 * x) for x in colorsys.hsv_to_rgb(i * 0.618 % 1, 0.55 + 0.4 * (i % 2), 0.9)]
        for i, c in enumerate(categories)
    ]
