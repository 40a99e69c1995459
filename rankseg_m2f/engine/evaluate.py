"""Evaluation of a model on every test dataset of a config."""

import json
import logging
import math
from collections import OrderedDict
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import distributed, nn

from rankseg_m2f.data.loader import build_test_loader, is_video, load_records
from rankseg_m2f.engine.multi_scale import MultiScaleModel
from rankseg_m2f.engine.windows import WindowedModel
from rankseg_m2f.evaluation.build import build_evaluator
from rankseg_m2f.evaluation.ground_truth import GroundTruth
from rankseg_m2f.evaluation.semantic import SemanticEvaluator
from rankseg_m2f.files import replacing
from rankseg_m2f.modeling.mask_former import MaskFormer

logger = logging.getLogger(__name__)


def evaluate(cfg: CfgNode, model: nn.Module, multi_scale: bool = False) -> OrderedDict:
    """Metrics on DATASETS.TEST, logged and written to OUTPUT_DIR/inference/NAME/results.json.

    Args:
        multi_scale: also over the scales and flips of TEST.AUG, under "sem_seg_TTA".

    Returns:
        By task, or by dataset and task if there are several datasets; on the main process.
    """
    _share_buffers(model)
    test, bare = cfg.MODEL.MASK_FORMER.TEST, getattr(model, "module", model)
    segments = isinstance(bare, MaskFormer)
    if test.WINDOW and segments:
        model = WindowedModel(bare, test.WINDOW, test.WINDOW_OVERLAP)
    results = OrderedDict()
    for name in cfg.DATASETS.TEST:
        folder = Path(cfg.OUTPUT_DIR) / "inference" / name
        found = inference_on_dataset(
            model, build_test_loader(cfg, name), build_evaluator(cfg, name, str(folder))
        )
        _publish(name, found, folder)
        if multi_scale and segments and _has_label_maps(name):
            found.update(_multi_scale(cfg, bare, name, folder))
            _publish(name, found, folder)
        if comm.is_main_process():
            results[name] = found
    return next(iter(results.values())) if len(results) == 1 else results


def _multi_scale(cfg: CfgNode, model: nn.Module, name: str, folder: Path) -> dict[str, dict]:
    found = inference_on_dataset(
        MultiScaleModel(cfg, model),
        build_test_loader(cfg, name),
        SemanticEvaluator(name, str(folder / "multi_scale")),
    )
    return {f"{task}_TTA": metrics for task, metrics in found.items()}


def _has_label_maps(name: str) -> bool:
    """Whether a dataset is of pictures that can be judged by their label maps."""
    return GroundTruth.of(name).has_maps and not is_video(load_records([name])[0])


def _publish(name: str, found: dict[str, dict], folder: Path) -> None:
    """Log the metrics and write them; what could not be measured is null in the file."""
    if not comm.is_main_process():
        return
    logger.info("Results on %s:", name)
    print_csv_format(found)
    plain = {
        task: {key: None if math.isnan(value) else value for key, value in metrics.items()}
        for task, metrics in found.items()
    }
    with replacing(folder / "results.json") as path:
        path.write_text(json.dumps(plain, indent=2, allow_nan=False), encoding="utf-8")


def _share_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of the first, whose checkpoint is the one saved.

    Batch norm's running statistics differ between processes while training.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)
