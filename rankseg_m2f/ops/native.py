"""Deformable attention in C++ for the CPU (csrc/), if setup.py could build it.

The library needs no compiler to use and none to install: without it, or with one that does not fit
this PyTorch or these sources, another backend serves.
"""

import hashlib
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
ABOUT = "C++, CPU"
HERE = Path(__file__).parent
REBUILD = "build it with: pip install --no-build-isolation --no-deps -e . (needs a C++ compiler)"
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def unavailable_reason(device_type: str, dtype: torch.dtype) -> str | None:
    """Why it cannot serve such tensors; None if it can."""
    if device_type != "cpu":
        return "CPU only"
    if dtype not in _DTYPES:
        return f"no {dtype}"
    return load()


def forward(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """See `rankseg_m2f.ops.dispatch.ms_deform_attn`; `shapes` is flat (h, w, h, w, ...)."""
    return torch.ops.rankseg_m2f_native.forward(value, shapes, locations, weights)


def backward(
    grad_output: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights; the same bits with any number of threads."""
    return torch.ops.rankseg_m2f_native.backward(grad_output, value, shapes, locations, weights)


def forward_from_offsets(
    value: Tensor, shapes: Sequence[int], offsets: Tensor, logits: Tensor
) -> Tensor:
    """See `rankseg_m2f.ops.dispatch.ms_deform_attn_from_offsets`; `shapes` is flat."""
    return torch.ops.rankseg_m2f_native.forward_from_offsets(value, shapes, offsets, logits)


def backward_from_offsets(
    grad_output: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    offsets: Tensor,
    logits: Tensor,
    output: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, offsets and logits; `output` is not read."""
    return torch.ops.rankseg_m2f_native.backward_from_offsets(
        grad_output, value, shapes, offsets, logits
    )


def source_hash() -> str:
    """What the binary must have been built from."""
    digest = hashlib.sha256()
    for path in sorted((HERE / "csrc").glob("*.*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def load() -> str | None:
    """Load the library once; None, or what is wrong."""
    found = sorted(HERE.glob("_native*"))
    if not found:
        return f"not built; {REBUILD}"
    trouble = None
    try:
        torch.ops.load_library(found[0])
        if torch.ops.rankseg_m2f_native.source() != source_hash():
            trouble = "built from other sources"
    except (OSError, AttributeError, RuntimeError) as error:
        trouble = f"does not load ({str(error).splitlines()[0]})"
    if trouble is None:
        return None
    logger.warning("The C++ deformable attention %s, so a slower one is used; %s", trouble, REBUILD)
    return f"{trouble}; {REBUILD}"
