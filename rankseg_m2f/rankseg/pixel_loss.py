"""The cross-entropy of pixels.

Shapes: N frames, K labels or κ ranks; h, w of the logits, H, W of the label maps.
"""

import torch.nn.functional as F
from torch import Tensor


def pixel_cross_entropy(logits: Tensor, target: Tensor, over_all_pixels: bool = True) -> Tensor:
    """Mean cross-entropy of logits upsampled to the label maps.

    Args:
        logits: (N, K, h, w) float.
        target: (N, H, W) int64 in [0, K), -1 where ignored.
        over_all_pixels: the mean is over ignored pixels, too, whose loss is 0, as in MMSegmentation
            when the paper was written: what RankSeg does not select scales the loss down. False:
            over the pixels that count.

    Returns:
        Scalar; 0 where no pixel counts.
    """
    logits = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(logits.float(), target, ignore_index=-1, reduction="sum")
    return loss / (target.numel() if over_all_pixels else (target >= 0).sum().clamp(min=1))
