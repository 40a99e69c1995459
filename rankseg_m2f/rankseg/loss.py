"""The multi-label losses of RankSeg."""

import torch.nn.functional as F
from torch import Tensor


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
    """Mean binary cross-entropy, as the COCO-Stuff recipes of Segmenter and EncNet have it.

    Arguments and result of `asymmetric_loss`.
    """
    return F.binary_cross_entropy_with_logits(presence_logits, presence.to(presence_logits.dtype))
