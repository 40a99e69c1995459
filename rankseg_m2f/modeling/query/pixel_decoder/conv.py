"""The convolution all pixel decoders are made of."""

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm


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
