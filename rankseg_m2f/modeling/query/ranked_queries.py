"""Query predictions and targets in the order of ranks (Eqs. 2 and 3).

Shapes: B clips, Q queries, N objects, K labels, κ selected labels.
"""

from dataclasses import replace

import torch
from torch import Tensor

from rankseg_m2f.rankseg.labels import ABSENT_LOGIT, RankedLabels
from rankseg_m2f.rankseg.temperature import RankTemperature
from rankseg_m2f.structures.predictions import ClipTargets, QueryPrediction


def mask_absent(layer: QueryPrediction, presence: Tensor) -> QueryPrediction:
    """The layer in which labels absent from the ground truth, `presence` (B, K), cannot win."""
    absent = torch.cat([~presence, presence.new_zeros(len(presence), 1)], dim=1).unsqueeze(1)
    return replace(layer, class_logits=layer.class_logits.masked_fill(absent, ABSENT_LOGIT))


def rank_layer(
    layer: QueryPrediction, with_void: RankedLabels, temperature: RankTemperature | None
) -> QueryPrediction:
    """The layer with logits of the selected labels and no-object, scaled by rank.

    Args:
        with_void: κ labels and no-object.
        temperature: of κ + 1 ranks; None: logits are not scaled.
    """
    logits = with_void.gather(layer.class_logits, dim=2)  # (B, Q, κ + 1)
    if temperature is not None:
        logits = temperature(logits, dim=2)
    return replace(layer, class_logits=logits)


def ranked_targets(targets: list[ClipTargets], ranked: RankedLabels) -> list[ClipTargets]:
    """Targets with ranks for labels; objects whose label was not selected are left out."""
    selected = []
    for i, target in enumerate(targets):
        rank = ranked[i].rank_of(target.labels[None], missing=-1)[0]  # (N,)
        target = replace(target, labels=rank)
        # With κ = K nothing can be left out: no copy of the masks, no wait for the GPU.
        if ranked.kappa < ranked.num_labels:
            target = target[(rank >= 0).nonzero().squeeze(1)]
        selected.append(target)
    return selected
