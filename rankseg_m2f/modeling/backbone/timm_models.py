"""Plain vision transformers as timm builds them; timm is imported only here and only when used."""

from functools import partial
from types import ModuleType

from torch import nn

from rankseg_m2f.errors import UserError


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
