"""Augmentation recipes of the official mappers, built from Detectron2's transforms."""

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

# INPUT.DATASET_MAPPER_NAME of classifiers: images become squares and need no masks.
MULTI_LABEL = "multi_label"


class _AtLeastOnePixel:
    """Resizes no side to nothing, as rounding would that of a photo of 1 x 4000."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """As the augmentation draws it, with sides of at least a pixel."""
        resize = super().get_transform(image)
        if isinstance(resize, T.NoOpTransform) or min(resize.new_h, resize.new_w) > 0:
            return resize
        new = max(1, resize.new_h), max(1, resize.new_w)
        return T.ResizeTransform(resize.h, resize.w, *new, resize.interp)


class ResizeShortestEdge(_AtLeastOnePixel, T.ResizeShortestEdge):
    """Detectron2's, for photos however thin."""


class ResizeScale(_AtLeastOnePixel, T.ResizeScale):
    """Detectron2's, for photos however thin."""


class RandomCrop(T.RandomCrop):
    """Detectron2's, for photos however thin."""

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a crop, at least a pixel each."""
        height, width = super().get_crop_size(image_size)
        return max(1, height), max(1, width)


def resize_and_crop(cfg: CfgNode, ignore_label: int, constrain_area: bool) -> list[T.Augmentation]:
    """Resize the short side, crop, colour jitter, flip: the ADE20K recipe.

    Args:
        constrain_area: see `crop`.
    """
    node = cfg.INPUT
    resize = ResizeShortestEdge(
        node.MIN_SIZE_TRAIN, node.MAX_SIZE_TRAIN, node.MIN_SIZE_TRAIN_SAMPLING
    )
    return [
        resize,
        *crop(cfg, ignore_label, constrain_area),
        *colour_jitter(cfg),
        *flip(cfg),
    ]


def large_scale_jitter(cfg: CfgNode) -> list[T.Augmentation]:
    """Flip, scale by a factor in [MIN_SCALE, MAX_SCALE], crop or pad to IMAGE_SIZE: LSJ."""
    node = cfg.INPUT
    side = node.IMAGE_SIZE
    return [
        *flip(cfg),
        ResizeScale(node.MIN_SCALE, node.MAX_SCALE, target_height=side, target_width=side),
        T.FixedSizeCrop(crop_size=(side, side)),
    ]


def resize_for_test(cfg: CfgNode) -> list[T.Augmentation]:
    """Resize the short side; INPUT.MIN_SIZE_TEST 0 keeps the size. For classifiers a square."""
    node = cfg.INPUT
    if node.DATASET_MAPPER_NAME == MULTI_LABEL:
        return resize_to_square(cfg)
    return [ResizeShortestEdge(node.MIN_SIZE_TEST, node.MAX_SIZE_TEST, "choice")]


def resize_to_square(cfg: CfgNode) -> list[T.Augmentation]:
    """The whole image, stretched to INPUT.IMAGE_SIZE both ways."""
    return [T.Resize(cfg.INPUT.IMAGE_SIZE)]


def crop(cfg: CfgNode, ignore_label: int, constrain_area: bool) -> list[T.Augmentation]:
    """INPUT.CROP, nothing if it is not enabled.

    Args:
        constrain_area: a crop is drawn again while one label fills more than
            INPUT.CROP.SINGLE_CATEGORY_MAX_AREA of it (needs a label map).
    """
    node = cfg.INPUT.CROP
    if not node.ENABLED:
        return []
    limit = node.SINGLE_CATEGORY_MAX_AREA if constrain_area else 1.0
    if limit < 1:
        constrained = T.RandomCrop_CategoryAreaConstraint(node.TYPE, node.SIZE, limit, ignore_label)
        constrained.crop_aug = RandomCrop(node.TYPE, node.SIZE)
        return [constrained]
    return [RandomCrop(node.TYPE, node.SIZE)]


def flip(cfg: CfgNode) -> list[T.Augmentation]:
    """INPUT.RANDOM_FLIP; video's "flip_by_clip" is horizontal."""
    direction = cfg.INPUT.RANDOM_FLIP
    if direction == "none":
        return []
    return [
        T.RandomFlip(
            horizontal=direction in ("horizontal", "flip_by_clip"), vertical=direction == "vertical"
        )
    ]


def colour_jitter(cfg: CfgNode) -> list[T.Augmentation]:
    """SSD's, if INPUT.COLOR_AUG_SSD."""
    if not cfg.INPUT.COLOR_AUG_SSD:
        return []
    # Lazy: it imports OpenCV.
    from detectron2.projects.point_rend import ColorAugSSDTransform

    return [T.AugmentationList([ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT)])]
