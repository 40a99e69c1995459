"""Which evaluators a dataset gets: a table."""

import logging
import os
from collections.abc import Collection

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from fvcore.common.registry import Registry

from rankseg_m2f.errors import UserError
from rankseg_m2f.evaluation.ground_truth import GroundTruth
from rankseg_m2f.evaluation.instance import InstanceEvaluator
from rankseg_m2f.evaluation.multi_label import MultiLabelEvaluator
from rankseg_m2f.evaluation.panoptic import PanopticEvaluator
from rankseg_m2f.evaluation.semantic import SemanticEvaluator
from rankseg_m2f.evaluation.vspw import VideoSemanticEvaluator
from rankseg_m2f.evaluation.ytvis import VideoInstanceEvaluator

logger = logging.getLogger(__name__)

# Metadata's evaluator_type -> what the dataset's annotations can judge.
EVALUATORS = {
    "sem_seg": (SemanticEvaluator,),
    "cityscapes_sem_seg": (SemanticEvaluator,),
    "coco": (InstanceEvaluator,),
    "coco_panoptic_seg": (PanopticEvaluator, SemanticEvaluator, InstanceEvaluator),
    "ade20k_panoptic_seg": (PanopticEvaluator, SemanticEvaluator, InstanceEvaluator),
    "cityscapes_panoptic_seg": (PanopticEvaluator, SemanticEvaluator, InstanceEvaluator),
    "cityscapes_instance": (InstanceEvaluator,),
    "mapillary_vistas_panoptic_seg": (PanopticEvaluator, SemanticEvaluator),
    "ytvis": (VideoInstanceEvaluator,),
    "vspw": (VideoSemanticEvaluator,),
}
# Kinds of results that they read -> keys of MODEL.MASK_FORMER.TEST that ask for those.
SWITCHES = {"panoptic": "PANOPTIC_ON", "semantic": "SEMANTIC_ON", "instance": "INSTANCE_ON"}
# Those that read a file of their own, and compare nothing.
WITHOUT_TRUTH = (VideoInstanceEvaluator,)

EVALUATOR_REGISTRY = Registry("EVALUATOR")
EVALUATOR_REGISTRY.__doc__ = """Evaluators of other projects, by a dataset's `evaluator_type`.

Each is called with (cfg, dataset_name, output_dir) and judges the dataset alone.
"""


def build_evaluator(
    cfg,
    dataset_name: str,
    output_dir: str | os.PathLike | None = None,
    truth: GroundTruth | None = None,
    gives: Collection[str] | None = None,
) -> DatasetEvaluators:
    """Evaluators of what the dataset can judge and the model gives.

    The labels of the multi-label head are always judged.

    Args:
        output_dir: where statistics per image and COCO results are written; None: nowhere.
        truth: the dataset's; None: read from Detectron2's catalog.
        gives: kinds of results of the model, of `SWITCHES`; None: those MODEL.MASK_FORMER.TEST
            switches on.

    Raises:
        UserError: the dataset's `evaluator_type` is in neither table; or TEST.DUMP_PREDICTIONS
            without a folder.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind in EVALUATOR_REGISTRY:
        judge = EVALUATOR_REGISTRY.get(kind)(cfg, dataset_name, output_dir)
        return DatasetEvaluators([judge])
    if kind not in EVALUATORS:
        raise UserError(
            f"dataset {dataset_name!r} has evaluator_type {kind!r}, which must be one of "
            f"{', '.join(EVALUATORS)}, or a name in EVALUATOR_REGISTRY; is the dataset registered "
            "(DATASETS.DEFINITIONS)?"
        )
    if gives is None:
        gives = {result for result, key in SWITCHES.items() if cfg.MODEL.MASK_FORMER.TEST[key]}
    judged = [e for e in EVALUATORS[kind] if e.reads in gives]
    if InstanceEvaluator in judged and metadata.get("json_file") is None:
        logger.warning("Dataset %s has no instances json: no AP", dataset_name)
        judged.remove(InstanceEvaluator)
    if gives and not judged:
        logger.warning(
            "Dataset %s judges nothing that MODEL.MASK_FORMER.TEST switches on; its %s would do",
            dataset_name,
            " or ".join(SWITCHES[e.reads] for e in EVALUATORS[kind]),
        )
    if InstanceEvaluator in judged and kind.startswith("cityscapes"):
        logger.warning("AP of %s is COCO's, not that of Cityscapes' benchmark", dataset_name)
    # Read once: the annotations of a large dataset take seconds to parse.
    truth = GroundTruth.from_dataset(dataset_name) if truth is None else truth
    evaluators = []
    for evaluator in (*judged, MultiLabelEvaluator):
        settings = {} if evaluator in WITHOUT_TRUTH else {"truth": truth}
        if evaluator is VideoSemanticEvaluator:
            settings["dump"] = cfg.TEST.DUMP_PREDICTIONS
        evaluators.append(evaluator(dataset_name, output_dir, **settings))
    return DatasetEvaluators(evaluators)
