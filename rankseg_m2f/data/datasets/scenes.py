"""The built-in scenes of datasets/make_scenes.py under the name of their folder."""

from pathlib import Path

from detectron2.data import MetadataCatalog

from rankseg_m2f.data.datasets.catalog import Origin, registering
from rankseg_m2f.data.datasets.register import (
    register_coco_instances,
    register_coco_panoptic,
    register_semantic_folder,
)
from rankseg_m2f.errors import UserError
from rankseg_m2f.files import read_json

SPLITS = ("train", "val")
KINDS = ("panoptic", "semantic", "instance")
# Their folders below that of all datasets: other settings lie beside the standard, as scenes_150.
SCENES = "scenes*"


def register_scenes(root: str | Path) -> list[str]:
    """Register <folder>_{panoptic,semantic,instance}_{train,val} if scenes have been made there.

    They replace scenes of these names that were registered from another folder.

    Args:
        root: folder that holds the scenes; its name begins those of the datasets.

    Returns:
        The names registered; empty when the folder has no finished scenes.

    Raises:
        ValueError: its scenes.json is broken, or one of the names is that of another dataset.
        FileNotFoundError: annotations are missing.
    """
    root = Path(root)
    # Written last, so its presence says that all the rest is there.
    finished = root / "scenes.json"
    if not finished.is_file():
        return []
    ignore_label = _ignore_label(finished)
    with registering(Origin(register_scenes.__name__)):
        for split in SPLITS:
            _register_split(root, split, ignore_label)
    return [f"{root.name}_{kind}_{split}" for split in SPLITS for kind in KINDS]


def _register_split(root: Path, split: str, ignore_label: int) -> None:
    panoptic, semantic, instance = (f"{root.name}_{kind}_{split}" for kind in KINDS)
    images, label_maps = str(root / split), str(root / f"semantic_{split}")
    instances = str(root / "annotations" / f"instances_{split}.json")
    register_coco_panoptic(
        panoptic,
        image_root=images,
        panoptic_root=str(root / f"panoptic_{split}"),
        panoptic_json=str(root / "annotations" / f"panoptic_{split}.json"),
        semantic_root=label_maps,
        instances_json=instances,
        ignore_label=ignore_label,
    )
    labels = MetadataCatalog.get(panoptic)
    register_semantic_folder(
        semantic,
        image_root=images,
        label_root=label_maps,
        classes=labels.stuff_classes,
        ignore_label=ignore_label,
        colours=labels.stuff_colors,
    )
    register_coco_instances(instance, image_root=images, instances_json=instances)


def _ignore_label(finished: Path) -> int:
    try:
        return int(read_json(finished)["ignore_label"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{finished} has no ignore_label; make the scenes again with "
            "datasets/make_scenes.py --force"
        ) from error
