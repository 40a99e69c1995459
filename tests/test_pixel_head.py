"""RankSeg in a segmentor of pixels."""

import re

import pytest
import torch
from conftest import ROOT
from torch import nn

from rankseg_m2f.engine import predictor
from rankseg_m2f.modeling.pixel.ranked_pixel_head import RankedPixelHead
from rankseg_m2f.rankseg.head import HEADS
from rankseg_m2f.rankseg.hints import LabelHints
from rankseg_m2f.weights.metadata import label_names

K = 9


class ToySegmentor(nn.Module):
    """A pixel classifier over features at a quarter of the size, and RankSeg on top."""

    def __init__(self, **settings):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 1))
        self.classifier = nn.Conv2d(16, K, 1)
        self.rank = RankedPixelHead(K, 16, hidden_dim=32, dropout=0.0, **settings)

    def forward(self, images, target=None):
        features = self.backbone(images)
        return self.rank(self.classifier(features), features[:, :, ::4, ::4], target)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("batch", "kappa"), [(1, 1), (3, 3), (3, K), (1, K + 17)])
def test_losses_reach_all_and_logits_are_scattered(head, batch, kappa):
    model = ToySegmentor(kappa=kappa, head=head, temperature="rank", keep_present=True)
    images, target = torch.randn(batch, 3, 16, 16), torch.randint(0, K, (batch, 8, 8))
    target[:, 0] = 255
    sum(model(images, target).values()).backward()
    # A cross-entropy over one label is 0: with κ = 1 only the multi-label loss teaches.
    idle = ("classifier", "rank.ml_norm") if kappa == 1 else ()
    for name, parameter in model.named_parameters():
        assert (parameter.grad.abs().sum() > 0) == (not name.startswith(idle)), name
    logits = model(images)
    assert logits.shape == (batch, K, 8, 8)
    selected = (logits != -100).flatten(2).any(2).sum(1)
    assert (selected == min(kappa, K)).all()


def test_pixels_of_labels_not_selected_are_ignored():
    model = ToySegmentor(kappa=2)
    images, target = torch.randn(1, 3, 16, 16), torch.zeros(1, 8, 8, dtype=torch.int64)
    selected = (model(images) != -100).flatten(2).any(2)[0]
    target[:] = int((~selected).nonzero()[0])
    assert model(images, target)["loss_seg"] == 0
    target[:] = 255
    losses = model(images, target)
    assert losses["loss_seg"] == 0 and torch.isfinite(losses["loss_ml"])
    keeping = ToySegmentor(kappa=2, keep_present=True)
    target[:, :4] = int((~selected).nonzero()[0])
    assert keeping(images, target)["loss_seg"] > 0


def readmes_blocks(of_engine: bool) -> list[str]:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [block for block in blocks if ("engine" in block) == of_engine]


def test_readmes_example_promises_what_its_config_gives(monkeypatch):
    calls = []
    monkeypatch.setattr(predictor, "load_model", lambda cfg, **_: (None, None))
    monkeypatch.setattr(predictor.Predictor, "__call__", lambda _, *inputs: calls.append(inputs))
    monkeypatch.chdir(ROOT)
    (block,) = readmes_blocks(of_engine=True)
    names = {"rgb_image": "an image"}
    exec(block, names)
    (image,), (_, hints) = calls
    assert image == "an image"
    cfg = names["cfg"]
    sky = label_names(cfg).index("sky")
    assert hints == LabelHints(deny=[sky])
    test = cfg.MODEL.MASK_FORMER.TEST
    given = {
        "sem_seg": test.SEMANTIC_ON,
        "panoptic_seg": test.PANOPTIC_ON,
        "instances": test.INSTANCE_ON,
        "label_ranking": cfg.MODEL.RANKSEG.FLAG,
    }
    promised = block.partition("predictor(rgb_image)")[2].partition("#")[2].splitlines()[0]
    assert promised.strip().split(", ") == [name for name, on in given.items() if on]


def test_readmes_blocks_that_need_no_checkpoint_run():
    blocks = readmes_blocks(of_engine=False)
    assert len(blocks) == 2
    # More ranks than a label map of bytes could tell from 255.
    batch, num_labels, in_channels, kappa = 2, 300, 16, 280
    features, class_weight = torch.randn(batch, in_channels, 4, 4), torch.randn(num_labels, 16)
    pixel_logits = torch.einsum("kc,bchw->bkhw", class_weight, features)
    presence_logits = torch.arange(num_labels).flip(0).float().expand(batch, -1)
    label_map = torch.randint(0, num_labels, (batch, 4, 4))
    label_map[:, 0] = torch.tensor([255, 279, 280, 299])
    names = dict(locals())
    for block in blocks:
        exec(block, names)
    # Labels stand at the ranks of their ids.
    torch.testing.assert_close(names["selected"], pixel_logits[:, :kappa])
    # One 1/τ per rank, and nothing else.
    assert [p.shape for p in names["temperature"].parameters()] == [(kappa,)]
    expected = names["temperature"](pixel_logits[:, :kappa], dim=1)
    torch.testing.assert_close(names["logits"], expected)
    assert torch.equal(names["target"], label_map.where(label_map < kappa, -1))
    assert names["losses"].keys() == {"loss_seg", "loss_ml"}
    assert all(torch.isfinite(loss) and loss > 0 for loss in names["losses"].values())
    selected = (names["full"] != -100).flatten(2).any(2).sum(1)
    assert names["full"].shape == pixel_logits.shape and (selected == kappa).all()


def test_a_toy_learns():
    """Colour says the label; three of nine are in each image."""
    model = ToySegmentor(kappa=4, temperature="layernorm", keep_present=True)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    colours = torch.randn(K, 3)

    def scene():
        labels = torch.rand(8, K).argsort(1)[:, :3]
        target = labels.gather(1, torch.randint(0, 3, (8, 64))).view(8, 8, 8)
        images = colours[target].permute(0, 3, 1, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
        return images, target

    for _ in range(150):
        optimizer.zero_grad()
        sum(model(*scene()).values()).backward()
        optimizer.step()
    images, target = scene()
    assert (model(images).argmax(1) == target).float().mean() > 0.8
