"""MaskFormer's losses and matching: focal and dice over all pixels of whole masks.

Shapes: T frames, Q queries, N objects, M matched pairs of the batch, P pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rankseg_m2f.modeling.query.criterion import Match, SetCriterion, matched_masks
from rankseg_m2f.modeling.query.matcher import HungarianMatcher, dice_costs
from rankseg_m2f.structures.predictions import ClipTargets

# Weight of pixels inside masks, and the power by which well-decided pixels count less.
_ALPHA = 0.25
_GAMMA = 2


def focal_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean focal loss of each row (Lin et al. 2017, Eq. 5): (R, P), (R, P) to (R,)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    scores = logits.sigmoid()
    wrong = 1 - (scores * masks + (1 - scores) * (1 - masks))
    weight = _ALPHA * masks + (1 - _ALPHA) * (1 - masks)
    return (weight * wrong**_GAMMA * cross_entropy).mean(1)


def focal_costs(logits: Tensor, masks: Tensor) -> Tensor:
    """Focal loss of every query against every object.

    Args:
        logits: (Q, P) mask logits.
        masks: (N, P) masks, 0 or 1.

    Returns:
        (Q, N).
    """
    scores = logits.sigmoid()
    inside = _ALPHA * (1 - scores) ** _GAMMA * F.softplus(-logits)
    outside = (1 - _ALPHA) * scores**_GAMMA * F.softplus(logits)
    return (inside @ masks.T + outside @ (1 - masks).T) / logits.shape[1]


class FocalMatcher(HungarianMatcher):
    """Compares masks at the size at which they are predicted."""

    def compared(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """See `HungarianMatcher.compared`; true masks shrink to the nearest pixel."""
        size = logits.shape[-2:]
        if not len(masks):  # which interpolation refuses
            return logits.flatten(1), logits.new_zeros(0, logits[0].numel())
        shrunk = F.interpolate(masks.to(torch.uint8), size, mode="nearest")  # (N, T, h, w)
        return logits.flatten(1), shrunk.flatten(1).float()

    def mask_costs(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """See `HungarianMatcher.mask_costs`."""
        return focal_costs(logits, masks), dice_costs(logits, masks)


class FocalCriterion(SetCriterion):
    """Compares masks at the size of the input."""

    def compared(
        self, logits: Tensor, targets: list[ClipTargets], match: list[Match]
    ) -> tuple[Tensor, Tensor]:
        """See `SetCriterion.compared`; P = H * W."""
        pairs = zip(targets, match, strict=True)
        masks = torch.cat([matched_masks(target, chosen) for target, (_, chosen) in pairs])
        size = masks.shape[-2:]
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits.flatten(1), masks.flatten(1).float()

    def mask_loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """See `SetCriterion.mask_loss`."""
        return focal_loss(logits, masks)
