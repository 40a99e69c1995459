"""Plain vision transformers as timm builds them; timm is imported only here and only when used."""

from functools import partial
from types import ModuleType

from detectron2.config import CfgNode
from torch import nn

from rankseg_m2f.errors import UserError

# Keys of MODEL.VIT and MODEL.BEIT that make the transformer -> timm's names for them.
_SHARED = {
    "IMG_SIZE": "img_size",
    "PATCH_SIZE": "patch_size",
    "EMBED_DIM": "embed_dim",
    "DEPTH": "depth",
    "NUM_HEADS": "num_heads",
    "MLP_RATIO": "mlp_ratio",
    "DROP_PATH_RATE": "drop_path_rate",
    "NORM_EPS": "norm_eps",
}
_VIT = _SHARED | {"LAYER_SCALE": "init_values"}
_BEIT = _SHARED | {"INIT_VALUES": "init_values"}


def vit_settings(cfg: CfgNode) -> tuple[dict, dict]:
    """MODEL.VIT as arguments of `timm_vit`, and its other keys in lower case."""
    return _split(cfg.MODEL.VIT, _VIT)


def beit_settings(cfg: CfgNode) -> tuple[dict, dict]:
    """MODEL.BEIT as arguments of `timm_beit`, and its other keys in lower case."""
    return _split(cfg.MODEL.BEIT, _BEIT)


def _split(node: CfgNode, names: dict[str, str]) -> tuple[dict, dict]:
    transformer = {names[key]: value for key, value in node.items() if key in names}
    return transformer, {key.lower(): value for key, value in node.items() if key not in names}


def _import_timm() -> ModuleType:
    try:
        import timm.models.beit
        import timm.models.vision_transformer
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "timm":
            raise  # a timm that lacks something of its own
        raise UserError(
            "ViT, BEiT and their adapters need timm: pip install rankseg_m2f[vit]"
        ) from error
    return timm


def timm_vit(*, norm_eps: float, **arguments) -> nn.Module:
    """timm's ``VisionTransformer`` for images of any size, without a classifier.

    Args:
        norm_eps: eps of every LayerNorm.
        arguments: timm's own, such as `embed_dim` and `depth`.

    Raises:
        UserError: timm is not installed.
    """
    return _import_timm().models.vision_transformer.VisionTransformer(
        num_classes=0,
        # Its patch embedding then takes any size and pads it with zeros.
        dynamic_img_size=True,
        dynamic_img_pad=True,
        norm_layer=partial(nn.LayerNorm, eps=norm_eps),
        **arguments,
    )


def timm_beit(*, norm_eps: float, **arguments) -> nn.Module:
    """timm's ``Beit`` with a table of relative position biases in each block; see `timm_vit`."""
    return _import_timm().models.beit.Beit(
        num_classes=0,
        global_pool="",
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=norm_eps),
        **arguments,
    )
