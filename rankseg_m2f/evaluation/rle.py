"""Masks as COCO run lengths."""

import numpy as np
from pycocotools import mask as coco_mask


def encode(mask: np.ndarray) -> dict | None:
    """Run lengths of an (h, w) bool mask, with text counts as json needs them; None if empty."""
    if not mask.any():
        return None
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode()}
