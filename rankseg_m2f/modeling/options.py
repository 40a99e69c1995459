"""From config keys to the parts and options of `MaskFormer`."""

import logging
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from rankseg_m2f.modeling.criterion import SetCriterion
from rankseg_m2f.modeling.matcher import HungarianMatcher
from rankseg_m2f.rankseg.head import MultiLabelHead
from rankseg_m2f.rankseg.temperature import RankTemperature

logger = logging.getLogger(__name__)


@dataclass
class RankOptions:
    """How labels are ranked; see the keys of the same names under MODEL.RANKSEG.

    `temperature`: apply that of each rank to the selected logits; a sweep may leave it out.
    """

    selection: bool = False
    temperature: bool = False
    kappa: int = 0
    loss_weight: float = 0.0
    query_layer: int = 3
    keep_present: bool = False
    oracle_train: bool = False
    oracle_eval: bool = False
    oracle_aux: bool = True
    full_sem_seg: bool = False


@dataclass
class InferenceOptions:
    """Which results leave the model; see the keys of the same names under MASK_FORMER.TEST."""

    semantic: bool
    panoptic: bool
    instance: bool
    object_threshold: float
    overlap_threshold: float
    # Resize masks to the output size before semantic inference, not the scores after it.
    masks_first: bool
    max_instances: int
    thing_ids: set[int]


def build_criterion(cfg: CfgNode) -> SetCriterion:
    """The criterion and its matcher, by MODEL.MASK_FORMER."""
    node = cfg.MODEL.MASK_FORMER
    matcher = HungarianMatcher(
        node.CLASS_WEIGHT, node.MASK_WEIGHT, node.DICE_WEIGHT, node.TRAIN_NUM_POINTS
    )
    return SetCriterion(
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        matcher=matcher,
        weights={
            "loss_ce": node.CLASS_WEIGHT,
            "loss_mask": node.MASK_WEIGHT,
            "loss_dice": node.DICE_WEIGHT,
        },
        no_object_weight=node.NO_OBJECT_WEIGHT,
        deep_supervision=node.DEEP_SUPERVISION,
        num_points=node.TRAIN_NUM_POINTS,
        oversample_ratio=node.OVERSAMPLE_RATIO,
        importance_ratio=node.IMPORTANCE_SAMPLE_RATIO,
    )


def inference_options(cfg: CfgNode) -> InferenceOptions:
    """What MODEL.MASK_FORMER.TEST asks for."""
    test = cfg.MODEL.MASK_FORMER.TEST
    return InferenceOptions(
        semantic=test.SEMANTIC_ON,
        panoptic=test.PANOPTIC_ON,
        instance=test.INSTANCE_ON,
        object_threshold=test.OBJECT_MASK_THRESHOLD,
        overlap_threshold=test.OVERLAP_THRESHOLD,
        masks_first=(
            test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE or test.PANOPTIC_ON or test.INSTANCE_ON
        ),
        max_instances=cfg.TEST.DETECTIONS_PER_IMAGE,
        thing_ids=_thing_ids(cfg),
    )


def _thing_ids(cfg: CfgNode) -> set[int]:
    """Contiguous ids of the countable labels, from the first dataset that knows them."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        if "thing_dataset_id_to_contiguous_id" in metadata.as_dict():
            return set(metadata.thing_dataset_id_to_contiguous_id.values())
    if cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON:
        logger.warning(
            "No dataset of DATASETS.TRAIN %s or DATASETS.TEST %s says which labels are things: "
            "panoptic results will treat all as stuff. Is the dataset registered?",
            tuple(cfg.DATASETS.TRAIN),
            tuple(cfg.DATASETS.TEST),
        )
    return set()


def rankseg_parts(cfg: CfgNode) -> dict:
    """`rank_options`, and `ml_head` and `ml_norm`, None where MODEL.RANKSEG does without.

    Raises:
        ValueError: keys that do not fit each other, such as TOPK 0 with a selection.
    """
    node = cfg.MODEL.RANKSEG
    num_labels = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    options = RankOptions(
        selection=node.FLAG and node.SELECTION,
        temperature=node.FLAG and node.SELECTION,
        kappa=min(node.TOPK, num_labels),
        loss_weight=node.LOSS_WEIGHT,
        query_layer=node.QUERY_LAYER,
        keep_present=node.KEEP_PRESENT,
        oracle_train=node.USE_GT,
        oracle_eval=node.USE_GT or node.USE_GT_EVAL,
        oracle_aux=node.USE_GT_AUX,
        full_sem_seg=node.FULL_SEM_SEG,
    )
    parts = {"rank_options": options, "ml_head": None, "ml_norm": None}
    if not node.FLAG:
        return parts
    predictions = cfg.MODEL.MASK_FORMER.DEC_LAYERS
    if not 0 <= node.QUERY_LAYER < predictions:
        raise ValueError(
            f"MODEL.RANKSEG.QUERY_LAYER={node.QUERY_LAYER} needs a decoder of that many layers; "
            f"MODEL.MASK_FORMER.DEC_LAYERS={predictions} makes {predictions - 1}"
        )
    width = cfg.MODEL.MASK_FORMER.HIDDEN_DIM
    parts["ml_head"] = MultiLabelHead(
        num_labels,
        width,
        hidden_dim=node.HIDDEN_DIM,
        dropout=node.DROPOUT,
        shared_channels=width if node.SHARE_EMBEDDING else None,
    )
    cosine = cfg.MODEL.SEM_SEG_HEAD.USE_LAYERNORM
    if cosine and not (node.SELECTION and node.TEMPERATURE == "layernorm"):
        _warn_of_flat_scores(node)
    if node.SELECTION:
        if options.kappa < 1:
            raise ValueError(
                f"MODEL.RANKSEG.TOPK={node.TOPK}: selection needs at least one of {num_labels} "
                f"labels; {num_labels} is a pure sort"
            )
        ranks = options.kappa + 1  # no-object has the last one
        parts["ml_norm"] = RankTemperature(ranks, node.TEMPERATURE, node.TEMPERATURE_INIT)
    return parts


def _warn_of_flat_scores(node: CfgNode) -> None:
    """Cosines lie in [-1, 1]: unscaled, no label's score exceeds e² times another's."""
    if not node.SELECTION:
        advice = "SELECTION False leaves no temperature to scale them: use USE_LAYERNORM False"
    elif node.TEMPERATURE_INIT < 5:
        advice = f"TEMPERATURE_INIT={node.TEMPERATURE_INIT} is a slow start: try 10 or more"
    else:
        return
    logger.warning("The cosine classifier's logits lie in [-1, 1]; MODEL.RANKSEG.%s", advice)
