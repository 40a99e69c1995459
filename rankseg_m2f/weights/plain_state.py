"""Training state in types that are read back without trust."""

import logging
from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class _NotPlainError(TypeError):
    """Only a trusting reader could read a value."""


def plain_state(state: Mapping, where: str = "") -> dict:
    """State in types that torch.load reads with weights_only.

    These are tensors, str, bytes, int, float, complex, bool, None, torch's Size, dtype and device,
    and dicts, lists, tuples and sets of them; NumPy's scalars and arrays become numbers and
    tensors. An entry of a dict that holds anything else, such as a function or a scheduler
    object, is left out with a warning.
    """
    kept = Counter() if isinstance(state, Counter) else {}
    for key, value in state.items():
        try:
            kept[_plain(key, where)] = _plain(value, f"{where}{key}.")
        except _NotPlainError as error:
            logger.warning("%s%s is not saved: it holds a %s", where, key, error)
    return kept


def _plain(value: object, where: str) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value)
    if isinstance(value, Mapping):
        return plain_state(value, where)
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, (list, tuple, set)):
        base = next(t for t in (list, tuple, set) if isinstance(value, t))
        return base(_plain(v, where) for v in value)
    if isinstance(value, Tensor):
        return value.detach()
    known = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device)
    if type(value) not in known:
        raise _NotPlainError(type(value).__name__)
    return value
