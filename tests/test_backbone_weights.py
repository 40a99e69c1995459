"""ImageNet weights in other libraries' names: the same features, and Swin's windows resized."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_backbone
from torch import nn
from torchvision.models import resnet50
from weights_made import arrays, save_pkl, save_pth

import rankseg_m2f.registration  # noqa: F401
from rankseg_m2f.config import get_cfg
from rankseg_m2f.weights.checkpoint import Checkpointer
from rankseg_m2f.weights.swin_windows import fit_windows

RESNET = [
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.STEM_TYPE", "basic"),
    *("MODEL.RESNETS.STRIDE_IN_1X1", "False", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
]
SWIN = [
    *("MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", "8"),
    *("MODEL.SWIN.DEPTHS", "[2, 1, 2, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2, 2, 4]"),
]


class Segmentor(nn.Module):
    """A backbone under the name it has in our models."""

    def __init__(self, *overrides):
        super().__init__()
        cfg = get_cfg()
        cfg.merge_from_list(list(overrides))
        self.backbone = build_backbone(cfg)


def load(model, path, **kwargs):
    checkpointer = Checkpointer(model, **kwargs)
    checkpointer.load(path)
    return checkpointer.report


@pytest.fixture(scope="module")
def resnet():
    return Segmentor(*RESNET)


@pytest.fixture(scope="module")
def torchvision():
    """A ResNet-50 whose norms do something."""
    torch.manual_seed(0)
    model = resnet50(weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def torchvision_features(model, images):
    features = {}
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    for i in (1, 2, 3, 4):
        x = features[f"res{i + 1}"] = model.get_submodule(f"layer{i}")(x)
    return features


def assert_same_features(model, torchvision):
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = model.eval().backbone(images), torchvision_features(torchvision, images)
    for name, features in expected.items():
        torch.testing.assert_close(found[name], features, rtol=1e-4, atol=1e-5)
        assert features.std() > 0.1


def test_torchvisions_resnet_has_the_same_features(tmp_path, resnet, torchvision):
    model = copy.deepcopy(resnet)
    report = load(model, save_pth(tmp_path / "resnet50.pth", torchvision.state_dict()))
    assert report.complete and report.coverage() == {"backbone": 1.0}
    assert_same_features(model, torchvision)


def caffe2_name(name):
    """Of torchvision's: letters for convolutions, one affine map for a norm."""
    words = name.split(".")
    kind = {"weight": "s", "bias": "b"}[words[-1]]
    if len(words) == 2:
        return "conv1_w" if words[0] == "conv1" else f"res_conv1_bn_{kind}"
    block = f"res{int(words[0][-1]) + 1}_{words[1]}"
    if words[2] == "downsample":
        return f"{block}_branch1_" + ("w" if words[3] == "0" else f"bn_{kind}")
    branch = f"{block}_branch2{' abc'[int(words[2][-1])]}_"
    return branch + ("w" if words[2].startswith("conv") else f"bn_{kind}")


def caffe2_state(model):
    """As Detectron1 wrote it: running statistics are folded into the affine map."""
    state = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            state[caffe2_name(f"{name}.weight")] = module.weight.detach()
        if isinstance(module, nn.BatchNorm2d):
            scale = (module.weight * (module.running_var + module.eps).rsqrt()).detach()
            state[caffe2_name(f"{name}.weight")] = scale
            state[caffe2_name(f"{name}.bias")] = module.bias.detach() - module.running_mean * scale
    return state


def test_caffe2s_resnet_has_the_same_features(tmp_path, resnet, torchvision):
    state = arrays(caffe2_state(torchvision))
    assert {"conv1_w", "res_conv1_bn_s", "res2_0_branch1_w", "res5_2_branch2c_bn_b"} <= set(state)
    unused = {"fc1000_w", "fc1000_b", "conv1_b", "res2_0_branch2a_w_momentum"}
    state |= dict.fromkeys(unused, state["conv1_w"])
    model = copy.deepcopy(resnet)
    report = load(model, save_pkl(tmp_path / "R-50.pkl", state))
    assert not report.unexpected and not report.mismatched
    assert all("running_" in name for name in report.missing)
    assert report.coverage()["backbone"] > 0.99
    assert_same_features(model, torchvision)


def test_tables_are_resized_as_swins_authors_do():
    table = torch.randn(13 * 13, 3)
    ours = {"a.relative_position_bias_table": torch.empty(23 * 23, 3)}
    fitted, note = fit_windows({"a.relative_position_bias_table": table}, ours)
    assert note == "Position biases of Swin are resized from windows of 7 to 12."
    maps = table.T.view(1, 3, 13, 13)
    expected = F.interpolate(maps, (23, 23), mode="bicubic").view(3, 23 * 23).T
    assert torch.equal(fitted["a.relative_position_bias_table"], expected)


def test_a_map_that_grows_keeps_its_shape():
    """Rows stay rows, heads stay heads: a ramp by row, and another head that is constant."""
    rows = torch.arange(7.0).repeat_interleave(7)
    table = torch.stack([rows, torch.full_like(rows, 5)], dim=1)
    name = "a.relative_position_bias_table"
    fitted, _ = fit_windows({name: table}, {name: torch.empty(15 * 15, 2)})
    ramp, constant = fitted[name].T.reshape(2, 15, 15)
    assert torch.allclose(constant, torch.tensor(5.0))
    assert torch.allclose(ramp, ramp[:, :1]) and (ramp[:, 0].diff() > 0).all()


@pytest.mark.parametrize(
    ("rows", "heads", "wanted"),
    [(50, 2, (81, 2)), (49, 3, (81, 2)), (49, 2, (49, 2))],
    ids=["no square", "other heads", "same"],
)
def test_other_tables_are_left_alone(rows, heads, wanted):
    name = "a.relative_position_bias_table"
    theirs = {name: torch.ones(rows, heads), "b": torch.ones(1)}
    fitted, note = fit_windows(theirs, {name: torch.ones(wanted)})
    assert note is None and fitted.keys() == theirs.keys() and fitted[name] is theirs[name]


def test_windows_are_resized_for_training_alone(tmp_path):
    small = Segmentor(*SWIN, "MODEL.SWIN.WINDOW_SIZE", "4")
    large = Segmentor(*SWIN, "MODEL.SWIN.WINDOW_SIZE", "6")
    path = save_pth(tmp_path / "swin.pth", {"model": small.backbone.state_dict()})
    tables = {n: v.clone() for n, v in large.state_dict().items() if n.endswith("bias_table")}
    with pytest.raises(ValueError, match=r"other shapes: .*bias_table \(49, 1\) for \(121, 1\)"):
        load(large, path, for_evaluation=True)
    assert all(torch.equal(large.state_dict()[name], value) for name, value in tables.items())
    report = load(large, path)
    assert "resized from windows of 4 to 6" in report.describe()
    assert not report.mismatched and not report.unexpected
    assert set(tables) <= set(report.matched) and len(tables) == 6
    assert not any(torch.equal(large.state_dict()[name], value) for name, value in tables.items())
    assert large.backbone(torch.randn(1, 3, 64, 96))["res5"].isfinite().all()
