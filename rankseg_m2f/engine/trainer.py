"""The training loop: Detectron2's hooks around one step of ours."""

import contextlib
import logging
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, SimpleTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.engine.defaults import default_writers
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from rankseg_m2f.data.loader import TrainLoader
from rankseg_m2f.engine.best_model import TrainingEnded, build_best_model, check_metric
from rankseg_m2f.engine.builders import Builders
from rankseg_m2f.engine.ema import WeightAverage
from rankseg_m2f.engine.evaluate import EvaluationSet, evaluate, evaluation_sets
from rankseg_m2f.engine.optimizer import load_optimizer_state, max_gradient_norm
from rankseg_m2f.errors import UserError
from rankseg_m2f.weights.checkpoint import Checkpointer
from rankseg_m2f.weights.metadata import label_names

logger = logging.getLogger(__name__)
_AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class DivergedError(UserError, FloatingPointError):
    """A loss that is not finite."""


class TrainingCheckpointer(Checkpointer):
    """Saves as the model what is evaluated: its moving average, where SOLVER.EMA_DECAY keeps one.

    So MODEL.WEIGHTS of any checkpoint is that. What a resumed run needs is the trainer's state.
    """

    def save(self, name: str, **extra: object) -> None:
        """See `Checkpointer.save`."""
        with self.checkpointables["trainer"].averaged():
            super().save(name, **extra)


class Trainer(Builders, TrainerBase):
    """Trains a config; used, and subclassed, as Detectron2's ``DefaultTrainer``.

    A step depends on (seed, iteration, process) and the restored state alone, so a run that was
    killed and resumed ends with the weights of one that was not.
    """

    def __init__(self, cfg: CfgNode, seed: int | None = None, trust_checkpoint: bool = False):
        """
        Args:
            seed: of data order, augmentation, dropout and point sampling; None: SEED, or where
                that is negative one drawn for all processes.
            trust_checkpoint: unpickle MODEL.WEIGHTS without restriction.
        """
        super().__init__()
        self.cfg = cfg
        if seed is None:
            seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.seed = seed
        self.loaded = False  # whether a checkpoint's training state was restored
        model = self.build_model(cfg)
        logger.info("Model:\n%s", model)
        self.optimizer = self.build_optimizer(cfg, model)
        self.scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        self.steps = cfg.SOLVER.ACCUMULATION_STEPS
        self.max_norm = max_gradient_norm(cfg)
        self.amp_dtype = _amp_dtype(cfg)
        # Disabled it passes everything through.
        self.scaler = torch.amp.GradScaler(
            model.device.type, enabled=self.amp_dtype is torch.float16
        )
        decay = cfg.SOLVER.EMA_DECAY
        self.average = WeightAverage(model, decay) if decay else None
        self.checkpointer = TrainingCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            trust=trust_checkpoint,
            labels=label_names(cfg),
            trainer=weakref.proxy(self),
        )
        on_gpu = model.device.type == "cuda"
        self.model = create_ddp_model(
            model, broadcast_buffers=False, device_ids=[comm.get_local_rank()] if on_gpu else None
        )
        self.best_model = build_best_model(cfg)
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Timing, schedule, checkpoints, evaluation, logs; in this order after each step.

        Early stopping needs evaluation first: a checkpoint says how evaluations went.
        """
        cfg = self.cfg
        saving, evaluation = [], []
        if comm.is_main_process():
            saving.append(
                hooks.PeriodicCheckpointer(
                    self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.MAX_ITER
                )
            )
        if cfg.DATASETS.TEST:
            evaluation.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self.evaluate))
        built = [hooks.IterationTimer(), hooks.LRScheduler()]
        built += saving + evaluation if self.best_model is None else evaluation + saving
        if comm.is_main_process():
            built.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return built if self.best_model is None else [*built, self.best_model]

    def build_writers(self) -> list[EventWriter]:
        """Terminal, metrics.json and TensorBoard events, in the main process."""
        return default_writers(self.cfg.OUTPUT_DIR, self.cfg.SOLVER.MAX_ITER)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | None = None
    ) -> OrderedDict:
        """Metrics on DATASETS.TEST; see `engine.evaluate`.

        Args:
            evaluators: one for each of DATASETS.TEST; None: those of `build_evaluator`.
        """
        tests = evaluation_sets(cfg, cls, evaluators, multi_scale=cfg.TEST.AUG.ENABLED)
        return evaluate(cfg, model, tests)

    def averaged(self) -> AbstractContextManager:
        """The model holds its moving average inside the block, if there is one."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def evaluate(self) -> OrderedDict:
        """Metrics on DATASETS.TEST; see `engine.evaluate`."""
        with self.averaged():
            results = evaluate(self.cfg, self.model, self.evaluation_sets())
        if self.best_model is not None:
            self.best_model.judge(results)
        return results

    def evaluation_sets(self) -> Iterator[EvaluationSet]:
        """DATASETS.TEST, by the builders of this class."""
        return evaluation_sets(self.cfg, type(self))

    def resume_or_load(self, resume: bool) -> None:
        """Load MODEL.WEIGHTS, or if `resume` the last checkpoint of OUTPUT_DIR if there is one."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.loaded:
            self.start_iter = self.iter + 1
        elif self.average is not None:
            self.average.restart()
        starts = comm.all_gather((self.start_iter, self.seed))
        if len(set(starts)) > 1:
            raise UserError(
                f"processes would start at different iterations or seeds {starts}: "
                f"{self.cfg.OUTPUT_DIR} must lie on storage that all machines share"
            )

    def load_data(self) -> None:
        """Open the stream of batches where `resume_or_load` left off; see that evaluation can run.

        Raises:
            UserError: see `build_train_loader` and `evaluation_sets`; or no evaluator gives the
                metric of early stopping.
        """
        # Built and left, so that a mistake is known before hours of training.
        evaluators = {test.name: test.evaluators for test in self.evaluation_sets()}
        if self.best_model is not None:
            check_metric(self.cfg, evaluators)
        # The seed of a resumed run is known only now.
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.SEED = self.seed
        cfg.freeze()
        loader = self.build_train_loader(cfg)
        if isinstance(loader, TrainLoader):
            loader.seek(self.start_iter * self.steps)
        elif self.start_iter:
            logger.warning("Data is read from the start again: the train loader cannot seek")
        self.batches = iter(loader)

    def train(self) -> None:
        """Load the data and train to SOLVER.MAX_ITER, or to an early stop.

        Raises:
            UserError: see `load_data`.
        """
        self.load_data()
        self.model.train()
        with contextlib.suppress(TrainingEnded):
            super().train(self.start_iter, self.cfg.SOLVER.MAX_ITER)

    def run_step(self) -> None:
        """One optimizer step over ACCUMULATION_STEPS batches."""
        seed_step(self.seed, self.iter, comm.get_rank())
        # The model itself, under a DDP wrapper too.
        self.checkpointer.model.progress = self.iter / self.cfg.SOLVER.MAX_ITER
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, torch.Tensor] = {}
        data_time = 0.0
        for step in range(self.steps):
            start = time.perf_counter()
            batch = next(self.batches)
            data_time += time.perf_counter() - start
            for name, loss in self.backward(batch, last=step == self.steps - 1).items():
                totals[name] = totals.get(name, 0) + loss / self.steps
        # Before the weights are touched.
        try:
            SimpleTrainer.write_metrics(totals, data_time, self.iter)
        except FloatingPointError as error:
            bad = [name for name, loss in totals.items() if not loss.isfinite()]
            raise DivergedError(
                f"loss is not finite at iteration {self.iter} ({', '.join(bad) or 'their sum'}): "
                "lower SOLVER.BASE_LR, or clip gradients (SOLVER.CLIP_GRADIENTS)"
            ) from error
        # Also for an optimizer that clips in its own step: a fused one unscales after that.
        self.scaler.unscale_(self.optimizer)
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(
                self.model.parameters(),
                self.max_norm,
                norm_type=self.cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE,
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()

    def backward(self, batch: list[dict], last: bool) -> dict[str, torch.Tensor]:
        """Add the gradient of one batch; its losses, detached.

        Args:
            last: of the step; gradients of all processes are averaged then.
        """
        waiting = not last and comm.get_world_size() > 1
        with self.model.no_sync() if waiting else contextlib.nullcontext():
            with torch.autocast(
                self.cfg.MODEL.DEVICE.split(":")[0],
                dtype=self.amp_dtype,
                enabled=self.amp_dtype is not None,
            ):
                losses = self.model(batch)
            self.scaler.scale(sum(losses.values()) / self.steps).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def state_dict(self) -> dict:
        """All a resumed run needs beside the model as `TrainingCheckpointer` saves it."""
        state = {
            **super().state_dict(),
            "seed": self.seed,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        return state if self.average is None else {**state, "weights": self.average.weights}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what `state_dict` returned."""
        missing = [key for key in ("seed", "optimizer", "scaler") if key not in state_dict]
        if missing:
            raise UserError(
                f"the checkpoint's training state has no {', '.join(missing)}, so another program "
                "wrote it; start from its weights with MODEL.WEIGHTS and without --resume"
            )
        if self.average is not None and "weights" in state_dict:
            self.average.resume(state_dict["weights"])
        elif self.average is not None:
            self.average.restart()
        elif "weights" in state_dict:
            raise UserError(
                "the checkpoint's model is a moving average: give the SOLVER.EMA_DECAY it was made "
                "with, or start from it with MODEL.WEIGHTS and without --resume"
            )
        planned = getattr(self.scheduler, "max_iters", None)
        super().load_state_dict(state_dict)
        # The polynomial schedule's end is in its state, too; only before it is it defined.
        if planned is not None and self.scheduler.max_iters != planned:
            logger.warning(
                "SOLVER.MAX_ITER is %d, and was %d: the learning rate goes on by the new schedule",
                planned,
                self.scheduler.max_iters,
            )
            self.scheduler.max_iters = planned
        self.seed = state_dict["seed"]
        load_optimizer_state(self.optimizer, state_dict["optimizer"])
        # Empty of a run that scaled no losses, as in bfloat16; this run then starts its own scale.
        if state_dict["scaler"]:
            self.scaler.load_state_dict(state_dict["scaler"])
        self.loaded = True


def seed_step(seed: int, iteration: int, rank: int) -> None:
    """Seed torch for one step as a function of its arguments."""
    # Odd multipliers keep steps and processes apart in 63 bits.
    mixed = seed * 0x9E3779B97F4A7C15 + iteration * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB
    torch.manual_seed(mixed % (1 << 63))


def _amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name = cfg.SOLVER.AMP.DTYPE
    if name not in _AMP_DTYPES:
        raise UserError(f"SOLVER.AMP.DTYPE={name!r} must be one of {', '.join(_AMP_DTYPES)}")
    if cfg.MODEL.DEVICE.startswith("cpu") and name == "float16":
        logger.warning("Training in bfloat16: the CPU has no mixed precision in float16")
        return torch.bfloat16
    return _AMP_DTYPES[name]
