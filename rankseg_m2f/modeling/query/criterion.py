"""The set criterion: class, mask and dice losses of matched queries, for every decoder layer.

Shapes: B clips, T frames, Q queries, K labels, κ selected labels, N objects, M matched pairs of
the batch, P places at which masks are compared.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn

from rankseg_m2f.layers.points import sample_masks, sample_points, uncertain_points
from rankseg_m2f.modeling.query.matcher import HungarianMatcher
from rankseg_m2f.structures.predictions import ClipTargets, QueryPrediction

Match = tuple[Tensor, Tensor]


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Dice loss of each row: (R, P) logits and (R, P) masks in [0, 1] to (R,)."""
    scores = logits.sigmoid()
    overlap = 2 * (scores * masks).sum(1)
    return 1 - (overlap + 1) / (scores.sum(1) + masks.sum(1) + 1)


def mask_cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean binary cross-entropy of each row: (R, P), (R, P) to (R,)."""
    return F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(1)


class SetCriterion(nn.Module, ABC):
    """Losses of all decoder layers against the ground truth.

    Where masks are compared, and by what besides dice, is a subclass's.

    Args:
        num_classes: K.
        matcher: assigns queries to objects.
        weights: factor of each of "loss_ce", "loss_mask", "loss_dice".
        no_object_weight: class weight of no-object.
        deep_supervision: also the hidden layers.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        matcher: HungarianMatcher,
        weights: dict[str, float],
        no_object_weight: float,
        deep_supervision: bool,
    ):
        super().__init__()
        self.matcher = matcher
        self.weights = weights
        self.deep_supervision = deep_supervision
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)

    def forward(
        self, layers: Sequence[QueryPrediction], targets: list[ClipTargets]
    ) -> dict[str, Tensor]:
        """Weighted losses; hidden layer i's carry the suffix ``_i``.

        Args:
            layers: predictions, last = final, with (B, Q, κ + 1) class logits.
            targets: B clips, labels in [0, κ).
        """
        if not self.deep_supervision:
            layers = layers[-1:]
        num_masks = self.num_masks(targets)
        matches = self.matcher(layers, targets)
        losses = {}
        for i, (layer, match) in enumerate(zip(layers, matches, strict=True)):
            suffix = "" if layer is layers[-1] else f"_{i}"
            mask, dice = self.mask_losses(layer, targets, match, num_masks)
            values = {
                "loss_ce": self.label_loss(layer, targets, match),
                "loss_mask": mask,
                "loss_dice": dice,
            }
            losses |= {key + suffix: loss * self.weights[key] for key, loss in values.items()}
        return losses

    def num_masks(self, targets: list[ClipTargets]) -> Tensor:
        """Objects per process, averaged over all processes, at least 1."""
        device = self.empty_weight.device
        count = torch.full((), float(sum(map(len, targets))), device=device)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(count)
        return (count / comm.get_world_size()).clamp(min=1)

    def label_loss(
        self, layer: QueryPrediction, targets: list[ClipTargets], match: list[Match]
    ) -> Tensor:
        """Cross-entropy over queries, unmatched ones being no-object (the last class)."""
        logits = layer.class_logits.float()  # (B, Q, κ + 1)
        classes = logits.shape[-1]
        expected = logits.new_full(logits.shape[:2], classes - 1, dtype=torch.int64)
        for row, target, (query, chosen) in zip(expected, targets, match, strict=True):
            row[query] = target.labels[chosen]
        # All selected labels weigh 1; the no-object weight stays last (κ + 1 of K + 1).
        weight = self.empty_weight[-classes:]
        return F.cross_entropy(logits.transpose(1, 2), expected, weight)

    def mask_losses(
        self,
        layer: QueryPrediction,
        targets: list[ClipTargets],
        match: list[Match],
        num_masks: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Mask and dice losses, summed over frames and objects."""
        logits = torch.cat(  # (M, T, h, w)
            [clip[query] for clip, (query, _) in zip(layer.mask_logits, match, strict=True)]
        )
        # (M * T, 1, h, w): each frame of an object is a mask of its own.
        logits = logits.float().flatten(0, 1).unsqueeze(1)
        if not len(logits):
            # No object in the batch: a zero that keeps the masks in the graph for DDP.
            zero = layer.mask_logits.sum() * 0.0
            return zero, zero
        values, masks = self.compared(logits, targets, match)
        return (
            self.mask_loss(values, masks).sum() / num_masks,
            dice_loss(values, masks).sum() / num_masks,
        )

    @abstractmethod
    def compared(
        self, logits: Tensor, targets: list[ClipTargets], match: list[Match]
    ) -> tuple[Tensor, Tensor]:
        """Logits and true masks in [0, 1] at the same places, (M * T, P) each.

        Args:
            logits: (M * T, 1, h, w) mask logits of the matched queries.
        """

    @abstractmethod
    def mask_loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Loss of each row: (M * T, P), (M * T, P) to (M * T,)."""


class PointCriterion(SetCriterion):
    """Mask2Former's: cross-entropy and dice at points, more of them where a mask is undecided."""

    def __init__(
        self,
        num_classes: int,
        *,
        num_points: int,
        oversample_ratio: float,
        importance_ratio: float,
        **settings,
    ):
        """
        Args:
            num_points, oversample_ratio, importance_ratio: see `uncertain_points`.
            settings: see `SetCriterion`.
        """
        super().__init__(num_classes, **settings)
        self.sampling = (num_points, oversample_ratio, importance_ratio)

    def compared(
        self, logits: Tensor, targets: list[ClipTargets], match: list[Match]
    ) -> tuple[Tensor, Tensor]:
        """See `SetCriterion.compared`; each frame of an object has its own points."""
        with torch.no_grad():
            points = self.points(logits)
            frames = targets[0].masks.shape[1]
            per_clip = points.split([len(query) * frames for query, _ in match])
            masks = torch.cat(
                [
                    sample_masks(matched_masks(target, chosen), clip_points)
                    for target, (_, chosen), clip_points in zip(
                        targets, match, per_clip, strict=True
                    )
                ]
            ).squeeze(1)
        return sample_points(logits, points).squeeze(1), masks

    def mask_loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """See `SetCriterion.mask_loss`."""
        return mask_cross_entropy(logits, masks)

    def points(self, logits: Tensor) -> Tensor:
        """(R, P, 2) points at which masks (R, 1, h, w) are compared."""
        return uncertain_points(logits, *self.sampling)


def matched_masks(target: ClipTargets, chosen: Tensor) -> Tensor:
    """(M * T, 1, H, W); no copy when every object has found a query (matches are in order)."""
    masks = target.masks if len(chosen) == len(target) else target.masks[chosen]
    return masks.flatten(0, 1).unsqueeze(1)
