"""The losses of RankSeg: of presence, and of pixels among the labels selected."""

import torch.nn.functional as F
from torch import Tensor

MEANS = ("all", "counted")


def asymmetric_loss(
    presence_logits: Tensor,
    presence: Tensor,
    gamma_neg: float = 2.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
    eps: float = 1e-5,
) -> Tensor:
    """Asymmetric loss (Ridnik et al., ICCV 2021) with RankSeg's constants.

    Easy negatives are shifted by `clip` and focused by `gamma_neg`, since of K labels only a few
    are present.

    Args:
        presence_logits: (B, K) float.
        presence: (B, K) bool or {0, 1}, labels truly present.

    Returns:
        Scalar, the sum over labels and clips divided by B and by K.
    """
    positive = presence.to(presence_logits.dtype)
    score = presence_logits.sigmoid()
    absent_score = (1 - score + clip).clamp(max=1)
    log_likelihood = positive * score.clamp(min=eps).log()
    log_likelihood = log_likelihood + (1 - positive) * absent_score.clamp(min=eps).log()
    confidence = score * positive + absent_score * (1 - positive)
    gamma = gamma_pos * positive + gamma_neg * (1 - positive)
    return -((1 - confidence) ** gamma * log_likelihood).sum() / presence_logits.numel()


def binary_loss(presence_logits: Tensor, presence: Tensor) -> Tensor:
    """Mean binary cross-entropy, as EncNet and the COCO-Stuff recipe of Segmenter ViT-B have it.

    Arguments and result of `asymmetric_loss`.
    """
    return F.binary_cross_entropy_with_logits(presence_logits, presence.to(presence_logits.dtype))


def pixel_cross_entropy(logits: Tensor, labels: Tensor, mean: str = "all") -> Tensor:
    """Cross-entropy of pixels, at the size of the label map.

    Args:
        logits: (N, κ, h, w) of ranks or labels; upsampled bilinearly where they are smaller.
        labels: (N, H, W) int64 in [0, κ), -1 where ignored or not selected.
        mean: "all" pixels, ignored ones counting as 0, as the official code of pixel segmentors
            has it: the loss shrinks with the share of pixels whose label is not selected.
            "counted": those not ignored alone.

    Returns:
        Scalar; 0 where all pixels are ignored.

    Raises:
        ValueError: another `mean`.
    """
    if mean not in MEANS:
        raise ValueError(f"mean={mean!r} must be one of {', '.join(MEANS)}")
    logits = logits.float()
    if logits.shape[2:] != labels.shape[1:]:
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    count = labels.numel() if mean == "all" else (labels >= 0).sum().clamp(min=1)
    return loss / count
