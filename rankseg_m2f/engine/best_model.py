"""The best weights kept, and training ended when they no longer improve (TEST.EARLY_STOPPING)."""

import logging
import math
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from rankseg_m2f.errors import UserError, require_one_of
from rankseg_m2f.evaluation.streaming import NamesMetrics
from rankseg_m2f.modeling.segmentor import given_results

logger = logging.getLogger(__name__)


# Not an error: Detectron2's loop logs a traceback of every Exception.
class TrainingEnded(BaseException):
    """Raised to leave Detectron2's training loop, which has no other early exit."""


class BestModel(HookBase):
    """Saves model_best.pth on each new best; its state is part of every checkpoint.

    It must stand behind the hooks that save and write.
    """

    def __init__(self, metric: str, patience: int):
        """
        Args:
            metric: key of the results, tasks and metrics joined by "/"; higher is better.
            patience: evaluations without a new best that end training; 0: none do.
        """
        self.metric = metric
        self.patience = patience
        self.best = -math.inf
        self.stale = 0

    @property
    def ended(self) -> bool:
        """Whether patience is at an end."""
        return 0 < self.patience <= self.stale

    def judge(self, results: Mapping) -> None:
        """Take in an evaluation; called in every process, with results in the main one.

        Raises:
            UserError: the metric is not among the results; what was trained is saved.
        """
        # Everywhere the same, or processes would end at different steps.
        found = comm.all_gather(flatten_results_dict(results))[0]
        if self.metric not in found:
            self._keep_training()
            # Those of single labels, as IoU-sky, may be thousands.
            known = sorted(name for name in found if "-" not in name.partition("/")[2])
            require_one_of("TEST.EARLY_STOPPING.METRIC", self.metric, known)
        value = found[self.metric]
        # NaN stands for what cannot be measured, and is never the best.
        if value > self.best:
            self.best, self.stale = value, 0
            self.trainer.checkpointer.save("model_best", iteration=self.trainer.iter)
        else:
            self.stale += 1
        logger.info(
            "%s: %.4f, the best %.4f; %d in a row below it",
            self.metric,
            value,
            self.best,
            self.stale,
        )

    def _keep_training(self) -> None:
        """Save a checkpoint that --resume goes on from, as the hook behind this one would have."""
        step = self.trainer.iter
        # Behind the last step there is model_final.pth.
        if step < self.trainer.cfg.SOLVER.MAX_ITER:
            self.trainer.checkpointer.save(f"model_{step:07d}", iteration=step)

    def before_train(self) -> None:
        """
        Raises:
            TrainingEnded: the run that is resumed had ended.
        """
        if self.ended:
            logger.info("Training has ended before: no new best in %d evaluations", self.stale)
            raise TrainingEnded

    def after_step(self) -> None:
        """
        Raises:
            TrainingEnded: patience is at an end; model_final.pth is written.
        """
        if self.ended:
            logger.info("Training ends: no new best in %d evaluations", self.stale)
            self.trainer.checkpointer.save("model_final", iteration=self.trainer.iter)
            raise TrainingEnded

    def state_dict(self) -> dict:
        """What a resumed run needs."""
        return {"best": self.best, "stale": self.stale}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what `state_dict` returned."""
        self.best, self.stale = state_dict["best"], state_dict["stale"]


def check_metric(cfg: CfgNode, evaluators: Mapping[str, DatasetEvaluator]) -> None:
    """See that TEST.EARLY_STOPPING.METRIC will be measured.

    Args:
        evaluators: of each dataset, by its name.

    Raises:
        UserError: none of them gives it; names those they give.
    """
    wanted, known = cfg.TEST.EARLY_STOPPING.METRIC, []
    scores_labels = cfg.MODEL.RANKSEG.FLAG or not given_results(cfg)
    for name, whole in evaluators.items():
        parts = whole._evaluators if isinstance(whole, DatasetEvaluators) else [whole]
        for evaluator in parts:
            if not isinstance(evaluator, NamesMetrics):
                return  # of someone else, whose metrics are not known
            if evaluator.task == "labels" and not scores_labels:
                continue
            # Datasets are told apart where there are several.
            start = f"{name}/{evaluator.task}" if len(evaluators) > 1 else evaluator.task
            known += [f"{start}/{metric}" for metric in evaluator.metrics]
            if wanted.startswith(f"{start}/") and "-" in wanted.removeprefix(f"{start}/"):
                return  # of a single label; the first evaluation knows
    require_one_of("TEST.EARLY_STOPPING.METRIC", wanted, known)


def build_best_model(cfg: CfgNode) -> BestModel | None:
    """By TEST.EARLY_STOPPING; None without a metric.

    Raises:
        UserError: keys that do not fit each other.
    """
    node = cfg.TEST.EARLY_STOPPING
    if not node.METRIC:
        if node.PATIENCE:
            raise UserError("TEST.EARLY_STOPPING.PATIENCE needs a METRIC, such as labels/mAP")
        return None
    if not cfg.DATASETS.TEST or (node.PATIENCE and cfg.TEST.EVAL_PERIOD < 1):
        raise UserError(
            f"TEST.EARLY_STOPPING.METRIC={node.METRIC!r} is never measured: set DATASETS.TEST and "
            "TEST.EVAL_PERIOD"
        )
    return BestModel(node.METRIC, node.PATIENCE)
