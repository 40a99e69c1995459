"""The backends of deformable attention: a table, and the choice among them."""

import importlib
import os
from functools import lru_cache
from types import ModuleType

import torch

# Name -> module with `forward`, `backward`, both `_from_offsets`, `unavailable_reason` and `ABOUT`;
# the first that can serve is taken.
BACKENDS = {
    "native": "rankseg_m2f.ops.native",
    "triton": "rankseg_m2f.ops.triton",
    "torch": "rankseg_m2f.ops.reference",
}
# Overrides the choice for the whole process.
VARIABLE = "RANKSEG_M2F_MS_DEFORM_ATTN"


def available_backends(
    device_type: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, tuple[bool, str]]:
    """Each backend's name -> (whether it can serve such tensors, what it is or why not)."""
    found = {}
    for name in BACKENDS:
        trouble = _problem(name, device_type, dtype)
        found[name] = (True, _module(name).ABOUT) if trouble is None else (False, trouble)
    return found


def choose(name: str, device_type: str, dtype: torch.dtype) -> ModuleType:
    """The backend of that name, or if empty that of the environment variable, or the first.

    Raises:
        ValueError: an unknown backend, or one that cannot serve such tensors.
    """
    origin = "" if name else f"${VARIABLE}: "
    name = name or os.environ.get(VARIABLE, "")
    if not name:
        return _first(device_type, dtype)
    if name not in BACKENDS:
        raise ValueError(f"{origin}backend {name!r} must be one of {', '.join(BACKENDS)}")
    trouble = _problem(name, device_type, dtype)
    if trouble is not None:
        raise ValueError(
            f"{origin}backend {name!r} cannot serve {dtype} on {device_type}: {trouble}"
        )
    return _module(name)


@lru_cache
def _first(device_type: str, dtype: torch.dtype) -> ModuleType:
    return next(_module(b) for b in BACKENDS if _problem(b, device_type, dtype) is None)


@lru_cache
def _problem(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    try:
        return _module(name).unavailable_reason(device_type, dtype)
    except ImportError as error:
        return f"{error.name or 'a library it needs'} is not installed"


def _module(name: str) -> ModuleType:
    return importlib.import_module(BACKENDS[name])
