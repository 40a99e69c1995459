"""Command line, set-up and launch; the one module that imports everything, for registration."""

from rankseg_m2f.engine.requirements import check_requirements

check_requirements()

import argparse
import logging
import os
import sys
from collections import OrderedDict
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

import rankseg_m2f.modeling.label_classifier
import rankseg_m2f.modeling.pixel.pixel_segmentor
import rankseg_m2f.modeling.query.mask_former  # noqa: F401  (registration)
from rankseg_m2f.config import Config
from rankseg_m2f.data.augmentation import MULTI_LABEL
from rankseg_m2f.data.check import label_difference
from rankseg_m2f.data.datasets.definitions import register_definitions
from rankseg_m2f.data.datasets.official import check_prepared, register_official
from rankseg_m2f.data.datasets.scenes import SCENES, register_scenes
from rankseg_m2f.data.datasets.video_scenes import VIDEO_SCENES, register_video_scenes
from rankseg_m2f.engine.config_files import find_config, read_config
from rankseg_m2f.engine.evaluate import EvaluationSet, evaluate
from rankseg_m2f.engine.trainer import Trainer
from rankseg_m2f.errors import USER_ERRORS, one_line_errors
from rankseg_m2f.files import datasets_root
from rankseg_m2f.images import AnnotationError, ImageReadError
from rankseg_m2f.weights.checkpoint import load_model

logger = logging.getLogger(__name__)
# Keys of Detectron2's own trainer, which ours does not read -> their defaults.
_IGNORED = {"TEST.PRECISE_BN.ENABLED": False, "VIS_PERIOD": 0}
# Of a user's files, met on the way; whatever else ends a run is a fault of the program.
_DATA_ERRORS = (AnnotationError, ImageReadError)


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
    return parser


def register_datasets(cfg: CfgNode) -> None:
    """Register the datasets of $DETECTRON2_DATASETS and those of DATASETS.DEFINITIONS."""
    root = datasets_root()
    for register, folders in (
        (register_scenes, SCENES),
        (register_video_scenes, VIDEO_SCENES),
    ):
        for folder in sorted(root.glob(folders)):
            register(folder)
    register_official(root)
    register_definitions(cfg.DATASETS.DEFINITIONS)


def load_config(config_file: str, overrides: list[str]) -> Config:
    """The frozen config of a file and KEY VALUE overrides, its datasets registered.

    Args:
        config_file: a file, or the path of one of the official repositories; "" for defaults.

    Raises:
        FileNotFoundError: no such config.
    """
    cfg = read_config(config_file, overrides)
    cfg.freeze()
    register_datasets(cfg)
    check_labels(cfg)
    check_mapper(cfg)
    for key, plain in _IGNORED.items():
        if cfg.lookup(key) != plain:
            logger.warning("%s is not supported and has no effect", key)
    return cfg


def check_labels(cfg: CfgNode) -> None:
    """Compare the model's labels with those of each dataset that is registered.

    Raises:
        ValueError: another number of labels than MODEL.SEM_SEG_HEAD.NUM_CLASSES, or other labels
            than the first dataset's.
    """
    num_labels, first = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, None
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name not in DatasetCatalog.list():
            continue  # the loader names it, if it is needed
        metadata = MetadataCatalog.get(name)
        # Detectron2's own datasets have no label_names, and some have two lists.
        names = list(metadata.get("label_names", ()))
        if names and len(names) != num_labels:
            raise ValueError(
                f"dataset {name!r} has {len(names)} labels, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
                f"{num_labels}"
            )
        if names and first is None:
            first = name, names
        difference = label_difference(first[1], names) if names else None
        if difference:
            raise ValueError(f"datasets {first[0]!r} and {name!r} have other labels: {difference}")


def check_mapper(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: a segmentor without masks to learn from.
    """
    name, model = cfg.INPUT.DATASET_MAPPER_NAME, cfg.MODEL.META_ARCHITECTURE
    if name == MULTI_LABEL and model != "LabelClassifier":
        raise ValueError(
            f"INPUT.DATASET_MAPPER_NAME={name!r} reads no masks: it is for MODEL.META_ARCHITECTURE "
            f"LabelClassifier, not {model}"
        )


def main(args: argparse.Namespace) -> OrderedDict | None:
    """Train, or evaluate with --eval-only; runs in every process.

    Returns:
        Metrics on the main process when evaluating.
    """
    cfg = load_config(args.config_file, args.opts)
    # Scales batch and schedule when SOLVER.REFERENCE_WORLD_SIZE asks for it.
    cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="rankseg_m2f")
    if args.config_file:
        # Detectron2 copies the file's text into the log.
        args.config_file = str(find_config(args.config_file))
    default_setup(cfg, args)
    if args.eval_only:
        return evaluate_weights(cfg, args)
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    with _one_line_errors():
        trainer = Trainer(cfg, seed, trust_checkpoint=args.trust_checkpoint)
        trainer.resume_or_load(resume=args.resume)
        trainer.load_data()
    with _one_line_errors(_DATA_ERRORS):
        trainer.run()
    return None


def evaluate_weights(cfg: CfgNode, args: argparse.Namespace) -> OrderedDict:
    """Metrics of MODEL.WEIGHTS, or with --resume of the last checkpoint."""
    with _one_line_errors():
        _refuse_to_replace_results(cfg, args.resume)
        tests = [EvaluationSet.of(cfg, name) for name in cfg.DATASETS.TEST]
        model, _ = load_model(
            cfg, resume=args.resume, trust=args.trust_checkpoint, allow_partial=args.allow_partial
        )
    with _one_line_errors(_DATA_ERRORS):
        results = evaluate(cfg, model, cfg.TEST.AUG.ENABLED, tests)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _refuse_to_replace_results(cfg: CfgNode, resume: bool) -> None:
    """Raise ValueError where random weights would be judged as those of a run, or of --resume."""
    trained = (Path(cfg.OUTPUT_DIR) / "last_checkpoint").is_file()
    if cfg.MODEL.WEIGHTS or (resume and trained):
        return
    if resume:
        raise ValueError(
            f"--resume: no checkpoint in {cfg.OUTPUT_DIR}, and MODEL.WEIGHTS names none"
        )
    if trained:
        raise ValueError(
            f"MODEL.WEIGHTS is empty, and results of random weights would replace those of the run "
            f"in {cfg.OUTPUT_DIR}: name a checkpoint, or give --resume for its last one"
        )


def _one_line_errors(
    kinds: tuple[type[Exception], ...] = USER_ERRORS,
) -> AbstractContextManager:
    # Several scripts are doors to this module.
    return one_line_errors(Path(sys.argv[0]).name, kinds)


def run() -> None:
    """Entry point of train_net.py: one process, one per GPU, or one of torchrun's."""
    args = argument_parser().parse_args()
    # Before any process is started, so that a mistake is one line and not many tracebacks.
    with _one_line_errors():
        cfg = load_config(args.config_file, args.opts)
        for name in (*(() if args.eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST):
            check_prepared(name)
    # With the variable below CUDA may still say that it is there, but has no devices.
    on_gpu = cfg.MODEL.DEVICE != "cpu" and torch.cuda.is_available()
    if cfg.MODEL.DEVICE == "cpu":
        # Detectron2 takes NCCL for any machine with a GPU; it cannot send tensors of the CPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        join_torchrun(on_gpu)
        main(args)
        # A process that leaves early would abort the others' last messages.
        comm.synchronize()
        torch.distributed.destroy_process_group()
        return
    if on_gpu:
        found = torch.cuda.device_count()
        if args.num_gpus > found:
            raise SystemExit(f"--num-gpus {args.num_gpus}: this machine has {found}")
    elif args.num_gpus > 1:
        # Without a GPU the processes share the cores.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // args.num_gpus)))
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def join_torchrun(on_gpu: bool) -> None:
    """Join the process group that torchrun's environment describes."""
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Processes wait for the one that judges a large dataset.
    backend = "nccl" if on_gpu else "gloo"
    torch.distributed.init_process_group(backend, timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
