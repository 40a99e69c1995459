"""The linear layer at a CPU's full speed.

PyTorch multiplies float32 matrices by MKL, which runs at about half speed on processors that are
not Intel's. oneDNN, inside PyTorch too, does not, and applies the ReLU while it writes.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

# Where PyTorch was built without oneDNN there is none.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def apply_linear(layer: nn.Linear, x: Tensor, relu: bool = False) -> Tensor:
    """`layer(x)`, or its ReLU.

    Args:
        layer: from C to C' channels.
        x: (..., C).
        relu: whether negative results become 0.

    Returns:
        (..., C').
    """
    if _by_onednn(layer, x):
        activation = "relu" if relu else "none"
        return _ONEDNN(x, layer.weight, layer.bias, activation, [], "")
    return layer(x).relu() if relu else layer(x)


def _by_onednn(layer: nn.Linear, x: Tensor) -> bool:
    return (
        _ONEDNN is not None
        and torch.backends.mkldnn.enabled
        and x.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.float32
        and x.numel() > 0
        # It has no gradient, and compilers and exporters should see PyTorch's own operators.
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        # What a layer was given besides weights, it should do.
        and type(layer) is nn.Linear
        and not (layer._forward_hooks or layer._forward_pre_hooks)
    )


def _flops(x: Sequence[int], weight: Sequence[int], *args, **kwargs) -> int:
    return 2 * prod(x) * weight[0]


if _ONEDNN is not None and _ONEDNN not in flop_registry:
    register_flop_formula(_ONEDNN)(_flops)
