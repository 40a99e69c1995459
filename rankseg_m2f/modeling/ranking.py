"""RankSeg between the decoder's layers and the criterion or the results.

Shapes: B clips, Q queries, N objects, K labels, κ selected labels.
"""

from dataclasses import replace

import torch
from torch import Tensor

from rankseg_m2f.rankseg.labels import ABSENT_LOGIT, RankedLabels
from rankseg_m2f.rankseg.selection import SelectedLabels
from rankseg_m2f.structures.predictions import ClipTargets, QueryPrediction


def mask_absent(layer: QueryPrediction, presence: Tensor) -> QueryPrediction:
    """The layer in which labels absent from the ground truth, `presence` (B, K), cannot win."""
    absent = torch.cat([~presence, presence.new_zeros(len(presence), 1)], dim=1).unsqueeze(1)
    return replace(layer, class_logits=layer.class_logits.masked_fill(absent, ABSENT_LOGIT))


def ranked_targets(targets: list[ClipTargets], ranked: RankedLabels) -> list[ClipTargets]:
    """Targets with ranks for labels; objects whose label was not selected are left out."""
    seen = []
    for i, target in enumerate(targets):
        rank = ranked[i].rank_of(target.labels[None], missing=-1)[0]
        target = replace(target, labels=rank)
        # With κ = K nothing can be left out: no copy of the masks, no wait for the GPU.
        if ranked.kappa < ranked.num_labels:
            target = target[(rank >= 0).nonzero().squeeze(1)]
        seen.append(target)
    return seen


def label_results(presence_logits: Tensor, selected: SelectedLabels) -> dict[str, Tensor]:
    """What is known of one clip's labels, from its (K,) presence logits."""
    return {"label_scores": presence_logits.float().sigmoid(), "label_ranking": selected.ranking}
