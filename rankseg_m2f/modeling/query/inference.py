"""From query predictions to semantic, panoptic and instance results; pure functions.

Shapes: Q queries, K labels, κ selected labels (K without RankSeg), M results;
H, W padded input size, h, w size before padding, height, width output size.
"""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from rankseg_m2f.modeling.results import crop_and_resize, resize
from rankseg_m2f.structures.clip import Sizes


def semantic_scores(class_scores: Tensor, mask_logits: Tensor) -> Tensor:
    """Score of each label at each pixel.

    Args:
        class_scores: (Q, κ) probabilities without no-object.
        mask_logits: (Q, H, W).

    Returns:
        (κ, H, W).
    """
    return torch.einsum("qk,qhw->khw", class_scores, mask_logits.sigmoid())


def panoptic(
    class_scores: Tensor,
    label_ids: Tensor,
    mask_logits: Tensor,
    thing_ids: set[int],
    object_threshold: float,
    overlap_threshold: float,
    whole_segments: bool = False,
) -> tuple[Tensor, list[dict]]:
    """Each pixel to the query that claims it most; weak and mostly hidden segments are dropped.

    Args:
        class_scores: (Q, κ + 1) probabilities, no-object last.
        label_ids: (κ,) label id of each column.
        mask_logits: (Q, height, width).
        thing_ids: labels whose segments stay apart; those of a stuff label are merged.
        object_threshold: a query's best label needs more probability.
        overlap_threshold: visible share of its mask that a segment needs.
        whole_segments: a segment is all that its query won (MaskFormer), not only where its mask is
            0.5 or more (Mask2Former).

    Returns:
        (height, width) int32 segment ids, 0 for none; and per segment its `id`, `isthing`,
        `category_id` (contiguous).
    """
    scores, column = class_scores.max(-1)
    keep = (column < len(label_ids)) & (scores > object_threshold)
    segmentation = torch.zeros(mask_logits.shape[-2:], dtype=torch.int32, device=scores.device)
    if not keep.any():
        return segmentation, []
    scores, labels = scores[keep], label_ids[column[keep]].tolist()
    masks = mask_logits[keep].sigmoid()
    inside = masks >= 0.5
    winner = (scores[:, None, None] * masks).argmax(0)
    visible = winner == torch.arange(len(labels), device=winner.device)[:, None, None]
    kept = visible if whole_segments else visible & inside
    # All areas in one transfer.
    areas = torch.stack([mask.sum((1, 2)) for mask in (visible, inside, kept)])
    segments: list[dict] = []
    stuff: dict[int, int] = {}
    for i, (won, whole, left) in enumerate(areas.T.tolist()):
        if not whole or not left or won / whole < overlap_threshold:
            continue
        segment = stuff.get(labels[i])
        if segment is None:
            segment = len(segments) + 1
            is_thing = labels[i] in thing_ids
            segments.append({"id": segment, "isthing": is_thing, "category_id": labels[i]})
            if not is_thing:
                stuff[labels[i]] = segment
        segmentation[kept[i]] = segment
    return segmentation, segments


def best_pairs(
    class_scores: Tensor, label_ids: Tensor, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The (query, label) pairs of the highest scores, best first; none of score 0.

    Labels that `LabelHints` rule out have score 0 and so are never among them.

    Args:
        class_scores: (Q, κ) probabilities without no-object.
        label_ids: (κ,) label id of each column.
        limit: pairs to take, all of them if there are fewer.

    Returns:
        (M,) scores, queries and label ids.
    """
    flat = class_scores.flatten()
    scores, best = flat.topk(min(limit, len(flat)))
    possible = scores > 0
    scores, best = scores[possible], best[possible]
    return scores, best // len(label_ids), label_ids[best % len(label_ids)]


def instances(
    class_scores: Tensor,
    label_ids: Tensor,
    mask_logits: Tensor,
    limit: int,
    thing_ids: set[int] | None = None,
) -> Instances:
    """The best (query, label) pairs, see `best_pairs`.

    Args:
        class_scores: (Q, κ) probabilities without no-object.
        label_ids: (κ,) label id of each column.
        mask_logits: (Q, height, width).
        limit: pairs to take, before things are picked.
        thing_ids: keep only these labels; None keeps all.

    Returns:
        Instances with pred_masks (M, height, width) bool, pred_boxes, scores, pred_classes.
    """
    scores, query, labels = best_pairs(class_scores, label_ids, limit)
    if thing_ids is not None:
        keep = torch.isin(labels, labels.new_tensor(sorted(thing_ids)))
        scores, labels, query = scores[keep], labels[keep], query[keep]
    logits = mask_logits[query]
    masks = logits > 0
    area = masks.sum((1, 2))
    mask_scores = (logits.sigmoid() * masks).sum((1, 2)) / (area + 1e-6)
    result = Instances(tuple(mask_logits.shape[-2:]))
    result.pred_masks = masks
    result.pred_boxes = Boxes(mask_boxes(masks))
    result.scores = scores * mask_scores
    result.pred_classes = labels
    return result


def video_instances(
    class_scores: Tensor,
    label_ids: Tensor,
    mask_logits: Tensor,
    sizes: Sizes,
    limit: int,
) -> dict:
    """The best (query, label) pairs of a clip, see `best_pairs`, as the official code gives them.

    Only masks that are returned are brought to full size, frame by frame.

    Args:
        class_scores: (Q, κ) probabilities without no-object.
        label_ids: (κ,) label id of each column.
        mask_logits: (Q, T, H/4, W/4).
        limit: pairs to take.

    Returns:
        `image_size`, `pred_scores` (M floats, best first), `pred_labels` (M ids), `pred_masks`
        (M tensors (T, height, width) bool on the CPU).
    """
    scores, query, labels = best_pairs(class_scores, label_ids, limit)
    chosen = mask_logits[query]
    frames = [
        crop_and_resize(resize(frame.float(), sizes.padded), sizes.resized, sizes.output) > 0
        for frame in chosen.unbind(1)
    ]
    masks = torch.stack([frame.cpu() for frame in frames], dim=1)
    return {
        "image_size": sizes.output,
        "pred_scores": scores.tolist(),
        "pred_labels": labels.tolist(),
        "pred_masks": list(masks),
    }


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes (x0, y0, x1, y1) around (M, h, w) bool masks: (M, 4) float; zeros for empty masks."""
    sides = []
    for axis in (1, 2):
        # Columns, then rows, that hold a pixel: the first one, and one past the last.
        filled = masks.any(axis).int()
        first = filled.argmax(1)
        last = filled.shape[1] - filled.flip(1).argmax(1)
        sides.append(torch.stack([first, last * filled.any(1)], dim=1))
    return torch.stack(sides, dim=2).flatten(1).float()
