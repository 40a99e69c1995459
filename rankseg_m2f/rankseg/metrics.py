"""How well labels are ranked and selected; pure functions.

Shapes: N images, K labels, κ selected labels.
"""

import torch
from torch import Tensor


def average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """Area under the precision-recall steps, along the last dimension.

    Equal scores are one threshold: the result does not depend on the order of the items.

    Args:
        scores: (..., N) float, higher means more probable.
        truth: (..., N) bool.

    Returns:
        (...) float64 in [0, 1]; NaN where nothing is true.
    """
    descending, order = scores.sort(dim=-1, descending=True)
    hit = truth.gather(-1, order)
    # Items down to the last one of equal score.
    ascending = -descending.contiguous()
    taken = torch.searchsorted(ascending, ascending, right=True)
    precision = hit.cumsum(-1).gather(-1, taken - 1).double() / taken
    return (precision * hit).sum(-1) / hit.sum(-1)


def class_map(scores: Tensor, presence: Tensor) -> Tensor:
    """Mean over labels of the average precision of finding their images.

    Args:
        scores: (N, K) float.
        presence: (N, K) bool. Labels of no image are left out.

    Returns:
        () float64; NaN without any label.
    """
    return average_precision(scores.T, presence.T).nanmean()


def image_ap(scores: Tensor, presence: Tensor) -> Tensor:
    """Mean over images of the average precision of finding their labels.

    Args:
        scores: (N, K) float.
        presence: (N, K) bool. Images without labels are left out.

    Returns:
        () float64; NaN without any label.
    """
    return average_precision(scores, presence).nanmean()


def recall_at(ranking: Tensor, presence: Tensor) -> Tensor:
    """Share of an image's labels that are selected, averaged over images.

    Args:
        ranking: (N, κ) int64 selected label ids, none twice, -1 where there are fewer.
        presence: (N, K) bool. Images without labels are left out.

    Returns:
        () float64; NaN without any label.
    """
    presence = presence.double()
    return (_selected(presence, ranking).sum(1) / presence.sum(1)).nanmean()


def coverage(ranking: Tensor, areas: Tensor) -> Tensor:
    """Share of all labelled pixels whose label is selected for their image.

    Args:
        ranking: (N, κ) int64 selected label ids, none twice, -1 where there are fewer.
        areas: (N, K) pixels of each label.

    Returns:
        () float64; NaN without any labelled pixel.
    """
    areas = areas.double()
    return _selected(areas, ranking).sum() / areas.sum()


def _selected(values: Tensor, ranking: Tensor) -> Tensor:
    """(N, κ) values of the selected labels, zero where there are fewer."""
    return values.gather(1, ranking.clamp(min=0)) * (ranking >= 0)
