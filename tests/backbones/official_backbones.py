"""Backbones of official pixel segmentors: their configs as ours, golden cases, sizes in full."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torch import Tensor, nn

import rankseg_m2f.modeling.backbone.beit
import rankseg_m2f.modeling.backbone.resnet_v1c
import rankseg_m2f.modeling.backbone.swin
import rankseg_m2f.modeling.backbone.vit
import rankseg_m2f.modeling.backbone.vit_adapter  # noqa: F401  (registration)
from rankseg_m2f.config import get_cfg

DATA = Path(__file__).parent.parent / "data" / "backbones"
SHARED = Path(__file__).parents[3] / "shared"
PYRAMID = ["res2", "res3", "res4", "res5"]

# Full sizes, in the words of the official configs.
VIT_B = {
    "type": "VisionTransformer",
    "img_size": [512, 512],
    "embed_dims": 768,
    "num_layers": 12,
    "num_heads": 12,
}
VIT_L = VIT_B | {"img_size": [640, 640], "embed_dims": 1024, "num_layers": 24, "num_heads": 16}
OCE_B = VIT_B | {"with_cls_emb": True, "num_classes": 150, "cls_emb_start_layer": 11}
SWIN_B = {
    "type": "SwinTransformer",
    "embed_dims": 128,
    "window_size": 12,
    "depths": [2, 2, 18, 2],
    "num_heads": [4, 8, 16, 32],
}
BEIT_L = {
    "type": "BEiT",
    "img_size": [640, 640],
    "embed_dim": 1024,
    "depth": 24,
    "num_heads": 16,
    "out_indices": [7, 11, 15, 23],
}
RESNET_101 = {"type": "ResNetV1c", "depth": 101}
ADAPTER_L = BEIT_L | {
    "type": "BEiTAdapter",
    "img_size": 896,
    "conv_inplane": 64,
    "deform_num_heads": 16,
    "deform_ratio": 0.5,
    "interaction_indexes": [[0, 5], [6, 11], [12, 17], [18, 23]],
}


def our_config(official: dict) -> CfgNode:
    """The config of a backbone of ours that is an official one."""
    if "backbone" in official:
        official = official["backbone"]
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    _TRANSLATORS[official.get("type", "original Segmenter")](cfg, official)
    return cfg


def _size(value) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _vit(cfg: CfgNode, official: dict) -> None:
    cfg.MODEL.BACKBONE.NAME = "ViT"
    keys = cfg.MODEL.VIT
    keys.IMG_SIZE = _size(official["img_size"])
    keys.EMBED_DIM = official["embed_dims"]
    keys.DEPTH = official["num_layers"]
    keys.NUM_HEADS = official["num_heads"]
    keys.PATCH_SIZE = official.get("patch_size", 16)
    keys.LABEL_TOKENS_FROM = keys.DEPTH - 1
    if official.get("with_cls_emb"):
        keys.LABEL_TOKENS = official["num_classes"]
        keys.LABEL_TOKENS_FROM = official["cls_emb_start_layer"]


def _original_segmenter(cfg: CfgNode, official: dict) -> None:
    cfg.MODEL.BACKBONE.NAME = "ViT"
    keys = cfg.MODEL.VIT
    keys.IMG_SIZE = _size(official["image_size"])
    keys.EMBED_DIM = official["d_model"]
    keys.DEPTH = official["n_layers"]
    keys.NUM_HEADS = official["n_heads"]
    keys.NORM_EPS = 1e-5
    keys.POSITION_RESIZE = "bilinear"
    keys.LABEL_TOKENS_FROM = 0


def _swin(cfg: CfgNode, official: dict) -> None:
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    keys = cfg.MODEL.SWIN
    keys.EMBED_DIM = official["embed_dims"]
    keys.WINDOW_SIZE = official["window_size"]
    keys.DEPTHS = official["depths"]
    keys.NUM_HEADS = official["num_heads"]


def _resnet(cfg: CfgNode, official: dict) -> None:
    cfg.MODEL.BACKBONE.NAME = "build_resnet_v1c_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    keys = cfg.MODEL.RESNETS
    width = official.get("base_channels", 64)
    keys.DEPTH = official["depth"]
    keys.NORM = "SyncBN"
    keys.STEM_OUT_CHANNELS = official.get("stem_channels", 64)
    keys.WIDTH_PER_GROUP = width
    keys.RES2_OUT_CHANNELS = width * 4
    keys.RES4_DILATION = 2
    keys.RES5_DILATION = 4
    keys.OUT_FEATURES = PYRAMID


def _beit(cfg: CfgNode, official: dict) -> None:
    cfg.MODEL.BACKBONE.NAME = "BEiT"
    keys = cfg.MODEL.BEIT
    keys.IMG_SIZE = _size(official["img_size"])
    keys.EMBED_DIM = official["embed_dim"]
    keys.DEPTH = official["depth"]
    keys.NUM_HEADS = official["num_heads"]
    keys.OUT_BLOCKS = official.get("out_indices", keys.OUT_BLOCKS)


def _adapter(cfg: CfgNode, official: dict) -> None:
    keys = cfg.MODEL.VIT_ADAPTER
    keys.CONV_CHANNELS = official["conv_inplane"]
    keys.DEFORM_HEADS = official["deform_num_heads"]
    keys.DEFORM_RATIO = official["deform_ratio"]
    keys.INTERACTIONS = official["interaction_indexes"]


def _beit_adapter(cfg: CfgNode, official: dict) -> None:
    _beit(cfg, official)
    _adapter(cfg, official)
    cfg.MODEL.BACKBONE.NAME = "BEiTAdapter"


def _vit_adapter(cfg: CfgNode, official: dict) -> None:
    renamed = {"embed_dims": official["embed_dim"], "num_layers": official["depth"]}
    _vit(cfg, official | renamed | {"img_size": official["pretrain_size"]})
    _adapter(cfg, official)
    cfg.MODEL.BACKBONE.NAME = "ViTAdapter"
    windows = zip(official["window_attn"], official["window_size"], strict=True)
    cfg.MODEL.VIT_ADAPTER.WINDOWS = [side if inside else 0 for inside, side in windows]


_TRANSLATORS = {
    "VisionTransformer": _vit,
    "original Segmenter": _original_segmenter,
    "SwinTransformer": _swin,
    "ResNetV1c": _resnet,
    "BEiT": _beit,
    "BEiTAdapter": _beit_adapter,
    "ViTAdapter": _vit_adapter,
}


def build(cfg: CfgNode) -> nn.Module:
    """The backbone of a config, in eval mode."""
    return build_backbone(cfg).eval()


@dataclass
class BackboneCase:
    """An official backbone with what went in and what came out."""

    cfg: CfgNode
    weights: dict[str, Tensor]
    images: Tensor  # normalised
    outputs: dict[str, Tensor]
    noise: dict[str, float]  # of the official code: its float32 against its float64
    seed: int


def packed_cases() -> list[str]:
    """Names of the cases in tests/data."""
    return sorted(path.stem for path in DATA.glob("*.npz"))


def shared_cases() -> list[str]:
    """Names of all cases with a backbone in ../shared."""
    folder = SHARED / "golden"
    names = (path.parent.name for path in folder.glob("pixel_*/weights.npz"))
    return sorted(name for name in names if "maskformer" not in name)


@lru_cache
def packed_case(name: str) -> BackboneCase:
    """A case of tests/data."""
    stored = dict(np.load(DATA / f"{name}.npz"))
    shapes = json.loads(str(stored["shapes"]))
    ends = np.cumsum([int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()])
    parts = np.split(stored["half"].astype(np.float32), ends[:-1])
    weights = {k: v.reshape(s) for (k, s), v in zip(shapes.items(), parts, strict=True)}
    outputs = {k[4:]: v for k, v in stored.items() if k.startswith("out:")}
    return _case(
        yaml.safe_load(str(stored["config"])),
        json.loads(str(stored["meta"])),
        stored["image"],
        weights,
        outputs,
    )


def folder_case(folder: Path) -> BackboneCase:
    """A case of the full golden data."""
    return _case(
        yaml.safe_load((folder / "config.yaml").read_text()),
        json.loads((folder / "meta.json").read_text()),
        np.load(folder / "inputs.npz")["image"],
        dict(np.load(folder / "weights.npz")),
        dict(np.load(folder / "outputs.npz")),
    )


def _case(official: dict, meta: dict, image, weights: dict, outputs: dict) -> BackboneCase:
    mean, std = (torch.tensor(meta[key]).view(-1, 1, 1) for key in ("pixel_mean", "pixel_std"))
    return BackboneCase(
        our_config(official),
        {k: torch.from_numpy(v) for k, v in weights.items()},
        (torch.from_numpy(image).float() - mean) / std,
        {k: torch.from_numpy(v) for k, v in outputs.items()},
        meta["fp32_vs_fp64_max_abs"],
        meta["seed"],
    )
