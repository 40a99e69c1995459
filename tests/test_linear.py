"""The linear layer by oneDNN is PyTorch's, and gives way to all that watches a layer."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rankseg_m2f.layers import linear
from rankseg_m2f.layers.linear import apply_linear


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(16,), (7, 16), (2, 7, 16), (0, 16)])
def test_linear_is_the_layer(relu, shape):
    layer = torch.nn.Linear(16, 8)
    x = torch.randn(shape)
    expected = layer(x).relu() if relu else layer(x)
    torch.testing.assert_close(apply_linear(layer, x, relu), expected)
    with torch.no_grad():
        torch.testing.assert_close(apply_linear(layer, x, relu), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert apply_linear(layer, x, relu).dtype == torch.bfloat16
        wide = layer.double()
        torch.testing.assert_close(apply_linear(wide, x.double(), relu).float(), expected)


@pytest.fixture
def onednn(monkeypatch):
    """Calls that oneDNN gets."""
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return torch.ops.mkldnn._linear_pointwise(*arguments)

    monkeypatch.setattr(linear, "_ONEDNN", counted)
    return calls


def test_inference_alone_takes_onednn(onednn):
    layer, x = nn.Linear(16, 8), torch.randn(3, 16)
    apply_linear(layer, x).sum().backward()
    assert layer.weight.grad is not None and not onednn
    with torch.no_grad():
        apply_linear(layer, x)
    with torch.inference_mode():
        apply_linear(layer, x)
    assert len(onednn) == 2


@torch.no_grad()
def test_hooks_and_subclasses_are_heeded(onednn):
    layer, x = nn.Linear(16, 8), torch.randn(3, 16)
    with_hook, seen = nn.Linear(16, 8), []
    with_hook.register_forward_hook(lambda *_: seen.append(True))
    apply_linear(with_hook, x)
    halved = nn.utils.parametrizations.weight_norm(layer)
    torch.testing.assert_close(apply_linear(halved, x), halved(x))
    assert seen == [True] and not onednn


@torch.no_grad()
def test_without_onednn_pytorch_serves(onednn):
    layer, x = nn.Linear(16, 8), torch.randn(3, 16)
    with torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(apply_linear(layer, x, relu=True), layer(x).relu())
    assert not onednn


@torch.no_grad()
def test_operations_are_counted():
    with FlopCounterMode(display=False) as counter:
        apply_linear(nn.Linear(16, 8), torch.randn(2, 3, 16), relu=True)
    assert counter.get_total_flops() == 2 * 6 * 16 * 8
