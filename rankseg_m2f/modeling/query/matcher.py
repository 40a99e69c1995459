"""Hungarian matching of queries and objects.

Shapes: B clips, T frames, Q queries, N objects, P places at which masks are compared.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rankseg_m2f.layers.points import sample_masks, sample_points
from rankseg_m2f.structures.predictions import ClipTargets, QueryPrediction

# What an undefined cost becomes, so that a diverging run ends in its loss and not in scipy.
_HUGE = 1e8


def dice_costs(logits: Tensor, masks: Tensor) -> Tensor:
    """(Q, N) dice of every query against every object; see `cross_entropy_costs`."""
    scores = logits.sigmoid()
    area = scores.sum(1, keepdim=True) + masks.sum(1)
    return 1 - (2 * (scores @ masks.T) + 1) / (area + 1)


def cross_entropy_costs(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean binary cross-entropy of every query against every object.

    Args:
        logits: (Q, P) mask logits at P places.
        masks: (N, P) masks in [0, 1] at the same places.

    Returns:
        (Q, N).
    """
    overlap = logits @ masks.T
    return (F.softplus(logits).sum(1, keepdim=True) - overlap) / logits.shape[1]


class HungarianMatcher(ABC):
    """Assigns each object the query that serves it cheapest, one query an object.

    Where masks are compared, and by what besides dice, is a subclass's.

    Args:
        class_weight, mask_weight, dice_weight: of the three costs.
    """

    def __init__(self, class_weight: float, mask_weight: float, dice_weight: float):
        if not (class_weight or mask_weight or dice_weight):
            raise ValueError("all matching costs have weight 0")
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight

    def __call__(
        self, layers: list[QueryPrediction], targets: list[ClipTargets]
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """Match every layer's prediction.

        Returns:
            Per layer, per clip: int64 tensors (query (M,), object (M,)) with M = min(Q, N), in
            object order.
        """
        costs = [
            self.cost(layer, clip, target)
            for layer in layers
            for clip, target in enumerate(targets)
        ]
        # One transfer there and one back for all layers and clips: each one stops the GPU.
        flat = torch.cat([cost.flatten() for cost in costs]).cpu()
        tables = [
            part.view(cost.shape)
            for part, cost in zip(flat.split([c.numel() for c in costs]), costs, strict=True)
        ]
        device = layers[0].class_logits.device
        assignments = [_assign(table) for table in tables]
        sizes = [len(query) for query, _ in assignments]
        joined = torch.from_numpy(np.concatenate([np.stack(pair) for pair in assignments], axis=1))
        queries, objects = joined.to(device)
        pairs = list(zip(queries.split(sizes), objects.split(sizes), strict=True))
        return [pairs[i : i + len(targets)] for i in range(0, len(pairs), len(targets))]

    @torch.no_grad()
    def cost(self, layer: QueryPrediction, clip: int, target: ClipTargets) -> Tensor:
        """(Q, N) float32 cost of clip number `clip`."""
        with torch.autocast(layer.class_logits.device.type, enabled=False):
            scores = layer.class_logits[clip].float().softmax(-1)  # (Q, κ + 1)
            class_cost = -scores[:, target.labels]  # (Q, N)
            mask_logits = layer.mask_logits[clip].float()
            mask_cost, dice = self.mask_costs(*self.compared(mask_logits, target.masks))
            cost = (
                self.mask_weight * mask_cost
                + self.class_weight * class_cost
                + self.dice_weight * dice
            )
        return cost.nan_to_num(_HUGE, _HUGE, -_HUGE)

    @abstractmethod
    def compared(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (Q, P) and true masks (N, P) at the same places.

        Args:
            logits: (Q, T, h, w) float32.
            masks: (N, T, H, W) bool.
        """

    @abstractmethod
    def mask_costs(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The mask cost and dice, (Q, N) each, of what `compared` gave."""


class PointMatcher(HungarianMatcher):
    """Compares masks at random points."""

    def __init__(
        self, class_weight: float, mask_weight: float, dice_weight: float, num_points: int
    ):
        """
        Args:
            class_weight, mask_weight, dice_weight: of the three costs.
            num_points: points that stand for a frame of a mask.
        """
        super().__init__(class_weight, mask_weight, dice_weight)
        self.num_points = num_points

    def compared(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """See `HungarianMatcher.compared`."""
        # The same points for all masks, so that costs can be compared.
        points = self.points(logits.device)
        return sample_points(logits, points).flatten(1), sample_masks(masks, points).flatten(1)

    def mask_costs(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """See `HungarianMatcher.mask_costs`."""
        return cross_entropy_costs(logits, masks), dice_costs(logits, masks)

    def points(self, device: torch.device) -> Tensor:
        """(1, P, 2) random points in [0, 1]."""
        return torch.rand(1, self.num_points, 2, device=device)


def _assign(cost: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Query and object of each pair, (M,) int64 each."""
    # scipy sorts by row, so rows are objects.
    target, query = linear_sum_assignment(cost.T.numpy())
    return query, target
