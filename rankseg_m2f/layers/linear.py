"""The linear layer at a CPU's full speed.

PyTorch multiplies float32 matrices by MKL, which runs at about half speed on processors that are
not Intel's. oneDNN, inside PyTorch too, does not, and applies the ReLU while it writes.
"""

import torch
from torch import Tensor, nn


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
        return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, activation, [], "")
    return layer(x).relu() if relu else layer(x)


def _by_onednn(layer: nn.Linear, x: Tensor) -> bool:
    # It has no gradient, and compilers and exporters should see PyTorch's own operators.
    return (
        not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.float32
        and x.numel() > 0
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(layer) is nn.Linear
        and type(x) is Tensor
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
