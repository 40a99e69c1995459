"""From MODEL.RANKSEG to the policy, the multi-label head and the temperatures of any family."""

import logging
from collections.abc import Callable
from functools import partial

from detectron2.config import CfgNode
from torch import Tensor

from rankseg_m2f.errors import UserError
from rankseg_m2f.rankseg.head import LabelHead, build_label_head
from rankseg_m2f.rankseg.loss import asymmetric_loss, binary_loss
from rankseg_m2f.rankseg.policy import RankPolicy
from rankseg_m2f.rankseg.temperature import RankTemperature

logger = logging.getLogger(__name__)


def build_policy(cfg: CfgNode, **changes: object) -> RankPolicy:
    """The policy that MODEL.RANKSEG describes.

    Args:
        changes: attributes of the policy that the keys do not decide.

    Raises:
        UserError: a value out of its range, or TOPK 0 with a selection.
    """
    node = cfg.MODEL.RANKSEG
    settings = {
        "kappa": node.TOPK,
        "kappa_eval": node.TOPK_EVAL,
        "train_selection": node.TRAIN_SELECTION,
        "schedule": tuple(node.TRAIN_SCHEDULE),
        "min_score": node.EVAL_MIN_SCORE,
        "mass": node.EVAL_MASS,
        "selection": node.FLAG and node.SELECTION,
        "oracle_train": node.USE_GT,
        "oracle_eval": node.USE_GT_EVAL and not node.USE_GT,
    }
    try:
        return RankPolicy(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, **settings | changes)
    except ValueError as error:
        raise UserError(f"MODEL.RANKSEG.{error}") from error


def build_head(cfg: CfgNode, in_channels: int, shared_channels: int | None = None) -> LabelHead:
    """The multi-label head that MODEL.RANKSEG describes.

    Args:
        in_channels: of the tokens it reads.
        shared_channels: of the label embeddings it is handed; None: it learns its own.

    Raises:
        UserError: an unknown form.
    """
    node = cfg.MODEL.RANKSEG
    try:
        return build_label_head(
            node.HEAD,
            cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            in_channels,
            hidden_dim=node.HIDDEN_DIM,
            dropout=node.DROPOUT,
            shared_channels=shared_channels,
        )
    except ValueError as error:
        raise UserError(f"MODEL.RANKSEG.{error}") from error


def build_label_criterion(cfg: CfgNode) -> Callable[[Tensor, Tensor], Tensor]:
    """The multi-label loss that MODEL.RANKSEG.LABEL_LOSS names.

    Raises:
        UserError: an unknown name.
    """
    node = cfg.MODEL.RANKSEG
    losses = {
        "asymmetric": partial(asymmetric_loss, gamma_neg=node.GAMMA_NEG),
        "binary": binary_loss,
    }
    if node.LABEL_LOSS not in losses:
        raise UserError(
            f"MODEL.RANKSEG.LABEL_LOSS={node.LABEL_LOSS!r} must be one of {', '.join(losses)}"
        )
    return losses[node.LABEL_LOSS]


def build_rank_parts(
    cfg: CfgNode, *, void: bool, in_channels: int | None, shared_channels: int | None = None
) -> dict:
    """Arguments of `Segmentor` that MODEL.RANKSEG decides, and the modules.

    Args:
        void: whether no-object has the last rank.
        in_channels: of the tokens that the multi-label head reads; None: the family has a head of
            its own.
        shared_channels: of the segmentor's label embeddings, shared with SHARE_EMBEDDING; None:
            it has none.

    Returns:
        `policy`, `label_loss_weight`, `label_criterion`, `given_scores`, and `ml_head` and
        `ml_norm`, each None where the model does without.

    Raises:
        UserError: keys that do not fit each other.
    """
    node = cfg.MODEL.RANKSEG
    policy = build_policy(cfg)
    given_scores = len(node.SCORES) > 0
    parts = {
        "policy": policy,
        "label_loss_weight": node.LOSS_WEIGHT,
        "label_criterion": build_label_criterion(cfg),
        "given_scores": given_scores,
        "ml_head": None,
        "ml_norm": None,
    }
    if not node.FLAG:
        if given_scores:
            raise UserError("MODEL.RANKSEG.SCORES rank nothing while MODEL.RANKSEG.FLAG is False")
        return parts
    _check_training(node, policy, given_scores)
    if not given_scores and in_channels is not None:
        shared = _shared_channels(cfg, shared_channels) if node.SHARE_EMBEDDING else None
        parts["ml_head"] = build_head(cfg, in_channels, shared)
    if policy.selection:
        try:
            parts["ml_norm"] = RankTemperature(
                policy.ranks + void, node.TEMPERATURE, node.TEMPERATURE_INIT, void=void
            )
        except ValueError as error:
            raise UserError(f"MODEL.RANKSEG.{error}") from error
    return parts


def _shared_channels(cfg: CfgNode, channels: int | None) -> int:
    if channels is None:
        raise UserError(
            "MODEL.RANKSEG.SHARE_EMBEDDING is True, and MODEL.SEM_SEG_HEAD.NAME="
            f"{cfg.MODEL.SEM_SEG_HEAD.NAME!r} has no label embeddings: set it False"
        )
    return channels


def _check_training(node: CfgNode, policy: RankPolicy, given_scores: bool) -> None:
    """Refuse a loss that cannot be, and name settings with which labels learn nothing."""
    if node.LOSS_WEIGHT < 0:
        raise UserError(f"MODEL.RANKSEG.LOSS_WEIGHT={node.LOSS_WEIGHT} must not be negative")
    if given_scores:
        return
    if node.LOSS_WEIGHT == 0:
        logger.warning(
            "MODEL.RANKSEG.LOSS_WEIGHT is 0: while training, the multi-label head learns nothing "
            "and labels are ranked at random; the official recipes have 10"
        )
    starves = policy.train_selection == "official" and policy.kappa < policy.num_labels
    if policy.selection and starves:
        logger.warning(
            "MODEL.RANKSEG.TOPK=%d of %d labels with TRAIN_SELECTION official: while training, "
            "labels that an untrained head ranks lower have no loss; see schedule",
            policy.kappa,
            policy.num_labels,
        )
