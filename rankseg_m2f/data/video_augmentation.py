"""Augmentation of clips: transforms drawn once, on the first frame, that suit every frame.

A transform must therefore hold no pixels of the frame it was drawn on, and draw nothing later.
"""

import random
from collections.abc import Callable
from functools import partial

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from rankseg_m2f.data.augmentation import ResizeShortestEdge, colour_jitter, crop, flip
from rankseg_m2f.errors import UserError


def clip_augmentation(
    cfg: CfgNode, ignore_label: int, constrain_area: bool
) -> list[T.Augmentation]:
    """Crop, resize the short side, flip, then INPUT.AUGMENTATIONS: the YouTube-VIS recipe.

    Everything is drawn once per clip, with or without "by_clip" in the config's names.

    Args:
        constrain_area: see `data.augmentation.crop`; looks at the first frame alone.

    Raises:
        UserError: an unknown name in INPUT.AUGMENTATIONS.
    """
    node = cfg.INPUT
    unknown = sorted(set(node.AUGMENTATIONS) - set(OPTIONS))
    if unknown:
        raise UserError(f"INPUT.AUGMENTATIONS: {unknown[0]!r} must be one of {', '.join(OPTIONS)}")
    sampling = node.MIN_SIZE_TRAIN_SAMPLING.removesuffix("_by_clip")
    return [
        *crop(cfg, ignore_label, constrain_area),
        ResizeShortestEdge(node.MIN_SIZE_TRAIN, node.MAX_SIZE_TRAIN, sampling),
        *flip(cfg),
        *(make(node.FORMAT) for name, make in OPTIONS.items() if name in node.AUGMENTATIONS),
        *map(DrawnOnce, colour_jitter(cfg)),
    ]


class RandomSaturation(T.Augmentation):
    """Blends each frame with its own grey; Detectron2's would use the first frame's grey."""

    def __init__(self, low: float, high: float, image_format: str):
        """
        Args:
            low, high: bounds of the weight of colour; 1 leaves the image as it is.
            image_format: "RGB" or "BGR".
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The same weight for every frame."""
        weight = np.random.uniform(self.low, self.high)
        return T.ColorTransform(partial(_saturate, weight=weight, image_format=self.image_format))


class RandomRotation(T.RandomRotation):
    """Rotation whose new corners are padding in label maps; Detectron2's would be label 0."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The same angle and centre for every frame."""
        rotation = super().get_transform(image)
        return rotation if isinstance(rotation, T.NoOpTransform) else _Rotation(rotation)


class DrawnOnce(T.Augmentation):
    """Makes colour transforms that draw while they are applied draw the same for every frame."""

    def __init__(self, augmentation: T.Augmentation):
        """
        Args:
            augmentation: it changes colours alone and draws from the module `random`.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The same draw for every frame."""
        return T.ColorTransform(
            partial(_seeded, augmentation=self.augmentation, seed=random.getrandbits(64))
        )


class _Rotation(T.Transform):
    def __init__(self, rotation: T.RotationTransform):
        super().__init__()
        self.rotation = rotation

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return self.rotation.apply_image(image)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return self.rotation.apply_coords(coords)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        moved = self.rotation.apply_segmentation(np.ascontiguousarray(segmentation))
        inside = self.rotation.apply_segmentation(np.ones(segmentation.shape[:2], np.uint8))
        moved[inside == 0] = 255
        return moved


# Names of INPUT.AUGMENTATIONS -> what makes them; strengths are the official ones.
OPTIONS: dict[str, Callable[[str], T.Augmentation]] = {
    "brightness": lambda image_format: T.RandomBrightness(0.9, 1.1),
    "contrast": lambda image_format: T.RandomContrast(0.9, 1.1),
    "saturation": lambda image_format: RandomSaturation(0.9, 1.1, image_format),
    "rotation": lambda image_format: RandomRotation(
        [-15, 15], expand=False, center=[(0.4, 0.4), (0.6, 0.6)]
    ),
}


def _saturate(image: np.ndarray, weight: float, image_format: str) -> np.ndarray:
    luma = np.asarray([0.299, 0.587, 0.114], dtype=np.float32)
    grey = image @ (luma if image_format == "RGB" else luma[::-1])
    mixed = weight * image.astype(np.float32) + (1 - weight) * grey[:, :, None]
    return mixed.clip(0, 255).astype(np.uint8)


def _seeded(image: np.ndarray, augmentation: T.Augmentation, seed: int) -> np.ndarray:
    before = random.getstate()
    random.seed(seed)
    try:
        sample = T.AugInput(image)
        augmentation(sample)
        return sample.image
    finally:
        random.setstate(before)
