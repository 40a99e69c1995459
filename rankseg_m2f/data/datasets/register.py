"""Registering your own datasets with Detectron2: one call, all metadata.

K labels have contiguous ids 0..K-1, things and stuff in one space.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

logger = logging.getLogger(__name__)
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


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
    """
    path = _file(panoptic_json, name)
    categories = _categories(path)
    ids = {c["id"]: i for i, c in enumerate(categories)}
    things = [c for c in categories if c.get("isthing", 1)]
    instances = None if instances_json is None else str(_file(instances_json, name))

    def load() -> list[dict]:
        return _load_panoptic(path, Path(image_root), Path(panoptic_root), semantic_root, ids)

    _register(
        name,
        load,
        evaluator_type="coco_panoptic_seg",
        label_names=[c["name"] for c in categories],
        stuff_classes=[c["name"] for c in categories],
        stuff_colors=_colours(categories),
        thing_classes=[c["name"] for c in things],
        thing_colors=_colours(things),
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
        classes: K names; pixel value i means classes[i].
        ignore_label: pixel value of ignored pixels.
        colours: K RGB triples; None: made up.
    """
    categories = [{"name": c} for c in classes]
    for category, colour in zip(categories, colours or [], strict=False):
        category["color"] = list(colour)

    def load() -> list[dict]:
        return _load_semantic(name, Path(image_root), Path(label_root))

    _register(
        name,
        load,
        evaluator_type="sem_seg",
        label_names=list(classes),
        stuff_classes=list(classes),
        stuff_colors=_colours(categories),
        ignore_label=ignore_label,
        num_classes=len(classes),
        image_root=str(image_root),
        sem_seg_root=str(label_root),
    )


def register_coco_instances(name: str, *, image_root: str, instances_json: str) -> None:
    """Register a dataset in COCO instance format (polygons or RLE).

    Labels are the json's categories by ascending id, as Detectron2 has it.
    """
    path = _file(instances_json, name)
    categories = sorted(_categories(path), key=lambda c: c["id"])
    ids = {c["id"]: i for i, c in enumerate(categories)}

    def load() -> list[dict]:
        return load_coco_json(str(path), str(image_root), name)

    _register(
        name,
        load,
        evaluator_type="coco",
        label_names=[c["name"] for c in categories],
        thing_classes=[c["name"] for c in categories],
        thing_colors=_colours(categories),
        thing_dataset_id_to_contiguous_id=ids,
        num_classes=len(categories),
        image_root=str(image_root),
        json_file=str(path),
    )


KINDS = {
    "coco_panoptic": register_coco_panoptic,
    "semantic_folder": register_semantic_folder,
    "coco_instances": register_coco_instances,
}


def register_definitions(paths: Sequence[str]) -> list[str]:
    """Register the datasets that YAML files describe (``DATASETS.DEFINITIONS``).

    A file maps names to arguments of the functions above plus `kind`; paths are relative to it.

    Returns:
        The names registered.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown kind or argument, naming file and dataset.
    """
    names = []
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"DATASETS.DEFINITIONS: {path} does not exist")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{path} must map dataset names to definitions")
        for name, definition in content.items():
            arguments = dict(definition)
            kind = arguments.pop("kind", None)
            if kind not in KINDS:
                raise ValueError(f"{path}: {name}: kind {kind!r} is none of {', '.join(KINDS)}")
            for key, value in arguments.items():
                if key.endswith(("_root", "_json")) and value is not None:
                    arguments[key] = str(path.parent / value)
            try:
                KINDS[kind](name, **arguments)
            except TypeError as error:
                raise ValueError(f"{path}: {name}: {error}") from error
            names.append(name)
    return names


def _register(name: str, load, **metadata) -> None:
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


def _file(path: str, name: str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"dataset {name!r}: {path} does not exist")
    return Path(path)


def _categories(path: Path) -> list[dict]:
    try:
        categories = json.loads(path.read_text(encoding="utf-8"))["categories"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no COCO json with categories ({error})") from error
    if not categories:
        raise ValueError(f"{path} lists no categories")
    return categories


def _colours(categories: Sequence[dict]) -> list[list[int]]:
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
    content = json.loads(path.read_text(encoding="utf-8"))
    by_id = {image["id"]: image for image in content["images"]}
    records = []
    for annotation in content["annotations"]:
        image = by_id.get(annotation["image_id"])
        if image is None:
            raise ValueError(f"{path}: annotation of an unknown image {annotation['image_id']}")
        segments_info = []
        for segment in annotation["segments_info"]:
            if segment["category_id"] not in ids:
                raise ValueError(
                    f"{path}: {annotation['file_name']} has category {segment['category_id']}, "
                    "which the json does not list"
                )
            segments_info.append(dict(segment, category_id=ids[segment["category_id"]]))
        record = {
            "file_name": str(images / image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "pan_seg_file_name": str(segments / annotation["file_name"]),
            "segments_info": segments_info,
        }
        if semantic_root is not None:
            record["sem_seg_file_name"] = str(Path(semantic_root) / annotation["file_name"])
        records.append(record)
    return records


def _load_semantic(name: str, images: Path, labels: Path) -> list[dict]:
    for folder in (images, labels):
        if not folder.is_dir():
            raise FileNotFoundError(f"dataset {name!r}: folder {folder} does not exist")
    by_stem = {p.relative_to(labels).with_suffix(""): p for p in sorted(labels.rglob("*.png"))}
    records, unlabelled = [], []
    for path in sorted(images.rglob("*")):
        if path.suffix.lower() not in _IMAGE_SUFFIXES:
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
