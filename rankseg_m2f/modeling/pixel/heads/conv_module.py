"""The one building block of convolutional heads."""

import torch.nn.functional as F
from detectron2.layers import get_norm
from torch import Tensor, nn


class ConvModule(nn.Module):
    """Convolution without bias, batch norm, ReLU; the size of maps stays.

    Args:
        kernel: odd side of the kernel.
        norm: one of Detectron2's names of batch norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        dilation: int = 1,
        norm: str = "SyncBN",
    ):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            bias=False,
        )
        self.bn = get_norm(norm, out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C', h, w)."""
        return F.relu(self.bn(self.conv(maps)))


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (N, C, h, w) at another size (H, W), bilinearly; pixels are areas, not points."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
