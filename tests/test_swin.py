"""Swin Transformer: shapes, padding, switches."""

import pytest
import torch
from detectron2.modeling import build_backbone

import rankseg_m2f.registration  # noqa: F401
from rankseg_m2f.config import get_cfg


def build(**keys):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    tiny = {"EMBED_DIM": 8, "DEPTHS": [2, 1, 2, 1], "NUM_HEADS": [1, 2, 2, 4], "WINDOW_SIZE": 4}
    for key, value in (tiny | keys).items():
        cfg.MODEL.SWIN[key] = value
    return build_backbone(cfg)


@pytest.mark.parametrize("size", [(64, 64), (33, 95), (32, 256)])
def test_output_shapes(size):
    model = build().eval()
    features = model(torch.randn(2, 3, *size))
    shape = model.output_shape()
    height, width = (-(-side // 4) for side in size)
    for name, feature in features.items():
        assert feature.shape == (2, shape[name].channels, height, width)
        height, width = -(-height // 2), -(-width // 2)
    assert [shape[f"res{i}"].stride for i in range(2, 6)] == [4, 8, 16, 32]


def test_images_of_a_batch_do_not_meet():
    model = build().eval()
    images = torch.randn(3, 3, 48, 80)
    together = model(images)["res5"]
    for i in range(3):
        torch.testing.assert_close(model(images[i : i + 1])["res5"][0], together[i])


def test_recomputing_blocks_changes_nothing():
    images = torch.randn(1, 3, 64, 64)
    gradients = []
    for use_checkpoint in (False, True):
        torch.manual_seed(1)
        model = build(USE_CHECKPOINT=use_checkpoint, DROP_PATH_RATE=0.0).train()
        model(images)["res5"].sum().backward()
        gradients.append(model.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_drop_path_grows_with_depth_and_rests_at_evaluation():
    model = build(DROP_PATH_RATE=0.5)
    rates = [block.drop_path.rate for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    images = torch.randn(1, 3, 64, 64)
    model.eval()
    assert torch.equal(model(images)["res5"], model(images)["res5"])


def test_options():
    model = build(APE=True, PATCH_NORM=False, QKV_BIAS=False, OUT_FEATURES=["res3", "res5"])
    keys = model.state_dict()
    assert keys["absolute_pos_embed"].shape == (1, 8, 56, 56)
    assert not any("qkv.bias" in key or "norm0" in key or "patch_embed.norm" in key for key in keys)
    assert set(model(torch.randn(1, 3, 64, 64))) == {"res3", "res5"}
    with pytest.raises(ValueError, match="res6"):
        build(OUT_FEATURES=["res6"])
