"""The criterion of a config: at points as Mask2Former's, or of whole masks as MaskFormer's."""

from detectron2.config import CfgNode

from rankseg_m2f.errors import UserError, require_one_of
from rankseg_m2f.modeling.query.criterion import PointCriterion, SetCriterion
from rankseg_m2f.modeling.query.decoder_parts import STANDARD_DECODER, decoder_name
from rankseg_m2f.modeling.query.focal_criterion import FocalCriterion, FocalMatcher
from rankseg_m2f.modeling.query.matcher import PointMatcher

_MASK_LOSSES = ("points", "focal")


def build_criterion(cfg: CfgNode) -> SetCriterion:
    """The criterion and its matcher, by MODEL.MASK_FORMER.

    Raises:
        UserError: an unknown MASK_LOSS, or all weights are 0.
    """
    node = cfg.MODEL.MASK_FORMER
    weights = (node.CLASS_WEIGHT, node.MASK_WEIGHT, node.DICE_WEIGHT)
    if not any(weights):
        raise UserError(
            "MODEL.MASK_FORMER: CLASS_WEIGHT, MASK_WEIGHT and DICE_WEIGHT are all 0, which leaves "
            "nothing to match queries and objects by"
        )
    settings = {
        "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        "weights": dict(zip(("loss_ce", "loss_mask", "loss_dice"), weights, strict=True)),
        "no_object_weight": node.NO_OBJECT_WEIGHT,
        "deep_supervision": node.DEEP_SUPERVISION,
    }
    if mask_loss(cfg) == "focal":
        return FocalCriterion(matcher=FocalMatcher(*weights), **settings)
    return PointCriterion(
        matcher=PointMatcher(*weights, num_points=node.TRAIN_NUM_POINTS),
        num_points=node.TRAIN_NUM_POINTS,
        oversample_ratio=node.OVERSAMPLE_RATIO,
        importance_ratio=node.IMPORTANCE_SAMPLE_RATIO,
        **settings,
    )


def mask_loss(cfg: CfgNode) -> str:
    """MODEL.MASK_FORMER.MASK_LOSS, or what the decoder was published with.

    Raises:
        UserError: an unknown one.
    """
    named = cfg.MODEL.MASK_FORMER.MASK_LOSS
    if named:
        require_one_of("MODEL.MASK_FORMER.MASK_LOSS", named, _MASK_LOSSES)
        return named
    return "focal" if decoder_name(cfg) == STANDARD_DECODER else "points"
