"""From config keys to the parts and options of the models."""

import logging
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from rankseg_m2f.errors import UserError, require_one_of
from rankseg_m2f.modeling.criterion import SetCriterion
from rankseg_m2f.modeling.matcher import HungarianMatcher
from rankseg_m2f.rankseg.head import HEADS, LabelHead, build_label_head
from rankseg_m2f.rankseg.selection import TRAIN_SELECTIONS, training_kappa
from rankseg_m2f.rankseg.temperature import FORMS, RankTemperature

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankOptions:
    """How labels are ranked; see the keys of the same names under MODEL.RANKSEG."""

    # Labels are sorted and selected; needs a multi-label head, or scores that come with inputs.
    selection: bool
    # The logits of selected labels are scaled by rank; a sweep may leave it out.
    temperature: bool
    kappa: int
    kappa_eval: int
    min_score: float
    mass: float
    train_selection: str
    schedule: tuple[float, float]
    loss_weight: float
    query_layer: int
    # USE_GT: labels absent from the ground truth cannot win, before ranking.
    oracle_train: bool
    # USE_GT_EVAL without USE_GT: as if the caller selected the labels of the ground truth.
    oracle_eval: bool
    oracle_aux: bool
    full_sem_seg: bool
    # Presence comes with the inputs (MODEL.RANKSEG.SCORES).
    given_scores: bool

    def training_kappa(self, num_labels: int, progress: float | None) -> int:
        """κ in use once the share `progress` of training is done."""
        return training_kappa(self.train_selection, self.kappa, num_labels, progress, self.schedule)


@dataclass(frozen=True)
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
    max_tracks: int
    thing_ids: set[int]


def build_criterion(cfg: CfgNode) -> SetCriterion:
    """The criterion and its matcher, by MODEL.MASK_FORMER.

    Raises:
        UserError: all weights are 0.
    """
    node = cfg.MODEL.MASK_FORMER
    if not (node.CLASS_WEIGHT or node.MASK_WEIGHT or node.DICE_WEIGHT):
        raise UserError(
            "MODEL.MASK_FORMER: CLASS_WEIGHT, MASK_WEIGHT and DICE_WEIGHT are all 0, which leaves "
            "nothing to match queries and objects by"
        )
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


def build_inference_options(cfg: CfgNode) -> InferenceOptions:
    """What MODEL.MASK_FORMER.TEST asks for."""
    test = cfg.MODEL.MASK_FORMER.TEST
    return InferenceOptions(
        semantic=test.SEMANTIC_ON,
        panoptic=test.PANOPTIC_ON,
        instance=test.INSTANCE_ON,
        object_threshold=test.OBJECT_MASK_THRESHOLD,
        overlap_threshold=test.OVERLAP_THRESHOLD,
        masks_first=_masks_first(cfg),
        max_instances=cfg.TEST.DETECTIONS_PER_IMAGE,
        max_tracks=test.DETECTIONS_PER_VIDEO,
        thing_ids=_thing_ids(cfg),
    )


def _masks_first(cfg: CfgNode) -> bool:
    """As the official models of images, of RankSeg and of videos each decide it."""
    test, rankseg = cfg.MODEL.MASK_FORMER.TEST, cfg.MODEL.RANKSEG
    return (
        test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE
        or test.PANOPTIC_ON
        or test.INSTANCE_ON
        or rankseg.FLAG
        or rankseg.USE_GT
        or cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer"
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


def label_head(cfg: CfgNode, in_channels: int, shared_channels: int | None = None) -> LabelHead:
    """The multi-label head that MODEL.RANKSEG describes, over tokens of `in_channels`.

    Raises:
        UserError: an unknown head.
    """
    node = cfg.MODEL.RANKSEG
    require_one_of("MODEL.RANKSEG.HEAD", node.HEAD, HEADS)
    return build_label_head(
        node.HEAD,
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        in_channels,
        hidden_dim=node.HIDDEN_DIM,
        dropout=node.DROPOUT,
        shared_channels=shared_channels,
    )


def rankseg_parts(cfg: CfgNode) -> dict:
    """`rank_options`, and `ml_head` and `ml_norm`, None where MODEL.RANKSEG does without.

    Raises:
        UserError: keys that do not fit each other, such as TOPK 0 with a selection.
    """
    node = cfg.MODEL.RANKSEG
    num_labels = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    options = build_rank_options(node, num_labels)
    parts = {"rank_options": options, "ml_head": None, "ml_norm": None}
    _warn_of_flat_scores(cfg)
    if not node.FLAG:
        if options.given_scores:
            raise UserError("MODEL.RANKSEG.SCORES rank nothing while MODEL.RANKSEG.FLAG is False")
        return parts
    if node.LOSS_WEIGHT < 0:
        raise UserError(f"MODEL.RANKSEG.LOSS_WEIGHT={node.LOSS_WEIGHT} must not be negative")
    if node.LOSS_WEIGHT == 0 and not options.given_scores:
        logger.warning(
            "MODEL.RANKSEG.LOSS_WEIGHT is 0: while training, the multi-label head learns nothing "
            "and labels are ranked at random; the official recipes have 10"
        )
    predictions = cfg.MODEL.MASK_FORMER.DEC_LAYERS
    if not 0 <= node.QUERY_LAYER < predictions:
        raise UserError(
            f"MODEL.RANKSEG.QUERY_LAYER={node.QUERY_LAYER} needs a decoder of that many layers; "
            f"MODEL.MASK_FORMER.DEC_LAYERS={predictions} makes {predictions - 1}"
        )
    if not options.given_scores:
        width = cfg.MODEL.MASK_FORMER.HIDDEN_DIM
        shared_channels = width if node.SHARE_EMBEDDING else None
        parts["ml_head"] = label_head(cfg, width, shared_channels)
    if node.SELECTION:
        if options.kappa < 1:
            raise UserError(
                f"MODEL.RANKSEG.TOPK={node.TOPK}: selection needs at least one of {num_labels} "
                f"labels; {num_labels} is a pure sort"
            )
        if node.TRAIN_SELECTION == "official" and options.kappa < num_labels and not node.SCORES:
            logger.warning(
                "MODEL.RANKSEG.TOPK=%d of %d labels with TRAIN_SELECTION official: while "
                "training, labels that an untrained head ranks lower have no loss; see schedule",
                options.kappa,
                num_labels,
            )
        # κ never grows while training; no-object has the last rank.
        require_one_of("MODEL.RANKSEG.TEMPERATURE", node.TEMPERATURE, FORMS)
        ranks = options.training_kappa(num_labels, progress=0.0) + 1
        parts["ml_norm"] = RankTemperature(
            ranks, node.TEMPERATURE, node.TEMPERATURE_INIT, void=True
        )
    return parts


def build_rank_options(node: CfgNode, num_labels: int) -> RankOptions:
    """MODEL.RANKSEG as options.

    Raises:
        UserError: a value out of its range.
    """
    require_one_of("MODEL.RANKSEG.TRAIN_SELECTION", node.TRAIN_SELECTION, TRAIN_SELECTIONS)
    schedule = tuple(node.TRAIN_SCHEDULE)
    if len(schedule) != 2 or not 0 <= schedule[0] < schedule[1] <= 1:
        raise UserError(
            f"MODEL.RANKSEG.TRAIN_SCHEDULE={schedule} needs two shares of training, "
            "0 <= start < end <= 1"
        )
    if not (node.TOPK_EVAL >= 0 and 0 <= node.EVAL_MIN_SCORE <= 1 and 0 < node.EVAL_MASS <= 1):
        raise UserError(
            f"MODEL.RANKSEG: TOPK_EVAL={node.TOPK_EVAL} must be 0 or more, "
            f"EVAL_MIN_SCORE={node.EVAL_MIN_SCORE} in [0, 1], EVAL_MASS={node.EVAL_MASS} in (0, 1]"
        )
    selects = node.FLAG and node.SELECTION
    return RankOptions(
        selection=selects,
        temperature=selects,
        kappa=min(node.TOPK, num_labels),
        kappa_eval=min(node.TOPK_EVAL or node.TOPK, num_labels),
        min_score=node.EVAL_MIN_SCORE,
        mass=node.EVAL_MASS,
        train_selection=node.TRAIN_SELECTION,
        schedule=schedule,
        loss_weight=node.LOSS_WEIGHT,
        query_layer=node.QUERY_LAYER,
        oracle_train=node.USE_GT,
        oracle_eval=node.USE_GT_EVAL and not node.USE_GT,
        oracle_aux=node.USE_GT_AUX,
        full_sem_seg=node.FULL_SEM_SEG,
        given_scores=len(node.SCORES) > 0,
    )


def _warn_of_flat_scores(cfg: CfgNode) -> None:
    """Cosines lie in [-1, 1]: unscaled, no label's score exceeds e² times another's."""
    node, head = cfg.MODEL.RANKSEG, cfg.MODEL.SEM_SEG_HEAD
    selects = node.FLAG and node.SELECTION
    if not head.USE_LAYERNORM or head.COSINE_SCALE or (selects and node.TEMPERATURE == "layernorm"):
        return
    if not selects:
        advice = "nothing scales them: try MODEL.SEM_SEG_HEAD.COSINE_SCALE 10 or more"
    elif node.TEMPERATURE_INIT < 5:
        advice = f"MODEL.RANKSEG.TEMPERATURE_INIT={node.TEMPERATURE_INIT} is low: try 10 or more"
    else:
        return
    logger.warning("The cosine classifier's logits lie in [-1, 1]; %s", advice)
