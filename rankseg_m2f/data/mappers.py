"""From a dataset record to what the model takes: image, labels and masks.

Shapes: T frames, N objects, K labels, h, w size after augmentation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import Instances
from fvcore.common.registry import Registry
from torch import Tensor

from rankseg_m2f.data.augmentation import (
    MULTI_LABEL,
    large_scale_jitter,
    resize_and_crop,
    resize_for_test,
)
from rankseg_m2f.data.label_augmentation import label_augmentation
from rankseg_m2f.data.targets import (
    LabelList,
    LabelMasks,
    ObjectList,
    SegmentMap,
    any_targets,
    instance_targets,
    label_targets,
    panoptic_targets,
    semantic_targets,
    void_label,
)
from rankseg_m2f.errors import UserError
from rankseg_m2f.images import AnnotationError, read_image
from rankseg_m2f.label_scores import LabelScores, image_roots

# Which annotation a mapper reads, whether it augments by large-scale jitter, and whether what is
# unseen then stays a target with INPUT.KEEP_UNSEEN_OBJECTS. MULTI_LABEL, for classifiers, is apart.
MAPPERS = {
    "mask_former_semantic": (semantic_targets, False, False),
    "mask_former_panoptic": (panoptic_targets, False, True),
    "mask_former_instance": (instance_targets, False, True),
    "coco_instance_lsj": (instance_targets, True, False),
    "coco_panoptic_lsj": (panoptic_targets, True, True),
}
_PADDING_COLOUR = 128

MAPPER_REGISTRY = Registry("MAPPER")
MAPPER_REGISTRY.__doc__ = """Training mappers of other projects, by INPUT.DATASET_MAPPER_NAME.

Each is called with (cfg, True), as Detectron2's, and gives what turns a record into an input.
"""


@dataclass
class Clip:
    """Frames of one video, or one image, as the model takes them.

    Attributes:
        size: (height, width) of the files.
        frames: T (3, h, w) uint8.
        truths: T, of (h, w); None without ground truth.
    """

    size: tuple[int, int]
    frames: list[Tensor]
    truths: list[LabelMasks] | None


class ClipReader:
    """Reads frames and their ground truth and augments them alike."""

    def __init__(
        self,
        *,
        augmentations: Sequence[T.Augmentation],
        read_truth: Callable | None,
        image_format: str,
        num_labels: int,
        ignore_label: int = 255,
        min_side: int = -1,
        keep_unseen: bool = False,
        label_scores: LabelScores | None = None,
    ):
        """
        Args:
            ignore_label: value of unlabelled pixels in the files of label maps.
            read_truth: one of `data.targets`; None for images without ground truth.
            image_format: "RGB" or "BGR".
            min_side: pad right and bottom to at least this side.
            keep_unseen: objects that augmentation moved out of the image stay, with empty masks.
            label_scores: handed to the model with each record; None: it scores labels itself.
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
        self.keep_unseen = keep_unseen
        self.label_scores = label_scores

    def read(self, records: Sequence[dict]) -> Clip:
        """
        Args:
            records: of images, one per frame; transforms are drawn on the first.

        Raises:
            ImageReadError: a file is missing or broken.
            AnnotationError: sizes disagree or a label is out of range; the message names the file.
        """
        transforms, size = None, (None, None)
        frames, truths = [], []
        for record in records:
            path = record["file_name"]
            image = read_image(path, self.image_format)
            _check_size(path, image, size, "video's first frame")
            _check_size(path, image, (record.get("height"), record.get("width")))
            size = image.shape[:2]
            truth = self._truth(record, image)
            if transforms is None:
                transforms, image = self._draw(image, truth)
            else:
                image = transforms.apply_image(image)
            if truth is not None:
                shown = truth.transformed(transforms, image.shape[:2], self.keep_unseen)
                truths.append(self._pad_truth(shown))
            pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
            frames.append(self._pad(pixels, _PADDING_COLOUR))
        return Clip(size, frames, None if self.read_truth is None else truths)

    def scores_of(self, record: dict) -> dict[str, Tensor]:
        """`label_scores` (K,) float32 of an image or of a whole video, where files have them.

        Raises:
            UserError: they lack this record.
        """
        if self.label_scores is None:
            return {}
        return {"label_scores": torch.from_numpy(self.label_scores.for_record(record))}

    def _truth(self, record: dict, image: np.ndarray) -> SegmentMap | ObjectList | LabelList | None:
        if self.read_truth is None:
            return None
        truth = self.read_truth(record, self.ignore_label, self.num_labels)
        if isinstance(truth, SegmentMap):
            _check_size(record["file_name"], image, truth.size, f"label map {truth.path}")
        return truth

    def _draw(
        self, image: np.ndarray, truth: SegmentMap | ObjectList | LabelList | None
    ) -> tuple[T.TransformList, np.ndarray]:
        """Transforms and the image after them."""
        constrained = self.constrained and truth is not None
        label_map = truth.label_map(void_label(self.num_labels)) if constrained else None
        sample = T.AugInput(image, sem_seg=label_map)
        return self.augmentations(sample), sample.image

    def _pad_truth(self, shown: LabelMasks) -> LabelMasks:
        masks = self._pad(torch.from_numpy(np.ascontiguousarray(shown.masks)), 0)
        return replace(shown, masks=masks.numpy())

    def _pad(self, maps: Tensor, value: int) -> Tensor:
        height, width = maps.shape[1:]
        right, bottom = max(0, self.min_side - width), max(0, self.min_side - height)
        return F.pad(maps, (0, right, 0, bottom), value=value) if right or bottom else maps


class ImageMapper(ClipReader):
    """Reads, augments and packs one image and its ground truth."""

    def __call__(self, record: dict) -> dict:
        """
        Returns:
            `file_name`, `image_id`, `height`, `width` (of the file), `image` (3, h, w) uint8 and,
            with ground truth, `instances` with gt_classes (N,) int64 and gt_masks (N, h, w) bool
            (of no pixel for classifiers); also what `scores_of` gives.

        Raises:
            ImageReadError: a file is missing or broken.
            AnnotationError: sizes disagree or a label is out of range; the message names the file.
            UserError: scores are missing.
        """
        clip = self.read([record])
        result = {
            "file_name": record["file_name"],
            "image_id": record.get("image_id"),
            "height": clip.size[0],
            "width": clip.size[1],
            "image": clip.frames[0],
            **self.scores_of(record),
        }
        if clip.truths is not None:
            result["instances"] = as_instances(clip.truths[0])
        return result


def as_instances(shown: LabelMasks) -> Instances:
    """gt_classes (N,) int64 and gt_masks (N, h, w) bool."""
    instances = Instances(tuple(shown.masks.shape[1:]))
    instances.gt_classes = torch.tensor(shown.labels, dtype=torch.int64)
    instances.gt_masks = torch.from_numpy(shown.masks)
    return instances


def build_mapper(cfg: CfgNode, is_train: bool, dataset: str | None = None) -> ImageMapper:
    """The mapper that INPUT.DATASET_MAPPER_NAME names, or the one for evaluation.

    At evaluation ground truth is read for the oracle alone.

    Args:
        dataset: to be read; None: those of DATASETS.TRAIN or DATASETS.TEST.

    Raises:
        UserError: an unknown mapper, or datasets whose ignore labels differ.
    """
    if not is_train:
        return ImageMapper(**evaluation_settings(cfg, dataset))
    settings = reader_settings(cfg, cfg.DATASETS.TRAIN if dataset is None else (dataset,))
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name == MULTI_LABEL:
        return ImageMapper(**label_settings(cfg), **settings)
    if name not in MAPPERS:
        known = ", ".join((*MAPPERS, MULTI_LABEL))
        raise UserError(f"INPUT.DATASET_MAPPER_NAME={name!r} must be one of {known}")
    read_truth, jitter, keeps_unseen = MAPPERS[name]
    augmentations = (
        large_scale_jitter(cfg)
        if jitter
        else resize_and_crop(
            cfg,
            void_label(settings["num_labels"]),
            constrain_area=read_truth is not instance_targets,
        )
    )
    return ImageMapper(
        augmentations=augmentations,
        read_truth=read_truth,
        min_side=cfg.INPUT.SIZE_DIVISIBILITY,
        keep_unseen=keeps_unseen and cfg.INPUT.KEEP_UNSEEN_OBJECTS,
        **settings,
    )


def label_settings(cfg: CfgNode) -> dict:
    """Arguments of `ClipReader` that make training data of a classifier."""
    return {"augmentations": label_augmentation(cfg), "read_truth": label_targets}


def reader_settings(cfg: CfgNode, names: Sequence[str]) -> dict:
    """Arguments of `ClipReader` that training and evaluation share.

    Args:
        names: datasets to be read.

    Raises:
        MissingFileError: a file of MODEL.RANKSEG.SCORES does not exist.
        UserError: their ignore labels differ, or files of scores do not fit.
    """
    return {
        "image_format": cfg.INPUT.FORMAT,
        "num_labels": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        "ignore_label": _ignore_label(names),
        "label_scores": _label_scores(cfg, names),
    }


def evaluation_settings(cfg: CfgNode, dataset: str | None = None) -> dict:
    """Arguments of `ClipReader` at evaluation: resized, with ground truth for the oracle alone.

    Args:
        dataset: to be read; None: those of DATASETS.TEST.

    Raises:
        UserError: datasets whose ignore labels differ.
    """
    rankseg = cfg.MODEL.RANKSEG
    oracle = rankseg.USE_GT or rankseg.USE_GT_EVAL
    return {
        **reader_settings(cfg, cfg.DATASETS.TEST if dataset is None else (dataset,)),
        "augmentations": resize_for_test(cfg),
        "read_truth": any_targets if oracle else None,
    }


def _label_scores(cfg: CfgNode, names: Sequence[str]) -> LabelScores | None:
    files = cfg.MODEL.RANKSEG.SCORES
    if not files:
        return None
    datasets = [MetadataCatalog.get(name) for name in names]
    labels = next((m.label_names for m in datasets if m.get("label_names")), None)
    roots = [root for m in datasets for root in image_roots(m)]
    return LabelScores(files, roots, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, labels)


def _ignore_label(names: Sequence[str]) -> int:
    found = {name: MetadataCatalog.get(name).get("ignore_label", 255) for name in names}
    if len(set(found.values())) > 1:
        raise UserError(f"datasets with different ignore labels cannot be mixed: {found}")
    return next(iter(found.values()), 255)


def _check_size(path: str, image: np.ndarray, size: tuple, what: str = "dataset's record") -> None:
    if None not in size and tuple(size) != image.shape[:2]:
        raise AnnotationError(
            f"{path}: the image has {image.shape[0]} x {image.shape[1]} pixels (height x width), "
            f"its {what} says {size[0]} x {size[1]}; tools/check_dataset.py lists all such files"
        )
