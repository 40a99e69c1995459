"""Between images, tokens and maps of plain vision transformers.

Shapes: N frames, C channels, h, w patches of the grid.
"""

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(images: Tensor, side: int) -> Tensor:
    """Zeros on the right and at the bottom, until sides are multiples of `side`."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % side, 0, -height % side))


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (N, h * w, C), rows of the grid one after the other, to a map (N, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid).contiguous()


def without_padding(
    features: dict[str, Tensor], strides: dict[str, int], size: tuple[int, int]
) -> dict[str, Tensor]:
    """Maps of a padded image cut to what covers the image of `size` (height, width)."""
    height, width = size
    return {
        name: x[..., : -(-height // strides[name]), : -(-width // strides[name])]
        for name, x in features.items()
    }
