"""What every plain backbone must do: batches, odd sizes, autocast, compilation, clear errors."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from official_backbones import BEIT_L, RESNET_101, VIT_B, build, our_config

from rankseg_m2f.errors import UserError
from rankseg_m2f.modeling.backbone.adapter_blocks import cell_centres, windowed_block
from rankseg_m2f.modeling.backbone.timm_models import timm_vit

SPANS = [[0, 0], [1, 1], [2, 2], [3, 3]]
ADAPTER = {
    "conv_inplane": 4,
    "deform_num_heads": 2,
    "deform_ratio": 0.5,
    "interaction_indexes": SPANS,
}
BEIT = BEIT_L | {"img_size": 64, "embed_dim": 16, "depth": 4, "num_heads": 2}
OFFICIAL = {
    "vit": VIT_B | {"img_size": 64, "embed_dims": 16, "num_layers": 2, "num_heads": 2},
    "vit with label tokens": VIT_B
    | {"img_size": 64, "embed_dims": 16, "num_layers": 2, "num_heads": 2}
    | {"with_cls_emb": True, "num_classes": 5, "cls_emb_start_layer": 1},
    "beit": BEIT | {"out_indices": [0, 1, 2, 3]},
    "resnet": RESNET_101 | {"depth": 50, "base_channels": 4, "stem_channels": 8},
    "beit adapter": BEIT | ADAPTER | {"type": "BEiTAdapter"},
    "vit adapter": BEIT
    | ADAPTER
    | {"type": "ViTAdapter", "pretrain_size": 64}
    | {"window_attn": [True, False] * 2, "window_size": [3, None] * 2},
}
ALL = pytest.mark.parametrize("name", OFFICIAL)


def make(name: str, *overrides):
    cfg = our_config(OFFICIAL[name])
    cfg.merge_from_list(list(overrides))
    model = build(cfg)
    for parameter in model.parameters():
        # Away from starts, such as injectors of zero, that hide parts.
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
@ALL
def test_images_of_a_batch_do_not_meet(name):
    model = make(name)
    images = torch.randn(3, 3, 64, 64)
    together = model(images)
    for i in range(3):
        for key, feature in model(images[i : i + 1]).items():
            torch.testing.assert_close(feature[0], together[key][i], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@ALL
@pytest.mark.parametrize("size", [(64, 64), (41, 64), (33, 17)])
def test_shapes(name, size):
    model = make(name)
    shapes = model.output_shape()
    features = model(torch.randn(2, 3, *size))
    assert set(features) - {"cls_emb"} == set(shapes)
    for key, shape in shapes.items():
        sides = tuple(-(-side // shape.stride) for side in size)
        if name == "resnet":  # strides 4, 8, 8, 8: a dilated stage keeps its size
            sides = tuple(-(-side // min(shape.stride, 8)) for side in size)
        assert features[key].shape == (2, shape.channels, *sides)
    if "cls_emb" in features:
        assert features["cls_emb"].shape == (2, 5, 16)


@torch.no_grad()
@pytest.mark.parametrize("name, side", [("vit", 48), ("vit adapter", 64)])
def test_odd_sizes_are_padded_with_zeros(name, side):
    model = make(name)
    images = torch.randn(2, 3, 41, 35)
    padded = model(F.pad(images, (0, side - 35, 0, side - 41)))
    for key, feature in model(images).items():
        height, width = feature.shape[-2:]
        torch.testing.assert_close(feature, padded[key][..., :height, :width])


@torch.no_grad()
@pytest.mark.parametrize("name", ["beit", "beit adapter"])
def test_one_size_of_image(name):
    model = make(name)
    images = torch.randn(1, 3, 33, 50)
    padded = model(F.pad(images, (0, 14, 0, 31)))
    for key, feature in model(images).items():
        height, width = feature.shape[-2:]
        torch.testing.assert_close(feature, padded[key][..., :height, :width])
    with pytest.raises(UserError, match=r"80x64 .* sliding windows"):
        model(torch.randn(1, 3, 80, 64))


@torch.no_grad()
def test_what_makes_the_position_embedding_resized():
    """64 x 64 pixels are 4 x 4 patches; 32 x 128 are as many."""
    tokens, grid = (make("vit", "MODEL.VIT.POSITION_TRIGGER", t) for t in ("tokens", "grid"))
    grid.load_state_dict(tokens.state_dict())
    for size, equal in (((64, 64), True), ((96, 80), True), ((32, 128), False)):
        images = torch.randn(1, 3, *size)
        one, other = (model(images)["last_feat"] for model in (tokens, grid))
        assert torch.equal(one, other) is equal


@ALL
def test_autocast(name):
    model = make(name).train()
    images = torch.randn(2, 3, 64, 64)
    exact = model.eval()(images)
    with torch.autocast("cpu", torch.bfloat16):
        features = model(images)
        sum(x.float().square().mean() for x in features.values()).backward()
    for key, feature in features.items():
        assert feature.isfinite().all()
        error = (feature.float() - exact[key]).norm() / exact[key].norm()
        assert error < 0.1, (key, error)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@ALL
def test_every_parameter_learns(name):
    rates = ("MODEL.VIT.DROP_PATH_RATE", 0.0, "MODEL.BEIT.DROP_PATH_RATE", 0.0)
    model = make(name, *rates).train()
    features = model(torch.randn(2, 3, 64, 64))
    sum((x * torch.randn_like(x)).sum() for x in features.values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@ALL
def test_compilation_without_a_break(name):
    model = make(name)
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    torch._dynamo.reset()
    features = torch.compile(model, backend="aot_eager", fullgraph=True)(images)
    for key, feature in features.items():
        torch.testing.assert_close(feature, expected[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name, key",
    [
        ("vit", "MODEL.VIT.USE_CHECKPOINT"),
        ("beit", "MODEL.BEIT.USE_CHECKPOINT"),
        ("beit adapter", "MODEL.BEIT.USE_CHECKPOINT"),
        ("vit adapter", "MODEL.VIT.USE_CHECKPOINT"),
    ],
)
def test_recomputing_blocks_changes_nothing(name, key):
    images = torch.randn(2, 3, 64, 64)
    plain = make(name)
    recomputed = make(name, key, True)
    recomputed.load_state_dict(plain.state_dict())
    gradients = []
    for model in (plain, recomputed):
        model.train()
        for module in model.modules():
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
            if hasattr(module, "rate"):
                module.rate = 0.0
        sum(x.square().sum() for x in model(images).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name, key",
    [
        ("vit", "MODEL.VIT.DROP_PATH_RATE"),
        ("beit", "MODEL.BEIT.DROP_PATH_RATE"),
        ("beit adapter", "MODEL.BEIT.DROP_PATH_RATE"),
        ("vit adapter", "MODEL.VIT.DROP_PATH_RATE"),
    ],
)
def test_drop_path_grows_to_its_rate(name, key):
    model = make(name, key, 0.3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    expected = torch.linspace(0, 0.3, len(rates)).tolist()
    assert rates == pytest.approx(expected)
    images = torch.randn(1, 3, 64, 64).expand(2, -1, -1, -1)
    feature = model(images)[next(iter(model.output_shape()))]
    torch.testing.assert_close(feature[0], feature[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_stays_inside_windows():
    """2 x 4 patches in windows of 2 are two halves that do not see each other."""
    vit = timm_vit(img_size=64, embed_dim=8, depth=1, num_heads=2, norm_eps=1e-6).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    block, x = vit.blocks[0], torch.randn(2, 8, 8)
    halves = x.unflatten(1, (2, 4)).split(2, dim=2)
    expected = [block(half.flatten(1, 2)).unflatten(1, (2, 2)) for half in halves]
    torch.testing.assert_close(
        windowed_block(block, x, (2, 4), 2), torch.cat(expected, dim=2).flatten(1, 2)
    )


def test_centres_of_cells():
    centres = cell_centres([(1, 2), (2, 1)], torch.zeros(()))
    assert centres.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]


@pytest.mark.parametrize(
    "name, key, value, match",
    [
        ("vit", "MODEL.VIT.OUT_BLOCKS", [2], r"OUT_BLOCKS \[2\]"),
        ("vit", "MODEL.VIT.POSITION_RESIZE", "nearest", "must be one of"),
        ("vit", "MODEL.VIT.POSITION_TRIGGER", "size", "must be one of"),
        ("vit", "MODEL.VIT.LABEL_TOKENS_FROM", 2, "LABEL_TOKENS_FROM"),
        ("beit", "MODEL.BEIT.OUT_BLOCKS", [1, 2, 3], "four blocks"),
        ("resnet", "MODEL.RESNETS.DEPTH", 18, "DEPTH is 18"),
        ("beit adapter", "MODEL.BEIT.IMG_SIZE", [48, 48], "multiples of 32"),
        ("beit adapter", "MODEL.VIT_ADAPTER.INTERACTIONS", SPANS[:3], "four spans"),
        ("vit adapter", "MODEL.VIT_ADAPTER.WINDOWS", [3], "one for each of 4 blocks"),
        ("vit adapter", "MODEL.VIT.PATCH_SIZE", 8, "patches of 16"),
    ],
)
def test_a_wrong_key_is_named(name, key, value, match):
    with pytest.raises(UserError, match=match):
        make(name, key, value)


def test_timm_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install rankseg_m2f\[vit\]"):
        make("vit")


def test_no_backbone_imports_timm_before_it_is_built():
    names = ("vit", "beit", "vit_adapter", "resnet_v1c")
    lines = [f"import rankseg_m2f.modeling.backbone.{name}" for name in names]
    code = "\n".join(["import sys", "sys.modules['timm'] = None", *lines])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
