"""A trained model as a folder of Hugging Face's Mask2Former."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn

from rankseg_m2f.errors import ExistingFileError, UserError
from rankseg_m2f.weights.file import write_weights
from rankseg_m2f.weights.huggingface import to_huggingface

# Config keys -> the values for which theirs computes what ours does. Theirs knows no others, or
# computes something else with them.
_WANTED = {
    "MODEL.META_ARCHITECTURE": ("MaskFormer",),
    "MODEL.BACKBONE.NAME": ("D2SwinTransformer", "build_resnet_backbone"),
    "MODEL.SEM_SEG_HEAD.NAME": ("MaskFormerHead",),
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": ("MSDeformAttnPixelDecoder",),
    "MODEL.SEM_SEG_HEAD.NORM": ("GN",),
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": (4,),
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": (["res2", "res3", "res4", "res5"],),
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": (["res3", "res4", "res5"],),
    "MODEL.MASK_FORMER.PRE_NORM": (False,),
    "MODEL.RANKSEG.USE_GT": (False,),
    "INPUT.FORMAT": ("RGB",),
}
_WANTED_OF_SWIN = {
    "MODEL.SWIN.APE": (False,),
    "MODEL.SWIN.PATCH_NORM": (True,),
    "MODEL.SWIN.QK_SCALE": (None,),
}
_WANTED_OF_RESNET = {
    "MODEL.RESNETS.DEPTH": (50, 101, 152),
    "MODEL.RESNETS.STEM_TYPE": ("basic",),
    "MODEL.RESNETS.NUM_GROUPS": (1,),
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN", "SyncBN"),
    "MODEL.RESNETS.RES5_DILATION": (1,),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ([False] * 4,),
}
_DEPTHS = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_RANKING = ("ml_head.", "ml_norm.")


def export(
    cfg: CfgNode,
    model: nn.Module,
    folder: Path,
    labels: Sequence[str] = (),
    without_ranking: bool = False,
) -> list[str]:
    """Write config.json, preprocessor_config.json and model.safetensors.

    ``Mask2FormerForUniversalSegmentation.from_pretrained(folder)`` then gives the model's logits.

    Args:
        cfg: of the model.
        model: with its weights.
        folder: written whole or not at all; must not exist.
        labels: K names; none: numbers.
        without_ranking: leave RankSeg's parts out, which theirs has no place for; what remains is
            the segmentor they were trained with. Where κ < K it never learned to tell an image's
            labels from those that ranked lower.

    Returns:
        The parameters left out.

    Raises:
        UserError: a model that theirs cannot be, with what stands in the way.
        ExistingFileError: the folder is there.
    """
    if obstacles := _obstacles(cfg, without_ranking):
        raise UserError(f"Hugging Face's Mask2Former cannot hold this model: {obstacles[0]}")
    if folder.exists():
        raise ExistingFileError(f"{folder} exists, and is never replaced: name a new folder")
    state, left = to_huggingface(model.state_dict())
    if unknown := [name for name in left if not name.startswith(_RANKING)]:
        raise UserError(f"Hugging Face's Mask2Former has no place for {', '.join(unknown[:3])}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        whole = Path(temporary) / folder.name
        whole.mkdir()
        for name, content in (
            ("config.json", model_config(cfg, labels)),
            ("preprocessor_config.json", processor_config(cfg)),
        ):
            (whole / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        write_weights(whole / "model.safetensors", {"model": state})
        os.rename(whole, folder)
    return left


def _obstacles(cfg: CfgNode, without_ranking: bool) -> list[str]:
    is_swin = cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer"
    wanted = _WANTED | (_WANTED_OF_SWIN if is_swin else _WANTED_OF_RESNET)
    found = []
    if cfg.MODEL.SEM_SEG_HEAD.USE_LAYERNORM:
        found.append(
            "its class head is a cosine classifier (MODEL.SEM_SEG_HEAD.USE_LAYERNORM), and theirs "
            "is linear"
        )
    if cfg.MODEL.RANKSEG.FLAG and not without_ranking:
        found.append(
            "there is no place for RankSeg's ml_head and ml_norm; --without-ranking leaves them "
            "out, and with them the ranking of labels"
        )
    for key, values in wanted.items():
        if (value := cfg.lookup(key)) not in values:
            allowed = " or ".join(map(str, values))
            found.append(f"{key} is {value}, and must be {allowed}")
    return found


def model_config(cfg: CfgNode, labels: Sequence[str] = ()) -> dict:
    """Their config.json of a model."""
    node, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
    names = list(labels) or [f"LABEL_{i}" for i in range(head.NUM_CLASSES)]
    is_swin = cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer"
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "backbone_config": _swin_config(cfg.MODEL.SWIN) if is_swin else _resnet_config(cfg),
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "feature_size": head.CONVS_DIM,
        "mask_feature_size": head.MASK_DIM,
        "encoder_layers": head.TRANSFORMER_ENC_LAYERS,
        "encoder_feedforward_dim": 1024,  # fixed in the official pixel decoder
        "common_stride": head.COMMON_STRIDE,
        "feature_strides": [4, 8, 16, 32],
        "ignore_value": head.IGNORE_VALUE,
        "hidden_dim": node.HIDDEN_DIM,
        "num_attention_heads": node.NHEADS,
        "dim_feedforward": node.DIM_FEEDFORWARD,
        "decoder_layers": node.DEC_LAYERS,
        "dropout": node.DROPOUT,
        "pre_norm": node.PRE_NORM,
        "enforce_input_projection": node.ENFORCE_INPUT_PROJ,
        "num_queries": node.NUM_OBJECT_QUERIES,
        "no_object_weight": node.NO_OBJECT_WEIGHT,
        "class_weight": node.CLASS_WEIGHT,
        "mask_weight": node.MASK_WEIGHT,
        "dice_weight": node.DICE_WEIGHT,
        "train_num_points": node.TRAIN_NUM_POINTS,
        "oversample_ratio": node.OVERSAMPLE_RATIO,
        "importance_sample_ratio": node.IMPORTANCE_SAMPLE_RATIO,
        "use_auxiliary_loss": node.DEEP_SUPERVISION,
    }


def _swin_config(node: CfgNode) -> dict:
    return {
        "model_type": "swin",
        "image_size": node.PRETRAIN_IMG_SIZE,
        "patch_size": node.PATCH_SIZE,
        "embed_dim": node.EMBED_DIM,
        "depths": list(node.DEPTHS),
        "num_heads": list(node.NUM_HEADS),
        "window_size": node.WINDOW_SIZE,
        "mlp_ratio": node.MLP_RATIO,
        "qkv_bias": node.QKV_BIAS,
        "hidden_dropout_prob": node.DROP_RATE,
        "attention_probs_dropout_prob": node.ATTN_DROP_RATE,
        "drop_path_rate": node.DROP_PATH_RATE,
        "out_features": _STAGES,
    }


def _resnet_config(cfg: CfgNode) -> dict:
    node = cfg.MODEL.RESNETS
    return {
        "model_type": "resnet",
        "embedding_size": node.STEM_OUT_CHANNELS,
        "hidden_sizes": [node.RES2_OUT_CHANNELS * 2**i for i in range(4)],
        "depths": _DEPTHS[node.DEPTH],
        "layer_type": "bottleneck",
        "downsample_in_bottleneck": node.STRIDE_IN_1X1,
        "out_features": _STAGES,
    }


def processor_config(cfg: CfgNode) -> dict:
    """Their preprocessor_config.json: colours in [0, 1] where ours has [0, 255]."""
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "size": {
            "shortest_edge": cfg.INPUT.MIN_SIZE_TEST,
            "longest_edge": cfg.INPUT.MAX_SIZE_TEST,
        },
        "size_divisor": 32,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "ignore_index": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "do_reduce_labels": False,
        "num_labels": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
    }
