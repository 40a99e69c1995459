"""Augmentation that moves or hides what an image shows without masks to follow: for labels alone.

The recipe is Query2Label's: square, mirrored, RandAugment, cutout. Labels stay those of the whole
image, whatever cutout hides or RandAugment shifts out of it.
"""

from collections.abc import Callable

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from rankseg_m2f.data.augmentation import flip, resize_to_square
from rankseg_m2f.errors import UserError


class PixelsOnly(T.Transform):
    """A transform that outlines and label maps cannot follow."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray]):
        """
        Args:
            change: from (h, w, 3) uint8 to the same, drawing nothing.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """The changed image."""
        return self.change(image)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """
        Raises:
            TypeError: always.
        """
        raise TypeError("this augmentation is for labels alone: masks cannot follow it")

    apply_segmentation = apply_coords


class RandAugment(T.Augmentation):
    """Torchvision's RandAugment, drawn once for all frames of a clip."""

    def __init__(self, num_ops: int, magnitude: int):
        """
        Args:
            num_ops: operations one after another.
            magnitude: of each, in [0, 30].

        Raises:
            UserError: out of range.
        """
        if not 0 <= magnitude <= 30:
            raise UserError(f"INPUT.RAND_AUGMENT.MAGNITUDE={magnitude} is not in [0, 30]")
        from torchvision.transforms.v2 import RandAugment as Torchvisions

        super().__init__()
        self.augment = Torchvisions(num_ops, magnitude)

    def get_transform(self, image: np.ndarray) -> PixelsOnly:
        """The same operations for every frame."""
        seed = int(np.random.randint(1 << 31))

        def change(frame: np.ndarray) -> np.ndarray:
            pixels = torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))
            # It draws from torch's generator, which in training is the model's.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                return self.augment(pixels).numpy().transpose(1, 2, 0)

        return PixelsOnly(change)


class Cutout(T.Augmentation):
    """Covers a rectangle, whose centre may lie anywhere, with one colour."""

    def __init__(self, share: float):
        """
        Args:
            share: sides of the rectangle as a share of the image's, in (0, 1].

        Raises:
            UserError: out of range.
        """
        if not 0 < share <= 1:
            raise UserError(f"INPUT.CUTOUT={share} is not in [0, 1]")
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> PixelsOnly:
        """The same rectangle and colour for every frame."""
        colour = np.random.randint(256, size=3, dtype=np.uint8)
        rows, columns = (self._span(side) for side in image.shape[:2])

        def change(frame: np.ndarray) -> np.ndarray:
            frame = frame.copy()
            frame[rows, columns] = colour
            return frame

        return PixelsOnly(change)

    def _span(self, side: int) -> slice:
        length, centre = round(self.share * side), np.random.randint(side)
        start = centre - length // 2
        return slice(max(0, start), max(0, start + length))


def label_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """To a square of INPUT.IMAGE_SIZE, INPUT.RANDOM_FLIP, RAND_AUGMENT and CUTOUT.

    INPUT.CROP plays no part: a crop may lose labels.
    """
    node = cfg.INPUT
    augmentations = [*resize_to_square(cfg), *flip(cfg)]
    if node.RAND_AUGMENT.NUM_OPS:
        augmentations.append(RandAugment(node.RAND_AUGMENT.NUM_OPS, node.RAND_AUGMENT.MAGNITUDE))
    if node.CUTOUT:
        augmentations.append(Cutout(node.CUTOUT))
    return augmentations
