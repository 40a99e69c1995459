"""From a dataset record to what the model takes: picture, labels and masks.

Shapes: N objects, K labels, h, w size after augmentation.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import Instances
from torch import Tensor

from rankseg_m2f.data.augmentation import large_scale_jitter, resize_and_crop, resize_for_test
from rankseg_m2f.data.ground_truth import (
    LabelMasks,
    any_truth,
    instance_truth,
    panoptic_truth,
    semantic_truth,
)
from rankseg_m2f.images import read_image

# Which annotation a mapper reads, and whether it augments by large-scale jitter.
MAPPERS = {
    "mask_former_semantic": (semantic_truth, False),
    "mask_former_panoptic": (panoptic_truth, False),
    "mask_former_instance": (instance_truth, False),
    "coco_instance_lsj": (instance_truth, True),
    "coco_panoptic_lsj": (panoptic_truth, True),
}
_PADDING_COLOUR = 128


class ImageMapper:
    """Reads, augments and packs one picture and its ground truth."""

    def __init__(
        self,
        *,
        augmentations: Sequence[T.Augmentation],
        read_truth: Callable | None,
        image_format: str,
        num_labels: int,
        ignore_label: int = 255,
        min_side: int = -1,
    ):
        """
        Args:
            read_truth: one of `data.ground_truth`; None for pictures without ground truth.
            image_format: "RGB" or "BGR".
            min_side: pad right and bottom to at least this side.
        """
        self.augmentations = T.AugmentationList(augmentations)
        self.constrained = any(
            isinstance(a, T.RandomCrop_CategoryAreaConstraint) for a in augmentations
        )
        self.read_truth = read_truth
        self.image_format = image_format
        self.num_labels = num_labels
        self.ignore_label = ignore_label
        self.min_side = min_side

    def __call__(self, record: dict) -> dict:
        """
        Returns:
            `file_name`, `image_id`, `height`, `width` (of the file), `image` (3, h, w) uint8 and,
            with ground truth, `instances` with gt_classes (N,) int64 and gt_masks (N, h, w) bool.

        Raises:
            ImageReadError: a file is missing or broken.
            ValueError: sizes disagree or a label is out of range; the message names the file.
        """
        image = read_image(record["file_name"], self.image_format)
        height, width = image.shape[:2]
        _check_size(record["file_name"], image, (record.get("height"), record.get("width")))
        truth, label_map = None, None
        if self.read_truth is not None:
            truth = self.read_truth(record, self.ignore_label, self.num_labels)
            _check_size(record["file_name"], image, truth.size, "label map")
            if self.constrained:
                label_map = truth.label_map(self.ignore_label)
        sample = T.AugInput(image, sem_seg=label_map)
        transforms = self.augmentations(sample)
        pixels = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
        result = {
            "file_name": record["file_name"],
            "image_id": record.get("image_id"),
            "height": height,
            "width": width,
            "image": self._pad(pixels, _PADDING_COLOUR),
        }
        if truth is not None:
            shown = truth.transformed(transforms, tuple(pixels.shape[1:]))
            result["instances"] = self._instances(shown)
        return result

    def _instances(self, shown: LabelMasks) -> Instances:
        masks = self._pad(torch.from_numpy(np.ascontiguousarray(shown.masks)), 0)
        instances = Instances(tuple(masks.shape[1:]))
        instances.gt_classes = torch.tensor(shown.labels, dtype=torch.int64)
        instances.gt_masks = masks
        return instances

    def _pad(self, maps: Tensor, value: int) -> Tensor:
        height, width = maps.shape[1:]
        right, bottom = max(0, self.min_side - width), max(0, self.min_side - height)
        return F.pad(maps, (0, right, 0, bottom), value=value) if right or bottom else maps


def build_mapper(cfg: CfgNode, is_train: bool, dataset: str | None = None) -> ImageMapper:
    """The mapper that INPUT.DATASET_MAPPER_NAME names, or the one for evaluation.

    At evaluation ground truth is read for the oracle alone.

    Args:
        dataset: to be read; None: those of DATASETS.TRAIN or DATASETS.TEST.

    Raises:
        ValueError: an unknown mapper, or datasets whose ignore labels differ.
    """
    names = cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST
    ignore_label = _ignore_label(names if dataset is None else (dataset,))
    settings = {
        "image_format": cfg.INPUT.FORMAT,
        "num_labels": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        "ignore_label": ignore_label,
    }
    if not is_train:
        rankseg = cfg.MODEL.RANKSEG
        oracle = rankseg.USE_GT or rankseg.USE_GT_EVAL
        return ImageMapper(
            augmentations=resize_for_test(cfg),
            read_truth=any_truth if oracle else None,
            **settings,
        )
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in MAPPERS:
        raise ValueError(f"INPUT.DATASET_MAPPER_NAME={name!r} is none of {', '.join(MAPPERS)}")
    read_truth, jitter = MAPPERS[name]
    augmentations = (
        large_scale_jitter(cfg)
        if jitter
        else resize_and_crop(cfg, ignore_label, constrain_area=read_truth is not instance_truth)
    )
    return ImageMapper(
        augmentations=augmentations,
        read_truth=read_truth,
        min_side=cfg.INPUT.SIZE_DIVISIBILITY,
        **settings,
    )


def _ignore_label(names: Sequence[str]) -> int:
    found = {name: MetadataCatalog.get(name).get("ignore_label", 255) for name in names}
    if len(set(found.values())) > 1:
        raise ValueError(f"datasets with different ignore labels cannot be mixed: {found}")
    return next(iter(found.values()), 255)


def _check_size(path: str, image: np.ndarray, size: tuple, what: str = "dataset's record") -> None:
    if None not in size and tuple(size) != image.shape[:2]:
        raise ValueError(
            f"{path}: the picture has {image.shape[0]} x {image.shape[1]} pixels (height x width), "
            f"its {what} says {size[0]} x {size[1]}"
        )
