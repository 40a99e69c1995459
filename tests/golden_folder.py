"""What folders of golden data of pixel segmentors share, whatever the model."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass
class GoldenFolder:
    """One official model with what went in and what came out."""

    folder: Path

    @cached_property
    def meta(self) -> dict:
        """Facts about the case."""
        return json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        """What the official code gave."""
        return self.tensors("outputs.npz")

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Arrays of a file."""
        with np.load(self.folder / name) as arrays:
            return {k: torch.from_numpy(v) for k, v in arrays.items()}
