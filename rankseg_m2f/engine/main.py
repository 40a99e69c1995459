"""Command line, set-up and launch; the one module that imports everything, for registration."""

from rankseg_m2f.engine.requirements import check_requirements

check_requirements()

import argparse
import logging
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, default_argument_parser, launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from rankseg_m2f.config import Config
from rankseg_m2f.config.lookup import find_config, read_config
from rankseg_m2f.data.datasets.catalog import other_roots, register_found
from rankseg_m2f.data.datasets.definitions import register_definitions
from rankseg_m2f.data.datasets.official import check_prepared, register_official
from rankseg_m2f.data.datasets.scenes import SCENES, register_scenes
from rankseg_m2f.data.datasets.video_scenes import VIDEO_SCENES, register_video_scenes
from rankseg_m2f.engine.config_checks import (
    check_architecture,
    check_input,
    check_kinds,
    check_labels,
    check_mapper,
    check_model,
)
from rankseg_m2f.engine.evaluate import evaluate, evaluation_sets
from rankseg_m2f.engine.logs import set_up
from rankseg_m2f.engine.outputs import check_folder
from rankseg_m2f.engine.trainer import Trainer
from rankseg_m2f.errors import UserError, add_debug_flag, errors_for_parent, one_line_errors
from rankseg_m2f.files import datasets_root
from rankseg_m2f.weights.checkpoint import load_model

logger = logging.getLogger(__name__)
# Keys of Detectron2's own trainer, which ours does not read -> their defaults.
_IGNORED = {"TEST.PRECISE_BN.ENABLED": False, "VIS_PERIOD": 0}


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's flags and ours."""
    parser = default_argument_parser()
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="unpickle MODEL.WEIGHTS without restriction; it may run any code",
    )
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="evaluate although the checkpoint lacks parts of the model",
    )
    add_debug_flag(parser)
    return parser


def register_datasets(cfg: CfgNode) -> None:
    """Register the datasets of $DETECTRON2_DATASETS and those of DATASETS.DEFINITIONS.

    Those below another folder, which the variable named before, give way.
    """
    root = datasets_root()
    before = other_roots(root)
    register_found(root, {SCENES: register_scenes, VIDEO_SCENES: register_video_scenes})
    register_official(root)
    if before:
        logger.warning("Datasets are read below %s now, not below %s", root, ", ".join(before))
    register_definitions(cfg.DATASETS.DEFINITIONS)


def load_config(config_file: str, overrides: list[str]) -> Config:
    """The frozen config of a file and KEY VALUE overrides, its datasets registered.

    Args:
        config_file: a file, or the path of one of the official repositories; "" for defaults.

    Raises:
        MissingFileError: no such config.
        UserError: see `config_checks`.
    """
    cfg = read_config(config_file, overrides)
    cfg.freeze()
    check_architecture(cfg)
    register_datasets(cfg)
    check_kinds(cfg)
    check_labels(cfg)
    check_mapper(cfg)
    check_input(cfg)
    for key, plain in _IGNORED.items():
        if cfg.lookup(key) != plain:
            logger.warning("%s is not supported and has no effect", key)
    return cfg


def main(args: argparse.Namespace, trainer_class: type[Trainer] = Trainer) -> OrderedDict | None:
    """Train, or evaluate with --eval-only, in this process.

    Returns:
        Metrics on the main process when evaluating.

    Raises:
        SystemExit: see `one_line_errors`.
    """
    with one_line_errors(_program()):
        return train_or_evaluate(args, trainer_class)


def train_or_evaluate(
    args: argparse.Namespace, trainer_class: type[Trainer] = Trainer
) -> OrderedDict | None:
    """`main`, with errors as they are raised."""
    cfg = load_config(args.config_file, args.opts)
    check_model(cfg)
    check_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    # Scales batch and schedule when SOLVER.REFERENCE_WORLD_SIZE asks for it.
    cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
    if args.config_file:
        args.config_file = str(find_config(args.config_file))
    set_up(cfg, args)
    for handler in logging.getLogger("detectron2").handlers:
        if getattr(handler, "stream", None) is sys.stdout:
            handler.addFilter(_is_said_here_alone)
    if args.eval_only:
        return evaluate_weights(cfg, args, trainer_class)
    trainer = trainer_class(cfg, trust_checkpoint=args.trust_checkpoint)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    return None


def _is_said_here_alone(record: logging.LogRecord) -> bool:
    """False of what ends training: raised again, it is shown when it has reached the top."""
    return not (record.exc_info and record.name == "detectron2.engine.train_loop")


def evaluate_weights(
    cfg: CfgNode, args: argparse.Namespace, trainer_class: type[Trainer] = Trainer
) -> OrderedDict:
    """Metrics of MODEL.WEIGHTS, or with --resume of the last checkpoint."""
    _refuse_to_replace_results(cfg, args.resume)
    tests = list(evaluation_sets(cfg, trainer_class, multi_scale=cfg.TEST.AUG.ENABLED))
    model, _ = load_model(
        cfg, resume=args.resume, trust=args.trust_checkpoint, allow_partial=args.allow_partial
    )
    results = evaluate(cfg, model, tests)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _refuse_to_replace_results(cfg: CfgNode, resume: bool) -> None:
    """Raise UserError where random weights would be judged as those of a run, or of --resume."""
    trained = (Path(cfg.OUTPUT_DIR) / "last_checkpoint").is_file()
    if cfg.MODEL.WEIGHTS or (resume and trained):
        return
    if resume:
        raise UserError(
            f"--resume: no checkpoint in {cfg.OUTPUT_DIR}, and MODEL.WEIGHTS names none"
        )
    if trained:
        raise UserError(
            f"MODEL.WEIGHTS is empty, and results of random weights would replace those of the run "
            f"in {cfg.OUTPUT_DIR}: name a checkpoint, or give --resume for its last one"
        )


def _program() -> str:
    # Several scripts are doors to this module.
    return Path(sys.argv[0]).name


def run(trainer_class: type[Trainer] = Trainer) -> None:
    """Entry point of train_net.py: one process, one per GPU, or one of torchrun's.

    Args:
        trainer_class: a subclass, in a project of your own.
    """
    args = argument_parser().parse_args()
    with one_line_errors(_program()), _first_process_speaks():
        # Before any process is started, so that most mistakes are known at once.
        cfg = load_config(args.config_file, args.opts)
        check_model(cfg)
        check_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR")
        for name in (*(() if args.eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST):
            check_prepared(name)
        # With the variable below CUDA may still say that it is there, but has no devices.
        on_gpu = cfg.MODEL.DEVICE != "cpu" and torch.cuda.is_available()
        if cfg.MODEL.DEVICE == "cpu":
            # Detectron2 takes NCCL for any machine with a GPU; it cannot send tensors of the CPU.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if "TORCHELASTIC_RUN_ID" in os.environ:
            join_torchrun(on_gpu)
            train_or_evaluate(args, trainer_class)
            # A process that leaves early would abort the others' last messages.
            comm.synchronize()
            torch.distributed.destroy_process_group()
        else:
            start_processes(args, on_gpu, trainer_class)


@contextmanager
def _first_process_speaks() -> Iterator[None]:
    """A mistake that all processes of torchrun meet is said by the first; then it ends the rest."""
    try:
        yield
    except Exception:
        if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(2)
        raise


def start_processes(args: argparse.Namespace, on_gpu: bool, trainer_class: type[Trainer]) -> None:
    """Work in this process, or in several that are started here.

    Raises:
        UserError: flags that this machine or one another do not allow.
    """
    if args.num_machines > 1 and (
        args.dist_url == "auto" or not 0 <= args.machine_rank < args.num_machines
    ):
        raise UserError(
            f"--num-machines {args.num_machines} needs --dist-url tcp://HOST:PORT of the first "
            f"machine and --machine-rank from 0 to {args.num_machines - 1}"
        )
    if on_gpu:
        found = torch.cuda.device_count()
        if args.num_gpus > found:
            raise UserError(f"--num-gpus {args.num_gpus}: this machine has {found}")
    elif args.num_gpus > 1:
        # Without a GPU the processes share the cores.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // args.num_gpus)))
    several = args.num_gpus * args.num_machines > 1
    try:
        launch(
            work_for_parent if several else train_or_evaluate,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args, trainer_class),
        )
    except torch.multiprocessing.ProcessRaisedException as error:
        if "EADDRINUSE" in str(error):
            raise UserError(
                f"--dist-url {args.dist_url}: the port is in use, perhaps by another run: give "
                "--dist-url auto, or another port"
            ) from error
        raise


def work_for_parent(args: argparse.Namespace, trainer_class: type[Trainer]) -> None:
    """`train_or_evaluate` in one of several processes."""
    with errors_for_parent():
        train_or_evaluate(args, trainer_class)


def join_torchrun(on_gpu: bool) -> None:
    """Join the process group that torchrun's environment describes."""
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Processes wait for the one that judges a large dataset.
    backend = "nccl" if on_gpu else "gloo"
    torch.distributed.init_process_group(backend, timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
