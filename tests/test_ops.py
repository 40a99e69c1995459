"""Deformable attention: the definition against golden values, and its contract."""

import numpy as np
import pytest
import torch
from golden import FOLDER

from rankseg_m2f.layers.ms_deform_attn import MSDeformAttn
from rankseg_m2f.ops.dispatch import available_backends, ms_deform_attn


def golden_case(i: int) -> dict[str, torch.Tensor]:
    with np.load(FOLDER / "msda.npz") as arrays:
        prefix = f"msda.{i}."
        return {
            key.removeprefix(prefix): torch.from_numpy(value)
            for key, value in arrays.items()
            if key.startswith(prefix)
        }


@pytest.mark.parametrize("backend", [name for name, (ok, _) in available_backends().items() if ok])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_values_and_gradients(i, backend):
    case = golden_case(i)
    names = ("value", "sampling_locations", "attention_weights")
    inputs = [case[name].requires_grad_() for name in names]
    output = ms_deform_attn(inputs[0], case["spatial_shapes"], *inputs[1:], backend=backend)
    torch.testing.assert_close(output, case["output"], rtol=1e-9, atol=1e-12)
    gradients = torch.autograd.grad(output, inputs, case["grad_output"])
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(gradient, case[f"grad_{name}"], rtol=1e-8, atol=1e-10)


def test_what_does_not_fit_is_named():
    case = golden_case(0)
    value, locations = case["value"], case["sampling_locations"]
    weights, shapes = case["attention_weights"], case["spatial_shapes"].tolist()
    with pytest.raises(ValueError, match="153 tokens"):
        ms_deform_attn(value, [(3, 3)], locations, weights)
    with pytest.raises(ValueError, match="sampling_locations"):
        ms_deform_attn(value, shapes, locations[:, :, :2], weights)
    with pytest.raises(ValueError, match="attention_weights"):
        ms_deform_attn(value, shapes, locations, weights[..., :2])
    with pytest.raises(ValueError, match="devices"):
        ms_deform_attn(value, shapes, locations.to("meta"), weights)
    with pytest.raises(ValueError, match="none of torch"):
        ms_deform_attn(value, shapes, locations, weights, backend="abacus")


def test_layer_starts_by_averaging_rays():
    layer = MSDeformAttn(channels=16, levels=2, heads=4, points=3)
    offsets = layer.sampling_offsets.bias.view(4, 2, 3, 2)
    # Head 0 looks right, head 1 down; the p-th point lies p pixels away.
    assert torch.allclose(offsets[0, 1], torch.tensor([[1.0, 0], [2, 0], [3, 0]]), atol=1e-6)
    assert torch.allclose(offsets[1, 0], torch.tensor([[0.0, 1], [0, 2], [0, 3]]), atol=1e-6)
    shapes = [(4, 6), (2, 3)]
    tokens = torch.ones(1, 30, 16)
    output = layer(tokens, torch.full((30, 2), 0.5), tokens, shapes)
    assert output.shape == (1, 30, 16)
    with pytest.raises(ValueError, match="10 channels do not split into 4"):
        MSDeformAttn(channels=10, heads=4)
