"""How well labels are ranked and selected; pure functions.

Shapes: N images, K labels, κ selected labels. A `weight` (..., N) int64 says how often each image
counts, as in a bootstrap's resamples; results then have its leading dimensions.
"""

import torch
from torch import Tensor


def average_precision(scores: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """Area under the precision-recall steps, along the last dimension.

    Equal scores are one threshold: the result does not depend on the order of the items.

    Args:
        scores: (..., N) float, higher means more probable.
        truth: (..., N) bool.
        weight: int64, of a shape that broadcasts with `scores`: how often each item counts.

    Returns:
        (...) float64 in [0, 1]; NaN where nothing is true.
    """
    descending, order = scores.sort(dim=-1, descending=True)
    # Items down to the last one of equal score.
    ascending = -descending.contiguous()
    last = torch.searchsorted(ascending, ascending, right=True) - 1
    if weight is None:
        weight = order.new_ones(order.shape[-1:])
    weight, by_score = torch.broadcast_tensors(weight, order)
    weight = weight.gather(-1, by_score)
    last, truth = last.expand_as(weight), truth.gather(-1, order)
    hit = weight * truth
    taken = weight.cumsum(-1).gather(-1, last).clamp(min=1)  # 0 of items that do not count
    precision = hit.cumsum(-1).gather(-1, last).double() / taken
    return (precision * hit).sum(-1) / hit.sum(-1)


def class_map(scores: Tensor, presence: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over labels of the average precision of finding their images.

    Args:
        scores: (N, K) float.
        presence: (N, K) bool. Labels of no image are left out.

    Returns:
        () float64; NaN without any label.
    """
    weight = None if weight is None else weight.unsqueeze(-2)
    return average_precision(scores.T, presence.T, weight).nanmean(-1)


def image_ap(scores: Tensor, presence: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over images of the average precision of finding their labels.

    Args:
        scores: (N, K) float.
        presence: (N, K) bool. Images without labels are left out.

    Returns:
        () float64; NaN without any label.
    """
    return _mean(average_precision(scores, presence), weight)


def recall_at(ranking: Tensor, presence: Tensor, weight: Tensor | None = None) -> Tensor:
    """Share of an image's labels that are selected, averaged over images.

    Args:
        ranking: (N, κ) int64 selected label ids, none twice, -1 where there are fewer.
        presence: (N, K) bool. Images without labels are left out.

    Returns:
        () float64; NaN without any label.
    """
    presence = presence.double()
    return _mean(_selected(presence, ranking).sum(1) / presence.sum(1), weight)


def coverage(ranking: Tensor, areas: Tensor, weight: Tensor | None = None) -> Tensor:
    """Share of all labelled pixels whose label is selected for their image.

    Args:
        ranking: (N, κ) int64 selected label ids, none twice, -1 where there are fewer.
        areas: (N, K) pixels of each label.

    Returns:
        () float64; NaN without any labelled pixel.
    """
    selected, labelled = _selected(areas, ranking).sum(1), areas.sum(1)
    if weight is not None:
        selected, labelled = selected * weight, labelled * weight
    return selected.sum(-1).double() / labelled.sum(-1)


def _selected(values: Tensor, ranking: Tensor) -> Tensor:
    """(N, κ) values of the selected labels, zero where there are fewer."""
    return values.gather(1, ranking.clamp(min=0)) * (ranking >= 0)


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of what is not NaN."""
    if weight is None:
        return values.nanmean()
    weight = weight * ~values.isnan()
    return (values.nan_to_num() * weight).sum(-1) / weight.sum(-1)
