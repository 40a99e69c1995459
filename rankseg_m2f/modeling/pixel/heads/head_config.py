"""Config keys that pixel heads read alike."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from rankseg_m2f.errors import UserError


def feature_of(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
    """`feature` and `in_channels` of a head that reads one map.

    Raises:
        UserError: MODEL.SEM_SEG_HEAD.IN_FEATURES is not one map of the backbone.
    """
    names = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
    if len(names) != 1 or names[0] not in input_shape:
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES={list(names)}: "
            f"{cfg.MODEL.SEM_SEG_HEAD.NAME} reads one map of the backbone, which has "
            f"{', '.join(input_shape)}"
        )
    return {"feature": names[0], "in_channels": input_shape[names[0]].channels}


def features_of(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
    """`features` and `in_channels`, fine to coarse, of a head that reads several maps.

    Raises:
        UserError: MODEL.SEM_SEG_HEAD.IN_FEATURES names fewer than two maps, or others than the
            backbone's.
    """
    names = list(cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES)
    if len(names) < 2 or not set(names) <= input_shape.keys():
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES={names}: {cfg.MODEL.SEM_SEG_HEAD.NAME} reads "
            f"two or more maps of the backbone, which has {', '.join(input_shape)}"
        )
    if all(input_shape[name].stride for name in names):
        names.sort(key=lambda name: input_shape[name].stride)
    return {"features": names, "in_channels": [input_shape[name].channels for name in names]}


def classifier_settings(cfg: CfgNode) -> dict:
    """`channels`, `num_labels`, `norm` and `dropout` of convolutional heads."""
    node = cfg.MODEL.SEM_SEG_HEAD
    return {
        "channels": node.CONVS_DIM,
        "num_labels": node.NUM_CLASSES,
        "norm": node.NORM,
        "dropout": cfg.MODEL.PIXEL.DROPOUT,
    }


def decoder_settings(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
    """Arguments of `MaskTransformer`."""
    feature, node = feature_of(cfg, input_shape), cfg.MODEL.PIXEL.DECODER
    return {
        **feature,
        "num_labels": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        "width": node.WIDTH or feature["in_channels"],
        "depth": node.DEPTH,
        "dropout": node.DROPOUT,
        # A backbone through which label tokens went gives them beside its maps.
        "own_embeddings": "cls_emb" not in input_shape,
    }


def ranks_labels(cfg: CfgNode) -> bool:
    """Whether labels are selected and ranked."""
    return cfg.MODEL.RANKSEG.FLAG and cfg.MODEL.RANKSEG.SELECTION


def refuse_ranks(cfg: CfgNode, reason: str) -> None:
    """
    Raises:
        UserError: labels are to be ranked by a head that cannot.
    """
    if ranks_labels(cfg):
        raise UserError(
            f"MODEL.RANKSEG.FLAG is True, and the head {cfg.MODEL.SEM_SEG_HEAD.NAME} {reason}: set "
            "it False"
        )
