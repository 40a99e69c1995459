"""Evaluation of a model on every test dataset of a config."""

import json
import logging
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from rankseg_m2f.annotations.findings import read_once
from rankseg_m2f.engine.builders import Builders
from rankseg_m2f.engine.multi_scale import MultiScaleModel
from rankseg_m2f.engine.windows import WindowedModel
from rankseg_m2f.evaluation.ground_truth import GroundTruth, VideoTruth
from rankseg_m2f.evaluation.semantic import SemanticEvaluator
from rankseg_m2f.files import replacing
from rankseg_m2f.modeling.segmentor import Segmentor
from rankseg_m2f.modeling.wrappers.sliding import with_sliding

logger = logging.getLogger(__name__)


@dataclass
class EvaluationSet:
    """A dataset to evaluate on.

    Attributes:
        folder: of results.
        loader: of its records.
        evaluators: which nothing has been shown to.
        multi_scale: judges the average of several scales; None: those are not asked for, or the
            dataset has no label maps of images.
    """

    name: str
    folder: Path
    loader: DataLoader
    evaluators: DatasetEvaluator
    multi_scale: SemanticEvaluator | None


def evaluation_sets(
    cfg: CfgNode,
    builders: type[Builders] = Builders,
    evaluators: Sequence[DatasetEvaluator] | None = None,
    multi_scale: bool = False,
) -> Iterator[EvaluationSet]:
    """The datasets of DATASETS.TEST in turn; annotations are read, images are not.

    Args:
        evaluators: one for each dataset; None: those that `builders` build.
        multi_scale: also over the scales and flips of TEST.AUG.

    Raises:
        UserError: an unregistered dataset, or annotations or settings with which nothing can be
            judged.
    """
    for number, name in enumerate(cfg.DATASETS.TEST):
        folder = Path(cfg.OUTPUT_DIR) / "inference" / name
        # Annotations take seconds to parse.
        with read_once():
            loader = builders.build_test_loader(cfg, name)
            if evaluators is None:
                evaluator = builders.build_evaluator(cfg, name, str(folder))
            else:
                evaluator = evaluators[number]
            views = _multi_scale_evaluator(name, folder) if multi_scale else None
        yield EvaluationSet(name, folder, loader, evaluator, views)


def _multi_scale_evaluator(name: str, folder: Path) -> SemanticEvaluator | None:
    truth = GroundTruth.from_dataset(name)
    if isinstance(truth, VideoTruth) or not truth.has_maps:
        return None
    return SemanticEvaluator(name, str(folder / "multi_scale"), truth)


def evaluate(
    cfg: CfgNode, model: nn.Module, tests: Iterable[EvaluationSet] | None = None
) -> OrderedDict:
    """Metrics on DATASETS.TEST, logged and written to OUTPUT_DIR/inference/NAME/results.json.

    Args:
        tests: what `evaluation_sets` gives; None: by its defaults.

    Returns:
        By task, or by dataset and task if there are several datasets; on the main process. The
        average of several scales is under "sem_seg_TTA".
    """
    _share_buffers(model)
    test = cfg.MODEL.MASK_FORMER.TEST
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    segments = isinstance(bare, Segmentor) and bool(bare.gives)
    if cfg.TEST.SLIDING.ENABLED:
        model = bare = with_sliding(cfg, bare)
    if test.WINDOW and segments:
        model = WindowedModel(bare, test.WINDOW, test.WINDOW_OVERLAP)
    results = OrderedDict()
    for part in tests or evaluation_sets(cfg):
        found = inference_on_dataset(model, part.loader, part.evaluators)
        _publish(part.name, found, part.folder)
        if segments and part.multi_scale is not None:
            views = MultiScaleModel(cfg, bare)
            again = inference_on_dataset(views, part.loader, part.multi_scale)
            found.update({f"{task}_TTA": metrics for task, metrics in again.items()})
            _publish(part.name, found, part.folder)
        if comm.is_main_process():
            results[part.name] = found
    return next(iter(results.values())) if len(results) == 1 else results


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
