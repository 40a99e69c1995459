"""Every config key this project adds to Detectron2, each with its why.

Keys and defaults of Mask2Former and RankSeg keep their official names, so official YAML files
load unchanged; keys of ours are marked (ours).
"""

import io
import logging
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.projects.deeplab import add_deeplab_config

from rankseg_m2f.safe_yaml import rewrite_eval_tags

logger = logging.getLogger(__name__)
# Old name of a section -> its name now, in the same parent. RankSeg's release renamed MLSEG in the
# code and forgot some of its files.
RENAMED = {"MODEL.MLSEG": "MODEL.RANKSEG"}


class Config(CfgNode):
    """Detectron2's ``CfgNode`` that never runs code from a YAML file.

    An int is accepted where the default is a float: official files write ``LOSS_WEIGHT: 10``,
    and ``0.5`` must be possible too.
    """

    @classmethod
    def _open_cfg(cls, filename: str) -> io.StringIO:
        with super()._open_cfg(filename) as file:
            text = file.read()
        try:
            text = rewrite_eval_tags(text)
        except ValueError as error:
            raise ValueError(f"{filename}: {error}") from error
        if not isinstance(yaml.compose(text, yaml.SafeLoader), yaml.MappingNode):
            raise ValueError(f"{filename} is no config: it does not consist of KEY: value lines")
        return io.StringIO(text)

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """The file's content over that of its ``_BASE_`` files, read by the safe YAML loader.

        Sections of old names (`RENAMED`) get their new ones.
        ``allow_unsafe`` is accepted for Detectron2's callers and ignored.

        Raises:
            ValueError: not YAML, YAML that wants to build Python objects, or a circle of bases.
            FileNotFoundError: no such file or base; names the file that wants the base.
        """
        try:
            loaded = super().load_yaml_with_base(filename, allow_unsafe=False)
        except yaml.YAMLError as error:
            raise ValueError(
                f"{filename} is not a plain YAML config and was not loaded: {error}"
            ) from error
        except FileNotFoundError as error:
            # Of a base's own base it is said already.
            if error.filename in (None, filename):
                raise
            raise FileNotFoundError(
                f"{filename}: its _BASE_ {error.filename} does not exist"
            ) from error
        except RecursionError:
            raise ValueError(f"{filename}: its _BASE_ leads back to itself") from None
        _rename_sections(loaded, filename)
        return loaded

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merge a YAML file and its bases; see `load_yaml_with_base`.

        Raises:
            ValueError: as there, or a value of another type than the key's; names the file.
            KeyError: an unknown key.
        """
        try:
            super().merge_from_file(cfg_filename, allow_unsafe)
        except ValueError as error:
            if cfg_filename in str(error):
                raise
            raise ValueError(f"{cfg_filename}: {error}") from error

    def merge_from_other_cfg(self, cfg_other: CfgNode) -> None:
        """Merge ``cfg_other``, with ints turned into floats where the default is a float.

        Raises:
            ValueError: a value of another type than the key's.
            KeyError: an unknown key.
        """
        super().merge_from_other_cfg(_ints_to_floats(Config(cfg_other), like=self))

    def merge_from_list(self, cfg_list: list) -> None:
        """Merge ``[KEY, value, ...]`` as given on the command line.

        Raises:
            ValueError: a key without a value, a value of another type than the key's, or a flag.
            KeyError: an unknown key.
        """
        flags = [word for word in cfg_list if isinstance(word, str) and word.startswith("--")]
        if flags:
            raise ValueError(f"flags go before KEY VALUE overrides: move {' '.join(flags)} there")
        if len(cfg_list) % 2:
            raise ValueError(f"override {cfg_list[-1]!r} has no value; write KEY VALUE pairs")
        merged = list(cfg_list)
        for i in range(0, len(cfg_list), 2):
            merged[i] = _new_name(cfg_list[i])
            value = self._decode_cfg_value(cfg_list[i + 1])
            _check_list(merged[i], value, like=self.lookup(merged[i]))
            if type(value) is int and isinstance(self.lookup(merged[i]), float):
                merged[i + 1] = float(value)
        super().merge_from_list(merged)

    def lookup(self, full_key: str) -> Any:
        """The value of a key such as "MODEL.RANKSEG.TOPK".

        Raises:
            KeyError: an unknown key.
        """
        node: Any = self
        for part in full_key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                raise KeyError(f"unknown config key {full_key!r} (no {part!r} there)")
            node = node[part]
        return node


def _new_name(full_key: str) -> str:
    for old, new in RENAMED.items():
        if full_key.startswith(f"{old}."):
            logger.warning("%s is called %s now", old, new)
            return new + full_key.removeprefix(old)
    return full_key


def _rename_sections(loaded: dict[str, Any], filename: str) -> None:
    for old, new in RENAMED.items():
        *parents, old_name = old.split(".")
        node: Any = loaded
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get(old_name), dict):
            logger.warning("%s: %s is called %s now", filename, old, new)
            new_name = new.rpartition(".")[2]
            # Bases have their new names already; what this file itself says overrides them.
            node[new_name] = {**node.get(new_name, {}), **node.pop(old_name)}


def _check_list(full_key: str, value: Any, like: Any) -> None:
    """Raise where one value is given for a list, which is easily forgotten for a list of one."""
    if isinstance(like, (list, tuple)) and isinstance(value, (str, int, float)):
        items = (value,)
        if isinstance(value, str):
            items = tuple(item.strip(" '\"") for item in value.strip("()[], ").split(","))
        raise ValueError(f'{full_key} is a list, which {value!r} is not: write "{items}"')


def _ints_to_floats(node: CfgNode, like: CfgNode, above: str = "") -> CfgNode:
    for key, value in node.items():
        default = like.get(key)
        # YAML takes (1, 2) for a text.
        _check_list(f"{above}{key}", node._decode_cfg_value(value), default)
        if isinstance(value, CfgNode) and isinstance(default, CfgNode):
            _ints_to_floats(value, default, f"{above}{key}.")
        elif type(value) is int and isinstance(default, float):
            dict.__setitem__(node, key, float(value))
    return node


def get_cfg() -> Config:
    """A fresh config with every key of Detectron2, DeepLab, Mask2Former, RankSeg and ours."""
    cfg = get_detectron2_cfg()
    add_deeplab_config(cfg)
    cfg = Config(cfg)
    _add_input(cfg)
    _add_solver(cfg)
    _add_test(cfg)
    _add_mask_former(cfg)
    _add_swin(cfg)
    _add_rankseg(cfg)
    _add_pixel(cfg)
    # (ours) A machine without a GPU should not need an override to run.
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    # (ours) YAML files that describe your own datasets; see datasets/README.md.
    cfg.DATASETS.DEFINITIONS = []
    # (ours) VSPW's kind of dataset: predicted label maps are kept, for its official scripts, as
    # OUTPUT_DIR/inference/NAME/predictions/VIDEO/FRAME.png with the ids of the dataset's own maps.
    cfg.TEST.DUMP_PREDICTIONS = False
    # Written by official RankSeg runs; accepted so that their dumped configs load.
    cfg.LOG_OUTPUT = None
    return cfg


def _add_input(cfg: Config) -> None:
    # One of data.mappers.MAPPERS, or "multi_label" (ours) for META_ARCHITECTURE LabelClassifier.
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.INPUT.COLOR_AUG_SSD = False
    # A random crop is drawn again while one category fills more than this share of it.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Training images are padded to at least this side; -1: no padding in the mapper.
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    # Large-scale jitter: resize IMAGE_SIZE by a factor in [MIN_SCALE, MAX_SCALE], then crop.
    # "multi_label": the side of the square.
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0
    # (ours) What augmentation moves out of the image stays a target with an empty mask, and a
    # label for the multi-label head, where the official mappers leave it: those of panoptic
    # segments and "mask_former_instance". False: only what the image shows is.
    cfg.INPUT.KEEP_UNSEEN_OBJECTS = True
    # Video: frames per training clip and how far from the first they may lie.
    cfg.INPUT.SAMPLING_FRAME_NUM = 2
    cfg.INPUT.SAMPLING_FRAME_RANGE = 20
    cfg.INPUT.SAMPLING_FRAME_SHUFFLE = False
    cfg.INPUT.SAMPLING_INTERVAL = 5
    cfg.INPUT.SAMPLING_RANDOM = True
    # Video: brightness, contrast, saturation, rotation.
    cfg.INPUT.AUGMENTATIONS = []
    # (ours) "multi_label" alone. RandAugment: operations per image (0: none), each of this
    # magnitude in [0, 30]; cutout: a rectangle of this share of each side is covered (0: none).
    cfg.INPUT.RAND_AUGMENT = Config({"NUM_OPS": 2, "MAGNITUDE": 9})
    cfg.INPUT.CUTOUT = 0.5


def _add_solver(cfg: Config) -> None:
    # "ADAMW" or "SGD"; (ours) also "ADAM", whose weight decay is part of the gradient.
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # Learning-rate factor of ml_head (not of ml_norm, as in the official recipe).
    cfg.SOLVER.MLHEAD_MULTIPLIER = 1.0
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # (ours) Weight decay of the label embeddings ml_head.cls_emb. The official rule meant to
    # exempt them never matched, so the published recipe decays them; None keeps that.
    cfg.SOLVER.WEIGHT_DECAY_LABEL_EMBED = None
    # (ours) Micro-batches per optimizer step; IMS_PER_BATCH stays the effective batch size.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # (ours) "float16" (with loss scaling) or "bfloat16" (without), used when AMP.ENABLED.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # (ours) Decay per step of a moving average of the weights, which is then what is evaluated and
    # saved as the model; 0: none.
    cfg.SOLVER.EMA_DECAY = 0.0


def _add_test(cfg: Config) -> None:
    # (ours) A metric of the evaluation, such as "labels/mAP" (with the dataset's name before it if
    # there are several): weights with the highest are kept as model_best.pth. Training ends after
    # PATIENCE evaluations in a row without a new best; 0: at MAX_ITER.
    cfg.TEST.EARLY_STOPPING = Config({"METRIC": "", "PATIENCE": 0})


def _add_mask_former(cfg: Config) -> None:
    node = cfg.MODEL.MASK_FORMER = Config()
    node.DEEP_SUPERVISION = True
    node.NO_OBJECT_WEIGHT = 0.1
    node.CLASS_WEIGHT = 1.0
    node.DICE_WEIGHT = 1.0
    node.MASK_WEIGHT = 20.0
    node.NHEADS = 8
    node.DROPOUT = 0.1
    node.DIM_FEEDFORWARD = 2048
    # Unused, as in the official code; MaskFormer's and Mask2Former's files set it.
    node.ENC_LAYERS = 0
    # Counts the predictions: one from the learnable queries and one after each decoder layer.
    node.DEC_LAYERS = 6
    node.PRE_NORM = False
    node.HIDDEN_DIM = 256
    node.NUM_OBJECT_QUERIES = 100
    node.TRANSFORMER_IN_FEATURE = "res5"
    node.ENFORCE_INPUT_PROJ = False
    node.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    # Input is padded to a multiple of this; negative: of what the backbone needs.
    node.SIZE_DIVISIBILITY = 32
    # Points per mask in matching and mask losses (PointRend's importance sampling).
    node.TRAIN_NUM_POINTS = 112 * 112
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_SAMPLE_RATIO = 0.75

    node.TEST = Config()
    node.TEST.SEMANTIC_ON = True
    node.TEST.INSTANCE_ON = False
    node.TEST.PANOPTIC_ON = False
    node.TEST.OBJECT_MASK_THRESHOLD = 0.0
    node.TEST.OVERLAP_THRESHOLD = 0.0
    # Resize masks to the output size before, rather than the semantic map after, inference.
    # Always so with RankSeg, its oracle and videos, whose official code does not read this key.
    node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False

    # (ours) Tracks given for a video: the ten of the official code, which does not read
    # TEST.DETECTIONS_PER_IMAGE there.
    node.TEST.DETECTIONS_PER_VIDEO = 10
    # (ours) Frames of a video seen at once, and how many of them the next window sees again, to
    # recognise objects; 0: all, as the official code. Memory does not grow with the video then.
    node.TEST.WINDOW = 0
    node.TEST.WINDOW_OVERLAP = 4

    head = cfg.MODEL.SEM_SEG_HEAD
    head.MASK_DIM = 256
    head.PIXEL_DECODER_NAME = "BasePixelDecoder"
    head.TRANSFORMER_ENC_LAYERS = 0
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    # Official code ignores these two (it uses NHEADS and 4); so do we, so that its files agree.
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8
    # Cosine classifier: L2-normalised query times L2-normalised class weight, no bias.
    head.USE_LAYERNORM = False
    # (ours) First value of a learnable scale on those cosines; 0: none, as the official code. The
    # control for RankSeg: without it a cosine classifier alone cannot become confident.
    head.COSINE_SCALE = 0.0


def _add_swin(cfg: Config) -> None:
    node = cfg.MODEL.SWIN = Config()
    node.PRETRAIN_IMG_SIZE = 224
    node.PATCH_SIZE = 4
    node.EMBED_DIM = 96
    node.DEPTHS = [2, 2, 6, 2]
    node.NUM_HEADS = [3, 6, 12, 24]
    node.WINDOW_SIZE = 7
    node.MLP_RATIO = 4.0
    node.QKV_BIAS = True
    node.QK_SCALE = None
    node.DROP_RATE = 0.0
    node.ATTN_DROP_RATE = 0.0
    node.DROP_PATH_RATE = 0.3
    node.APE = False
    node.PATCH_NORM = True
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Recompute blocks in the backward pass: less memory, about a third more time.
    node.USE_CHECKPOINT = False


def _add_rankseg(cfg: Config) -> None:
    node = cfg.MODEL.RANKSEG = Config()
    # Adds the multi-label head; False is plain Mask2Former.
    node.FLAG = False
    # (ours) Form of ξ (Table 6): "encoder", the official transformer encoder layer; "decoder", two
    # decoder layers in which label embeddings query the features; "pooled", average and linear. Of
    # pixel segmentors also the official "separable" (DeepLabv3, UPerNet), "query2label", whose
    # map must be averaged to 16 x 16 (PIXEL.LABEL_POOL), and "gap".
    node.HEAD = "encoder"
    # κ of Eq. 2; larger than K means K (a pure sort).
    node.TOPK = 0
    # (ours) κ at evaluation (Table 4 at a fixed training κ); 0: TOPK.
    node.TOPK_EVAL = 0
    # (ours) Dynamic κ at evaluation, at most the above: only labels of at least this presence
    # probability (0: all), and only the first that hold this share of all probability (1: all).
    node.EVAL_MIN_SCORE = 0.0
    node.EVAL_MASS = 1.0
    node.LOSS_WEIGHT = 0.0
    # (ours) Multi-label loss: "asymmetric", which focuses on hard negatives by GAMMA_NEG (0 for
    # TranDec and GAP of Table 6), or "binary", the mean cross-entropy (EncNet, and the official
    # Segmenter ViT-B on COCO-Stuff).
    node.LABEL_LOSS = "asymmetric"
    node.GAMMA_NEG = 2.0
    node.HIDDEN_DIM = 512
    # The head's label embeddings are the segmentor's class weights, projected when widths differ.
    node.SHARE_EMBEDDING = False
    # Oracle, training and evaluation: only labels present in the ground truth can be predicted.
    node.USE_GT = False
    # (ours) The same at evaluation alone, "GT (eval)" of Fig. 3: as if an input's `selection` were
    # the labels of its ground truth. Unlike USE_GT it leaves the LayerNorm over ranks as trained.
    node.USE_GT_EVAL = False
    # (ours) The official oracle spares the auxiliary layers; False repeats that.
    node.USE_GT_AUX = True
    # (ours) False keeps the multi-label loss and drops sort and selection: row "+ MT" of Table 1.
    node.SELECTION = True
    # (ours) "layernorm": the official LayerNorm over ranks; "rank": a plain learnable 1/τ per rank
    # (Eq. 3); "shared": one 1/τ for all ranks (row "+ MT + LS" of Table 1).
    node.TEMPERATURE = "layernorm"
    # (ours) First value of 1/τ for "rank" and "shared"; a cosine classifier needs 10 or more.
    node.TEMPERATURE_INIT = 1.0
    # (ours) With κ < K an untrained head starves the classifier: present labels outside the top κ
    # have no loss. Official runs have κ = K and never meet the question. While training,
    # "official": nothing is done about it; "keep_present": present labels displace the last-ranked
    # ones, whose temperatures can then learn what evaluation does not know; "schedule": κ shrinks
    # from K to TOPK; "all": κ is K, and TOPK at evaluation alone, where a LayerNorm over ranks
    # meets fewer ranks than it was trained with. The last two have K + 1 temperatures.
    # docs/EVIDENCE.md compares them.
    node.TRAIN_SELECTION = "official"
    # (ours) Shares of training between which a scheduled κ shrinks, linearly.
    node.TRAIN_SCHEDULE = (0.0, 0.5)
    # (ours) Decoder layer whose queries feed the head; 0: the learnable queries.
    node.QUERY_LAYER = 3
    node.DROPOUT = 0.1
    # (ours) Files of label scores, see rankseg_m2f.label_scores: labels are ranked by them in
    # training and at evaluation, and no head is made (the independent single-task scheme, Sec.
    # 3.2). Empty: the joint scheme, the model's own head.
    node.SCORES = []
    # (ours) True: `sem_seg` is the full (K, H, W) map even when κ < K (see SelectedScores).
    node.FULL_SEM_SEG = False


def _add_pixel(cfg: Config) -> None:
    # All (ours), of META_ARCHITECTURE PixelSegmentor. Its head is MODEL.SEM_SEG_HEAD.NAME, with
    # IN_FEATURES, CONVS_DIM and NORM there.
    node = cfg.MODEL.PIXEL = Config()
    # Convolutions of an FCNHead; 0: a linear classifier.
    node.NUM_CONVS = 1
    # Of whole channels, before the classifier.
    node.DROPOUT = 0.1
    # Map of the backbone from which an FCN head of so many channels predicts all labels while
    # training, and the weight of that loss; "": none.
    node.AUX_FEATURE = ""
    node.AUX_CHANNELS = 256
    node.AUX_WEIGHT = 0.4
    # Map of the backbone that the multi-label head reads, averaged to a grid of so many cells a
    # side (0: as it is).
    node.LABEL_FEATURE = "res5"
    node.LABEL_POOL = 0
    # Dilations of an ASPPHead (DeepLabv3), sides to which a UPerHead pools its coarsest map, and
    # codewords of EncNet's heads.
    node.DILATIONS = [1, 12, 24, 36]
    node.POOL_SCALES = [1, 2, 3, 6]
    node.NUM_CODES = 32
    # Segmenter's mask transformer: width (0: that of the map it reads), number of blocks, dropout.
    # A RankedSegmenterHead has one block more, 3 as published; it reads the map averaged to
    # LABEL_POOL, 8 as published, or 0 for ADE20K-Full and COCO+LVIS.
    node.DECODER = Config()
    node.DECODER.WIDTH = 0
    node.DECODER.DEPTH = 2
    node.DECODER.DROPOUT = 0.1
    # ESSNet (SampledSegmenterHead): dimensions in which pixels and labels meet (0: all), and how
    # many labels of a pixel are compared.
    node.DECODER.SCORE_WIDTH = 0
    node.DECODER.BEST = 50
    # Cross-entropy is the mean over "all" pixels, ignored ones and those whose label is not
    # selected counting as 0, as in the official code; or over the "counted" ones alone.
    node.LOSS_MEAN = "all"
