"""What a config must fulfil, checked before datasets are read and a model is built."""

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils.registry import Registry

import rankseg_m2f.registration  # noqa: F401
from rankseg_m2f.data.augmentation import MULTI_LABEL
from rankseg_m2f.data.check import label_difference
from rankseg_m2f.errors import UserError, require_one_of
from rankseg_m2f.modeling.segmentor import Segmentor
from rankseg_m2f.modeling.wrappers.sliding import check_sliding
from rankseg_m2f.ops import backends

# Values of metadata's evaluator_type for datasets of videos.
_OF_VIDEOS = ("ytvis", "vspw")
_FLIPS = ("none", "horizontal", "vertical", "flip_by_clip")
_CROPS = ("absolute", "absolute_range", "relative", "relative_range")
_RESNETS = (18, 34, 50, 101, 152)
# Keys that must be whole numbers or shares from this value on.
_LEAST = {
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.ACCUMULATION_STEPS": 1,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.BASE_LR": 0,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TEST": 0,
    "INPUT.MAX_SIZE_TEST": 1,
    "INPUT.MAX_SIZE_TRAIN": 1,
    "INPUT.IMAGE_SIZE": 1,
    "INPUT.SAMPLING_FRAME_NUM": 1,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 1,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 1,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 1,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 0,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 1,
    "MODEL.MASK_FORMER.NHEADS": 1,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 1,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 1,
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": 1,
    "MODEL.RANKSEG.HIDDEN_DIM": 1,
    "MODEL.RANKSEG.TOPK": 0,
}


def check_architecture(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: a model of Detectron2, as without a config, or one that is not registered.
    """
    name, known = cfg.MODEL.META_ARCHITECTURE, dict(META_ARCH_REGISTRY)
    # Users may register theirs.
    if name in known and not known[name].__module__.startswith("detectron2."):
        return
    ours = sorted(n for n, model in known.items() if model.__module__.startswith("rankseg_m2f."))
    raise UserError(
        f"MODEL.META_ARCHITECTURE={name!r} must be one of {', '.join(ours)}: give a config of this "
        "project with --config-file, such as configs/scenes/panoptic/demo-rankseg.yaml"
    )


def check_model(cfg: CfgNode) -> None:
    """Check what building the model would stumble over, apart from what the models check.

    Raises:
        UserError: see `check_architecture`; an unknown part or device; a number out of range.
    """
    check_architecture(cfg)
    check_device(cfg.MODEL.DEVICE)
    # The environment may choose a backend of deformable attention.
    try:
        backends.choose("", torch.device(cfg.MODEL.DEVICE).type, torch.float32)
    except ValueError as error:
        raise UserError(str(error)) from error
    for key, least in _LEAST.items():
        if cfg.lookup(key) < least:
            raise UserError(f"{key}={cfg.lookup(key)} must be {least} or more")
    _check_registered(cfg, "MODEL.BACKBONE.NAME", BACKBONE_REGISTRY)
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone":
        require_one_of("MODEL.RESNETS.DEPTH", cfg.MODEL.RESNETS.DEPTH, _RESNETS)
        _check_stages(cfg, "MODEL.RESNETS.OUT_FEATURES")
    if cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer":
        _check_stages(cfg, "MODEL.SWIN.OUT_FEATURES")
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if issubclass(architecture, Segmentor):
        architecture.check_config(cfg)
    check_sliding(cfg, architecture)


def _check_registered(cfg: CfgNode, key: str, registry: Registry) -> None:
    require_one_of(key, cfg.lookup(key), sorted(name for name, _ in registry))


def _check_stages(cfg: CfgNode, key: str) -> None:
    for name in cfg.lookup(key):
        require_one_of(key, name, ("stem", "res2", "res3", "res4", "res5"))


def check_input(cfg: CfgNode) -> None:
    """Check what Detectron2's augmentations would assert.

    Raises:
        UserError: an unknown choice, or sizes that are none.
    """
    node = cfg.INPUT
    require_one_of("INPUT.FORMAT", node.FORMAT, ("RGB", "BGR"))
    require_one_of("INPUT.RANDOM_FLIP", node.RANDOM_FLIP, _FLIPS)
    sampling = node.MIN_SIZE_TRAIN_SAMPLING.removesuffix("_by_clip")
    require_one_of("INPUT.MIN_SIZE_TRAIN_SAMPLING", sampling, ("choice", "range"))
    sizes = tuple(node.MIN_SIZE_TRAIN)
    if not sizes or min(sizes) < 1 or (sampling == "range" and len(sizes) != 2):
        raise UserError(
            f"INPUT.MIN_SIZE_TRAIN={sizes} must be sizes of 1 or more, two of them where "
            "MIN_SIZE_TRAIN_SAMPLING is range"
        )
    if node.CROP.ENABLED:
        require_one_of("INPUT.CROP.TYPE", node.CROP.TYPE, _CROPS)
        if len(node.CROP.SIZE) != 2 or min(node.CROP.SIZE) <= 0:
            raise UserError(f"INPUT.CROP.SIZE={node.CROP.SIZE} must be two numbers above 0")


def check_device(name: str) -> None:
    """
    Raises:
        UserError: not a device of PyTorch, or one that this machine lacks.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"MODEL.DEVICE={name!r} must be cpu, cuda or cuda:NUMBER") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"MODEL.DEVICE={name!r}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "set MODEL.DEVICE cpu, or run python -m rankseg_m2f.doctor to see why"
        )


def check_labels(cfg: CfgNode) -> None:
    """Compare the model's labels with those of each dataset that is registered.

    Raises:
        UserError: another number of labels than MODEL.SEM_SEG_HEAD.NUM_CLASSES, or other labels
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
            raise UserError(
                f"dataset {name!r} has {len(names)} labels, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
                f"{num_labels}"
            )
        if names and first is None:
            first = name, names
        difference = label_difference(first[1], names) if names else None
        if difference:
            raise UserError(f"datasets {first[0]!r} and {name!r} have other labels: {difference}")


def check_kinds(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: DATASETS.TRAIN has images and videos, which no batch can hold.
    """
    kinds: dict[bool, str] = {}
    for name in cfg.DATASETS.TRAIN:
        kind = MetadataCatalog.get(name).get("evaluator_type") if _registered(name) else None
        if kind is not None:
            kinds.setdefault(kind in _OF_VIDEOS, name)
    if len(kinds) > 1:
        raise UserError(
            f"DATASETS.TRAIN mixes images ({kinds[False]!r}) and videos ({kinds[True]!r}): train "
            "on one of them, then from its weights (MODEL.WEIGHTS) on the other"
        )


def _registered(name: str) -> bool:
    return name in DatasetCatalog.list()


def check_mapper(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: a segmentor without masks to learn from.
    """
    name, model = cfg.INPUT.DATASET_MAPPER_NAME, cfg.MODEL.META_ARCHITECTURE
    architecture = META_ARCH_REGISTRY.get(model)
    segments = issubclass(architecture, Segmentor) and bool(architecture.gives)
    if name == MULTI_LABEL and segments:
        raise UserError(
            f"INPUT.DATASET_MAPPER_NAME={name!r} reads no masks: it is for MODEL.META_ARCHITECTURE "
            f"LabelClassifier, not {model}"
        )
