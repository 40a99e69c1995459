"""Reading ground-truth maps."""

import numpy as np
from PIL import Image


def read_label_map(path: str) -> np.ndarray:
    """A map of label ids.

    Returns:
        (H, W) int32.

    Raises:
        ValueError: missing, broken, or in colour.
    """
    pixels = _pixels(path)
    if pixels.ndim != 2:
        raise ValueError(f"ground truth {path} must have one channel of label ids, not a colour")
    return pixels.astype(np.int32)


def read_segment_map(path: str) -> np.ndarray:
    """A COCO panoptic PNG, whose colours are segment ids in base 256, red first.

    Returns:
        (H, W) int32.

    Raises:
        ValueError: missing, broken, or not in colour.
    """
    pixels = _pixels(path)
    if pixels.ndim != 3 or pixels.shape[2] < 3:
        raise ValueError(f"ground truth {path} must be a panoptic PNG in colour")
    return pixels[..., :3].astype(np.int32) @ np.array([1, 256, 256**2], dtype=np.int32)


def _pixels(path: str) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"ground truth {path} cannot be read ({error})") from error
