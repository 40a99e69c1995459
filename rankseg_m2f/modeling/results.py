"""Which results a model is asked for, and what the results of all families share.

Shapes: C maps, K labels, κ selected labels; H, W padded input size, h, w size before padding,
height, width output size.
"""

import logging
from dataclasses import dataclass

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from rankseg_m2f.rankseg.policy import CandidateLabels

logger = logging.getLogger(__name__)
# Kind of result -> its key under MODEL.MASK_FORMER.TEST.
RESULTS = {"semantic": "SEMANTIC_ON", "panoptic": "PANOPTIC_ON", "instance": "INSTANCE_ON"}


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
    # Semantic scores of all K labels even when κ < K, and of whole clips.
    full_sem_seg: bool
    # See `inference.panoptic`; the query decoder decides it.
    whole_segments: bool = False


def build_inference_options(cfg: CfgNode) -> InferenceOptions:
    """What MODEL.MASK_FORMER.TEST asks for."""
    test, rankseg = cfg.MODEL.MASK_FORMER.TEST, cfg.MODEL.RANKSEG
    return InferenceOptions(
        semantic=test.SEMANTIC_ON,
        panoptic=test.PANOPTIC_ON,
        instance=test.INSTANCE_ON,
        object_threshold=test.OBJECT_MASK_THRESHOLD,
        overlap_threshold=test.OVERLAP_THRESHOLD,
        # As the official models of images and of RankSeg each decide it.
        masks_first=(
            test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE
            or test.PANOPTIC_ON
            or test.INSTANCE_ON
            or rankseg.FLAG
            or rankseg.USE_GT
        ),
        max_instances=cfg.TEST.DETECTIONS_PER_IMAGE,
        max_tracks=test.DETECTIONS_PER_VIDEO,
        thing_ids=_thing_ids(cfg),
        full_sem_seg=rankseg.FULL_SEM_SEG,
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


def label_results(presence_logits: Tensor, candidates: CandidateLabels) -> dict[str, Tensor]:
    """What is known of one clip's labels, from its (K,) presence logits."""
    return {
        "label_scores": presence_logits.float().sigmoid(),
        "label_ranking": candidates.ranking,
    }


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (C, h, w) float maps."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if not len(maps):  # which interpolation refuses
        return maps.new_empty(0, *size)
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def crop_and_resize(maps: Tensor, size: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    """Cut the padding off (C, H, W) maps, then resize (C, h, w) to (C, height, width)."""
    return resize(maps[:, : size[0], : size[1]], output_size)
