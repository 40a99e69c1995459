"""What a run is made of, each part in a class method that a project of your own may override."""

import os

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluators
from detectron2.modeling import build_model
from detectron2.projects.deeplab import build_lr_scheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from rankseg_m2f.data.loader import TrainLoader, build_test_loader, build_train_loader
from rankseg_m2f.engine.optimizer import build_optimizer
from rankseg_m2f.evaluation.build import build_evaluator
from rankseg_m2f.modeling.segmentor import given_results


class Builders:
    """Names and signatures are those of Detectron2's ``DefaultTrainer``."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model of MODEL.META_ARCHITECTURE on MODEL.DEVICE, without weights."""
        return build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """SOLVER.OPTIMIZER; see `engine.optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
        """SOLVER.LR_SCHEDULER_NAME, stepped once per iteration."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """Endless batches (lists of mapped records) of DATASETS.TRAIN for this process.

        Any iterable of batches will do. A `TrainLoader` can also start anywhere, so that a resumed
        run sees the data that it would have seen.

        Args:
            cfg: SEED is the run's, that of the first start where the run was resumed.
        """
        return build_train_loader(cfg, seed=cfg.SEED)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Every record of one of DATASETS.TEST once, shared out to the processes."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | os.PathLike | None = None
    ) -> DatasetEvaluators:
        """Evaluators of one of DATASETS.TEST.

        Args:
            output_folder: where they write; None: nowhere.
        """
        return build_evaluator(cfg, dataset_name, output_folder, gives=given_results(cfg))
