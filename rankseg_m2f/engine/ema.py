"""An exponential moving average of a model's weights (SOLVER.EMA_DECAY)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rankseg_m2f.errors import UserError


class WeightAverage:
    """Follows a model's weights: average = decay · average + (1 − decay) · weights.

    All floating-point state takes part, running statistics of batch norm included; the rest, such
    as counters, is the model's own.
    """

    def __init__(self, model: nn.Module, decay: float):
        """
        Args:
            model: on its device; its tensors must stay the same objects.
            decay: of one step, in (0, 1).

        Raises:
            UserError: out of range.
        """
        if not 0 < decay < 1:
            raise UserError(f"SOLVER.EMA_DECAY={decay} is not in [0, 1)")
        self.decay = decay
        self._in_model = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
        # The average, or while it is applied the weights.
        self._aside = {k: v.clone() for k, v in self._in_model.items()}
        self._applied = False

    def restart(self) -> None:
        """Start from the model's weights of now."""
        _copy(self._in_model, self._aside)

    @torch.no_grad()
    def update(self) -> None:
        """Take one step after the model took one."""
        for name, average in self._aside.items():
            average.lerp_(self._in_model[name], 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds its average inside the block."""
        if self._applied:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @property
    def weights(self) -> dict[str, Tensor]:
        """What training goes on from, wherever it lies at the moment."""
        return self._aside if self._applied else self._in_model

    def resume(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from `weights`, where the model has just been given the average.

        Raises:
            UserError: weights of another model.
        """
        if weights.keys() != self._in_model.keys():
            odd = min(weights.keys() ^ self._in_model.keys())
            raise UserError(f"the weights beside the moving average are another model's ({odd})")
        self.restart()
        _copy(weights, self._in_model)

    def _swap(self) -> None:
        before = {name: value.clone() for name, value in self._in_model.items()}
        _copy(self._aside, self._in_model)
        _copy(before, self._aside)
        self._applied = not self._applied


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
