"""Known datasets in their official places under their official names: a table.

Registering looks at no annotations: labels come from `data/categories`, and whether the files agree
is seen when a dataset is loaded. A name is registered whatever is there, so that loading it can say
what is missing and which script of datasets/ makes it.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin

from rankseg_m2f.annotations.findings import AnnotationSource, Findings
from rankseg_m2f.annotations.folders import missing_files
from rankseg_m2f.data.datasets.register import (
    Replaceable,
    forget,
    register_coco_instances,
    register_coco_panoptic,
    register_semantic_folder,
)
from rankseg_m2f.data.datasets.video import register_vspw, register_ytvis
from rankseg_m2f.errors import MissingFileError, UserError

logger = logging.getLogger(__name__)
_FILES = ("file_name", "sem_seg_file_name", "pan_seg_file_name")


@dataclass(frozen=True)
class Layout:
    """Where the splits of a dataset lie.

    Attributes:
        names: as registered, with {split} in it.
        register: one of the functions that YAML files call by kind.
        folder: below the root; the folder that all `paths` are relative to.
        script: of datasets/, which prepares it.
        paths: arguments of `register`; {split} is ours, {released} the release's name of a split.
            A tuple names several places, of which the first that exists is taken, a list
            several of which all are.
        settings: other arguments, with the same in braces.
        optional: keys of `paths` that are left out where nothing is there.
        splits: ours -> the release's.
    """

    names: str
    register: Callable
    folder: str
    script: str
    paths: Mapping[str, str | tuple[str, ...] | list[str]]
    settings: Mapping[str, str | int | bool]
    optional: tuple[str, ...] = ()
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "val": "val"})


_ADE20K = {
    "folder": "ADEChallengeData2016",
    "script": "prepare_ade20k.py",
    "splits": {"train": "training", "val": "validation"},
}
_COCO = {"folder": "coco", "script": "prepare_coco.py"}
_CITYSCAPES = {"folder": "cityscapes", "script": "prepare_cityscapes.py"}
_VISTAS = {
    "folder": "mapillary_vistas",
    "script": "prepare_mapillary_vistas.py",
    "splits": {"train": "training", "val": "validation"},
}
_PASCAL = {
    "register": register_semantic_folder,
    "folder": "VOCdevkit/VOC2010",
    "script": "prepare_pascal_context.py",
    "paths": {
        "image_root": "JPEGImages",
        "label_root": "SegmentationClassContext",
        "split_file": "ImageSets/SegmentationContext/{split}.txt",
    },
}
_TRACKS = {
    "register": register_ytvis,
    "splits": {"train": "train", "val": "valid", "test": "test"},
}
_YOUTUBE_VIS = {
    **_TRACKS,
    "script": "prepare_youtube_vis.py",
    "paths": {"image_root": "{released}/JPEGImages", "instances_json": "{released}.json"},
}
_COCO_PANOPTIC = {
    "image_root": "{split}2017",
    "panoptic_root": "panoptic_{split}2017",
    "panoptic_json": "annotations/panoptic_{split}2017.json",
    "instances_json": "annotations/instances_{split}2017.json",
}
_CITYSCAPES_PICTURES = {"image_root": "leftImg8bit/{split}"}
_CITYSCAPES_ENDINGS = {
    "table": "cityscapes_19",
    "image_ending": "_leftImg8bit.png",
    "label_ending": "_gtFine_labelTrainIds.png",
}

LAYOUTS = (
    Layout(
        "ade20k_sem_seg_{split}",
        register_semantic_folder,
        paths={
            "image_root": "images/{released}",
            "label_root": "annotations_detectron2/{released}",
        },
        settings={"table": "ade20k_150"},
        **_ADE20K,
    ),
    Layout(
        "ade20k_panoptic_{split}",
        register_coco_panoptic,
        paths={
            "image_root": "images/{released}",
            "panoptic_root": "ade20k_panoptic_{split}",
            "panoptic_json": "ade20k_panoptic_{split}.json",
            "semantic_root": "annotations_detectron2/{released}",
            "instances_json": "ade20k_instance_{split}.json",
        },
        settings={"table": "ade20k_150", "evaluator_type": "ade20k_panoptic_seg"},
        optional=("semantic_root", "instances_json"),
        **_ADE20K,
    ),
    Layout(
        "ade20k_instance_{split}",
        register_coco_instances,
        paths={
            "image_root": "images/{released}",
            "instances_json": "ade20k_instance_{split}.json",
        },
        settings={"table": "ade20k_150"},
        **_ADE20K,
    ),
    Layout(
        "ade20k_full_sem_seg_{split}",
        register_semantic_folder,
        "ADE20K_2021_17_01",
        "prepare_ade20k_full.py",
        paths={
            "image_root": "images_detectron2/{released}",
            "label_root": "annotations_detectron2/{released}",
        },
        settings={"table": "ade20k_full_847", "ignore_label": 65535},
        splits={"train": "training", "val": "validation"},
    ),
    Layout(
        "coco_2017_{split}",
        register_coco_instances,
        paths={k: _COCO_PANOPTIC[k] for k in ("image_root", "instances_json")},
        settings={"table": "coco_panoptic_133"},
        **_COCO,
    ),
    Layout(
        "coco_2017_{split}_panoptic",
        register_coco_panoptic,
        paths=_COCO_PANOPTIC,
        settings={"table": "coco_panoptic_133"},
        optional=("instances_json",),
        **_COCO,
    ),
    Layout(
        "coco_2017_{split}_panoptic_with_sem_seg",
        register_coco_panoptic,
        paths={**_COCO_PANOPTIC, "semantic_root": "panoptic_semseg_{split}2017"},
        settings={"table": "coco_panoptic_133"},
        optional=("instances_json",),
        **_COCO,
    ),
    Layout(
        "coco_2017_{split}_sem_seg",
        register_semantic_folder,
        paths={"image_root": "{split}2017", "label_root": "panoptic_semseg_{split}2017"},
        settings={"table": "coco_panoptic_133"},
        **_COCO,
    ),
    Layout(
        "coco_2017_{split}_stuff_10k_sem_seg",
        register_semantic_folder,
        "coco/coco_stuff_10k",
        "prepare_coco_stuff_10k.py",
        paths={
            "image_root": "images_detectron2/{split}",
            "label_root": "annotations_detectron2/{split}",
        },
        settings={"table": "coco_stuff_171"},
        splits={"train": "train", "test": "test"},
    ),
    Layout(
        "coco_lvis_sem_seg_{split}",
        register_semantic_folder,
        "",
        "prepare_coco_lvis.py",
        paths={
            # LVIS validates on images of either folder.
            "image_root": ["coco/train2017", "coco/val2017"],
            "label_root": "coco_lvis/annotations/{split}",
        },
        settings={
            "table": "coco_lvis_1284",
            "label_offset": 1,
            "ignore_label": 65535,
            "labelled_only": True,
        },
    ),
    Layout(
        "pascal_context_59_sem_seg_{split}",
        settings={"table": "pascal_context_59", "label_offset": 1},
        **_PASCAL,
    ),
    Layout("pascal_context_60_sem_seg_{split}", settings={"table": "pascal_context_60"}, **_PASCAL),
    Layout(
        "cityscapes_fine_sem_seg_{split}",
        register_semantic_folder,
        paths={**_CITYSCAPES_PICTURES, "label_root": "gtFine/{split}"},
        settings={**_CITYSCAPES_ENDINGS, "evaluator_type": "cityscapes_sem_seg"},
        **_CITYSCAPES,
    ),
    Layout(
        "cityscapes_fine_panoptic_{split}",
        register_coco_panoptic,
        paths={
            **_CITYSCAPES_PICTURES,
            "panoptic_root": "gtFine/cityscapes_panoptic_{split}",
            "panoptic_json": "gtFine/cityscapes_panoptic_{split}.json",
            "semantic_root": "gtFine/{split}",
            "instances_json": "gtFine/cityscapes_instances_{split}.json",
        },
        settings={**_CITYSCAPES_ENDINGS, "evaluator_type": "cityscapes_panoptic_seg"},
        optional=("instances_json",),
        **_CITYSCAPES,
    ),
    Layout(
        "cityscapes_fine_instance_seg_{split}",
        register_coco_instances,
        paths={
            **_CITYSCAPES_PICTURES,
            "instances_json": "gtFine/cityscapes_instances_{split}.json",
        },
        settings={"table": "cityscapes_19", "evaluator_type": "cityscapes_instance"},
        **_CITYSCAPES,
    ),
    Layout(
        "mapillary_vistas_sem_seg_{split}",
        register_semantic_folder,
        paths={"image_root": "{released}/images", "label_root": "{released}/labels"},
        settings={"table": "mapillary_vistas_65", "ignore_label": 65},
        **_VISTAS,
    ),
    Layout(
        "mapillary_vistas_panoptic_{split}",
        register_coco_panoptic,
        paths={
            "image_root": "{released}/images",
            "panoptic_root": "{released}/panoptic",
            "panoptic_json": "{released}/panoptic/panoptic_2018.json",
            "semantic_root": "{released}/labels",
        },
        settings={
            "table": "mapillary_vistas_65",
            "ignore_label": 65,
            "evaluator_type": "mapillary_vistas_panoptic_seg",
        },
        **_VISTAS,
    ),
    Layout(
        "vspw_{split}",
        register_vspw,
        "VSPW_480p",
        "prepare_vspw.py",
        paths={"root": ""},
        settings={"table": "vspw_124", "split": "{split}"},
    ),
    *(
        Layout(f"{year}_{{split}}", folder=year, settings={"table": year}, **_YOUTUBE_VIS)
        for year in ("ytvis_2019", "ytvis_2021")
    ),
    Layout(
        "ovis_{split}",
        folder="ovis",
        script="prepare_ovis.py",
        paths={
            "image_root": ("{released}/JPEGImages", "{released}"),
            "instances_json": "{released}.json",
        },
        settings={"table": "ovis_25"},
        **_TRACKS,
    ),
)


class Prepared(AnnotationSource, Replaceable):
    """Loads the records of an official dataset, or says what is missing.

    Attributes:
        arguments: it is registered with.
        needs: files and folders without which there is nothing to load.
        advice: what to do if they are missing.
        source: makes the records.
    """

    def __init__(self, source: AnnotationSource, arguments: dict, needs: list[Path], advice: str):
        super().__init__(source.name, source.load, source.title)
        self.arguments = arguments
        self.needs = needs
        self.advice = advice
        self.source = source

    def check(self) -> None:
        """Raise a MissingFileError unless all of `needs` is there; fast."""
        missing = [str(path) for path in self.needs if not path.exists()]
        if missing:
            raise MissingFileError(
                f"dataset {self.name!r} lacks {', '.join(missing)}: {self.advice}"
            )

    def read(self) -> tuple[list[dict], Findings]:
        """Also finds files missing that records name.

        Raises:
            MissingFileError: the dataset is not there or not prepared.
            UserError: annotations that cannot be read at all.
        """
        self.check()
        try:
            records, findings = self.source.read()
        except UserError as error:
            raise type(error)(f"{error}; {self.advice}") from error
        listed = [record[key] for record in records for key in _FILES if key in record]
        findings.errors += missing_files(listed)
        return records, findings

    def __call__(self) -> list[dict]:
        """The records, all files of which exist.

        Raises:
            MissingFileError: the dataset is not there or not prepared.
            UserError: some of its files are missing, or annotations are unsound.
        """
        records, findings = self.read()
        try:
            findings.raise_errors(f"dataset {self.name!r} is incomplete: ")
        except UserError as error:
            raise UserError(f"{error}; {self.advice}") from error
        findings.log_problems(self.name)
        return records


def register_official(root: Path) -> list[str]:
    """Register all datasets of `LAYOUTS` below `root`, whether or not they are there.

    Detectron2's own entries are replaced, a user's entry of the same name stays.

    Returns:
        The names registered.
    """
    names = []
    for layout in LAYOUTS:
        for split, released in layout.splits.items():
            name = layout.names.format(split=split)
            if not _is_free(name):
                logger.debug("%s is registered by the user: left as it is", name)
                continue
            _register(name, layout, root, {"split": split, "released": released})
            names.append(name)
    return names


def check_prepared(name: str) -> None:
    """Raise a MissingFileError if `name` is an official dataset that is not there; fast."""
    load = DatasetCatalog.data.get(name)
    if isinstance(load, Prepared):
        load.check()


def readiness(root: Path) -> dict[str, tuple[list[str], str]]:
    """Which official datasets below `root` can be used, of those that have a folder there.

    Returns:
        Names with {split} in them -> splits that are there, script of datasets/ for the others.
    """
    register_official(root)
    found = {}
    for layout in LAYOUTS:
        ready = [split for split in layout.splits if _is_there(layout.names.format(split=split))]
        if ready or (layout.folder and (root / layout.folder).is_dir()):
            found[layout.names] = ready, layout.script
    return found


def _is_there(name: str) -> bool:
    try:
        check_prepared(name)
    except MissingFileError:
        return False
    return True


def _register(name: str, layout: Layout, root: Path, words: dict[str, str]) -> None:
    base = root / layout.folder
    paths = {k: _places(base, place, words) for k, place in layout.paths.items()}
    paths = {k: p for k, p in paths.items() if k not in layout.optional or p[0].exists()}
    settings = {
        k: v.format(**words) if isinstance(v, str) else v for k, v in layout.settings.items()
    }
    several = {k for k, place in layout.paths.items() if isinstance(place, list)}
    arguments = {k: [*map(str, p)] if k in several else str(p[0]) for k, p in paths.items()}
    arguments |= settings
    known = DatasetCatalog.data.get(name)
    if isinstance(known, Prepared) and known.arguments == arguments:
        return
    if known is not None:
        logger.debug("%s replaces the entry %s", layout.register.__name__, name)
        forget(name)
    layout.register(name, **arguments)
    advice = (
        f"put the release below $DETECTRON2_DATASETS ({root}) as datasets/README.md says and run "
        f"python datasets/{layout.script}"
    )
    needs = [place for places in paths.values() for place in places]
    DatasetCatalog[name] = Prepared(DatasetCatalog.pop(name), arguments, needs, advice)


def _places(base: Path, place: str | tuple[str, ...] | list[str], words: dict) -> list[Path]:
    """All folders of a list, else the one that exists, or the first."""
    if isinstance(place, str):
        return [base / place.format(**words)]
    found = [base / one.format(**words) for one in place]
    if isinstance(place, list):
        return found
    return [next((path for path in found if path.exists()), found[0])]


def _is_free(name: str) -> bool:
    """Whether nothing has this name but an entry of ours or of Detectron2's own."""
    load = DatasetCatalog.data.get(name)
    if load is None or isinstance(load, Prepared):
        return True
    metadata = MetadataCatalog.get(name)
    images = metadata.get("image_root") or metadata.get("image_dir") or ""
    # A user may have called Detectron2's functions too, but for other folders.
    by_detectron2 = load.__module__.startswith(builtin.__package__)
    return by_detectron2 and Path(images).is_relative_to(builtin._root)
