"""ADE20K panoptic under its official names; Detectron2 itself registers ade20k_sem_seg_*."""

from pathlib import Path

from rankseg_m2f.data.datasets.register import register_coco_panoptic

# Our split -> the folder the release calls it by.
SPLITS = {"train": "training", "val": "validation"}


def register_ade20k(root: Path) -> list[str]:
    """Register ade20k_panoptic_{train,val} if their annotations have been prepared.

    Args:
        root: ADEChallengeData2016, with images/, ade20k_panoptic_{train,val}{/,.json} as
            Mask2Former's preparation writes them, and, where it exists, annotations_detectron2/.

    Returns:
        The names registered.
    """
    names = []
    for split, folder in SPLITS.items():
        annotations = root / f"ade20k_panoptic_{split}.json"
        if not annotations.is_file():
            continue
        semantic = root / "annotations_detectron2" / folder
        names.append(f"ade20k_panoptic_{split}")
        register_coco_panoptic(
            names[-1],
            image_root=str(root / "images" / folder),
            panoptic_root=str(root / f"ade20k_panoptic_{split}"),
            panoptic_json=str(annotations),
            semantic_root=str(semantic) if semantic.is_dir() else None,
        )
    return names
