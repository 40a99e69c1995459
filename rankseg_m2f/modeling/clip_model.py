"""What models of clips share: how images come in."""

import torch
from torch import Tensor, nn

from rankseg_m2f.structures.clip import ClipBatch


class ClipModel(nn.Module):
    """A model whose input is Detectron2's dataset dicts of images or clips."""

    def __init__(self, pixel_mean: list[float], pixel_std: list[float], size_divisibility: int):
        """
        Args:
            pixel_mean, pixel_std: of the three channels, in the order of INPUT.FORMAT.
            size_divisibility: input is padded to a multiple of it.
        """
        super().__init__()
        self.size_divisibility = size_divisibility
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @staticmethod
    def input_settings(cfg, backbone: nn.Module) -> dict:
        """Arguments of `__init__` by config."""
        divisor = cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY
        return {
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": divisor if divisor >= 0 else backbone.size_divisibility,
        }

    @property
    def device(self) -> torch.device:
        """Where inputs are moved to."""
        return self.pixel_mean.device

    def clips(self, batched_inputs: list[dict]) -> ClipBatch:
        """The inputs as the backbone takes them; see `ClipBatch.from_inputs`."""
        return ClipBatch.from_inputs(
            batched_inputs, self.normalise, self.size_divisibility, self.device
        )

    def normalise(self, frame: Tensor) -> Tensor:
        """(3, h, w) of any dtype to float with zero mean and unit deviation."""
        return (frame - self.pixel_mean) / self.pixel_std
