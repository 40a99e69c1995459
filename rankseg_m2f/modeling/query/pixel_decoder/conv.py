"""The convolution all pixel decoders are made of."""

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm

from rankseg_m2f.errors import require_one_of

_IN_FEATURES = "MODEL.SEM_SEG_HEAD.IN_FEATURES"


def features_read(cfg, input_shape: dict[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    """The backbone's features that MODEL.SEM_SEG_HEAD.IN_FEATURES names.

    Raises:
        UserError: one that the backbone does not give.
    """
    for name in cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES:
        require_one_of(_IN_FEATURES, name, input_shape)
    return {name: input_shape[name] for name in cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES}


def conv_norm(in_channels: int, channels: int, kernel: int, norm: str, relu: bool) -> Conv2d:
    """Same-size convolution with `norm` (a bias without one) and perhaps a ReLU."""
    conv = Conv2d(
        in_channels,
        channels,
        kernel,
        padding=kernel // 2,
        bias=not norm,
        norm=get_norm(norm, channels),
        activation=F.relu if relu else None,
    )
    weight_init.c2_xavier_fill(conv)
    return conv
