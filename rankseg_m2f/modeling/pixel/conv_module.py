"""The convolution all pixel heads are made of."""

import torch.nn.functional as F
from detectron2.layers import get_norm
from torch import Tensor, nn


class ConvModule(nn.Module):
    """Convolution, norm, ReLU; children are named as in MMSegmentation's checkpoints.

    Args:
        kernel: odd; maps keep their size at stride 1.
        norm: of `detectron2.layers.get_norm`; "": a bias instead.
        settings: of `nn.Conv2d`, such as `dilation`.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int, norm: str, **settings):
        super().__init__()
        padding = kernel // 2 * settings.get("dilation", 1)
        self.conv = nn.Conv2d(
            in_channels, channels, kernel, padding=padding, bias=not norm, **settings
        )
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.bn = get_norm(norm, channels) or nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C_in, h, w) to (N, C, h, w)."""
        return F.relu(self.bn(self.conv(maps)))
