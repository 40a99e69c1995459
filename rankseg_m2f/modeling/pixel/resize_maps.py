"""The one way in which maps change their size inside pixel heads."""

import torch.nn.functional as F
from torch import Tensor


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (N, C, h, w) at another size (H, W), bilinearly; pixels are areas, not points."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
