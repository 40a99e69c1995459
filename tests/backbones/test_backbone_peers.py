"""The same random weights in our backbones, in timm and in Hugging Face's models."""

import pytest
import timm
import torch
import transformers
from official_backbones import PYRAMID, RESNET_101, VIT_B, build, our_config
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from rankseg_m2f.weights.names.rules import OUR_PREFIX, to_theirs
from rankseg_m2f.weights.names.sources import our_names, source_of

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}


def randomise(model: nn.Module) -> nn.Module:
    """Everything but running variances drawn anew, so that no part is left out by its start."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.2)
    return model.eval()


def load(model: nn.Module, theirs: dict) -> nn.Module:
    ours = our_names(theirs)
    model.load_state_dict({k.removeprefix(OUR_PREFIX): v for k, v in ours.items()})
    return model


def vit(**keys) -> nn.Module:
    cfg = our_config(VIT_B | {"embed_dims": 32, "num_layers": 3, "num_heads": 2})
    cfg.MODEL.VIT.IMG_SIZE = [64, 96]
    cfg.MODEL.VIT.merge_from_list([x for pair in keys.items() for x in pair])
    return build(cfg)


def beit(*out_blocks: int) -> nn.Module:
    cfg = our_config({"type": "BEiT", "img_size": [64, 96], "out_indices": out_blocks, **SMALL})
    return build(cfg)


@torch.no_grad()
@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_vit_of_timm(layer_scale):
    theirs = VisionTransformer(
        (64, 96), num_classes=5, init_values=layer_scale, weight_init="skip", **SMALL
    )
    randomise(theirs)
    ours = load(vit(LAYER_SCALE=layer_scale, OUT_BLOCKS=[0, 2]), theirs.state_dict())
    images = torch.randn(2, 3, 64, 96)
    features = ours(images)
    expected = theirs.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(features["last_feat"], expected, rtol=0, atol=1e-4)
    first = theirs.forward_intermediates(images, indices=[0], intermediates_only=True)[0]
    torch.testing.assert_close(features["block0"], first, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_models_of_timm(name):
    theirs = randomise(timm.create_model(name))
    cfg = our_config(VIT_B | {"img_size": 224, "embed_dims": 192, "num_heads": 3})
    ours = load(build(cfg), theirs.state_dict())
    images = torch.randn(1, 3, 224, 224)
    if "distilled" in name:
        # The second class token is dropped, which changes what the others attend to: ours is
        # timm's plain DeiT with the remaining weights.
        plain = timm.create_model("deit_tiny_patch16_224", num_classes=0).eval()
        kept = our_names(theirs.state_dict())
        plain.load_state_dict({k.removeprefix(OUR_PREFIX): v for k, v in kept.items()})
        theirs = plain
    expected = theirs.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    torch.testing.assert_close(ours(images)["last_feat"], expected, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
def test_beit_of_timm(shared):
    """Raw maps of blocks; res4 is one as it is, res5 one pooled."""
    theirs = Beit(
        (64, 96),
        use_abs_pos_emb=False,
        use_rel_pos_bias=not shared,
        use_shared_rel_pos_bias=shared,
        init_values=0.1,
        **SMALL,
    )
    randomise(theirs)
    ours = beit(0, 1, 2, 1)
    pyramid = {k: v for k, v in ours.state_dict().items() if k.startswith("fpn")}
    ours = load(ours, theirs.state_dict() | pyramid)
    images = torch.randn(2, 3, 64, 96)
    features = ours(images)
    maps = theirs.forward_intermediates(images, indices=[1, 2], intermediates_only=True)
    torch.testing.assert_close(features["res4"], maps[1], rtol=0, atol=1e-4)
    pooled = nn.functional.max_pool2d(maps[0], 2)
    torch.testing.assert_close(features["res5"], pooled, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (65, 97)])
def test_resnet_of_timm(size):
    """timm's deep-stem ResNet at output stride 8 dilates as v1c does."""
    theirs = timm.create_model(
        "resnet50", stem_type="deep", stem_width=32, output_stride=8, num_classes=0
    )
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    theirs.eval()
    mmseg = {}
    for name, value in theirs.state_dict().items():
        name = name.replace("bn1.", "stem.7.", 1) if name.startswith("bn1.") else name
        name = name.replace("conv1.", "stem.", 1) if name.startswith("conv1.") else name
        mmseg[name] = value
    ours = load(build(our_config(RESNET_101 | {"depth": 50})), mmseg)
    images = torch.randn(1, 3, *size)
    features = ours(images)
    x = theirs.maxpool(theirs.act1(theirs.bn1(theirs.conv1(images))))
    for name, stage in zip(PYRAMID, ("layer1", "layer2", "layer3", "layer4"), strict=True):
        x = theirs.get_submodule(stage)(x)
        torch.testing.assert_close(features[name], x, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("on_disk", [False, True])
def test_vit_of_huggingface(on_disk, tmp_path):
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=(64, 96),
        layer_norm_eps=1e-6,
    )
    theirs = randomise(transformers.ViTForImageClassification(config))
    state = saved(theirs, tmp_path) if on_disk else theirs.state_dict()
    ours = load(vit(), state)
    images = torch.randn(2, 3, 64, 96)
    expected = theirs.vit(images).last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(ours(images)["last_feat"], expected, rtol=0, atol=1e-4)
    check_return(ours, state, {"classifier.weight", "classifier.bias"}, on_disk)


@torch.no_grad()
@pytest.mark.parametrize("on_disk", [False, True])
def test_beit_of_huggingface(on_disk, tmp_path):
    config = transformers.BeitConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=64,
        layer_norm_eps=1e-6,
        use_relative_position_bias=True,
        out_indices=[1, 2, 3, 4],
        use_auxiliary_head=False,
    )
    theirs = randomise(transformers.BeitForSemanticSegmentation(config))
    state = saved(theirs, tmp_path) if on_disk else theirs.state_dict()
    keys = {"img_size": [64, 64], "out_indices": [0, 1, 2, 3], **SMALL, "depth": 4}
    renamed = our_names(state)
    ours = build(our_config({"type": "BEiT", **keys}))
    backbone = {k: v for k, v in renamed.items() if k.startswith(OUR_PREFIX)}
    assert all(k.startswith("sem_seg_head.") for k in renamed.keys() - backbone.keys())
    ours.load_state_dict({k.removeprefix(OUR_PREFIX): v for k, v in backbone.items()})
    images = torch.randn(2, 3, 64, 64)
    hidden = theirs.beit(images, output_hidden_states=True).hidden_states[1:]
    maps = [x[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for x in hidden]
    expected = theirs.fpn(maps)
    for feature, other in zip(ours(images).values(), expected, strict=True):
        torch.testing.assert_close(feature, other, rtol=0, atol=1e-4)
    heads = {k for k in state if k.startswith("decode_head.")}
    check_return(ours, state, heads, on_disk)


def saved(model: nn.Module, folder) -> dict:
    """Weights under the names of files."""
    from safetensors.torch import load_file

    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def check_return(ours: nn.Module, state: dict, heads: set[str], on_disk: bool) -> None:
    """Our names become those of files again."""
    named = {OUR_PREFIX + k: v for k, v in ours.state_dict().items()}
    back, left = to_theirs(named, source_of(state))
    assert not left
    if on_disk:
        assert set(back) == state.keys() - heads
        assert all(torch.equal(v, state[k]) for k, v in back.items())
