"""README's Python: what it promises of a config, and RankSeg around segmentors of others."""

import re

import torch
from conftest import ROOT
from torch import nn

from rankseg_m2f.engine import predictor
from rankseg_m2f.rankseg.hints import LabelHints
from rankseg_m2f.rankseg.labels import RankedLabels
from rankseg_m2f.rankseg.temperature import RankTemperature
from rankseg_m2f.weights.metadata import label_names

# README's blocks of Python, in their order.
OURS, DETECTRON2S, ANY_MODULE, DEEPLAB = range(4)


def readmes_blocks() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    return blocks


def test_readmes_example_promises_what_its_config_gives(monkeypatch):
    calls = []
    monkeypatch.setattr(predictor, "load_model", lambda cfg, **_: (None, None))
    monkeypatch.setattr(predictor.Predictor, "__call__", lambda _, *inputs: calls.append(inputs))
    monkeypatch.chdir(ROOT)
    block = readmes_blocks()[OURS]
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


# More ranks than a label map of bytes could tell from 255.
K, KAPPA = 300, 280


def foreign_names():
    """What README's blocks take as given: a module, images, a label map, numbers."""
    torch.manual_seed(0)
    label_map = torch.randint(0, K, (2, 64, 48))
    label_map[:, 0] = 255
    label_map[:, 1] = -1
    return {
        "model": nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, K, 1)),
        "images": torch.randn(2, 3, 64, 48),
        "label_map": label_map,
        "num_labels": K,
        "kappa": KAPPA,
        "progress": 1.0,
    }


def learns(*modules):
    grads = [p.grad for module in modules for p in module.parameters()]
    return all(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_any_module_takes_rankseg():
    block, names = readmes_blocks()[ANY_MODULE], foreign_names()
    exec(block, names)
    losses, ranked = names["losses"], names["ranked"]
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    assert ranked.kappa == KAPPA and names["policy"].ranks == K
    # Upsampled by us, and the mean over all pixels, by hand.
    logits = names["temperature"](ranked.gather(names["logits"], 1), 1)
    large = nn.functional.interpolate(logits, (64, 48), mode="bilinear")
    ranks = ranked.rank_of(names["label_map"], missing=-1)
    expected = nn.functional.cross_entropy(large, ranks, ignore_index=-1, reduction="sum")
    torch.testing.assert_close(losses["loss_seg"], expected / ranks.numel())
    sum(losses.values()).backward()
    assert learns(names["model"], names["ml_head"])
    # At evaluation the label denied cannot win.
    assert names["label_ids"].shape == (1, 16, 12) and 3 not in names["label_ids"]
    torch.testing.assert_close(names["scores"].sum(1), torch.ones(1, 16, 12))


def test_torchvisions_deeplab_takes_rankseg():
    blocks, names = readmes_blocks(), foreign_names()
    for block in (ANY_MODULE, DEEPLAB):
        exec(blocks[block], names)
    assert torch.isfinite(names["loss"]) and names["selected"].shape[1] == KAPPA
    names["loss"].backward()
    assert learns(names["deeplab"].classifier, names["ml_head"])
    # What is made of the selected labels alone is what the network makes of all.
    pixels, weight, ranked = names["pixels"], names["weight"], names["ranked"]
    dense = nn.functional.conv2d(pixels, weight[:, :, None, None], names["bias"])
    expected = names["temperature"](ranked.gather(dense, 1), 1)
    torch.testing.assert_close(names["selected"], expected, atol=1e-4, rtol=1e-4)


def test_labels_at_the_ranks_of_their_ids():
    ranked = RankedLabels.top(torch.arange(K).flip(0).float()[None], KAPPA)
    label_map = torch.tensor([[[255, 279, 280, 299, -1]]])
    assert ranked.rank_of(label_map, missing=-1).tolist() == [[[255, 279, -1, -1, -1]]]
    logits = torch.randn(1, K, 4, 4)
    assert torch.equal(ranked.gather(logits, 1), logits[:, :KAPPA])
    # One 1/τ per rank, and nothing else.
    assert [p.shape for p in RankTemperature(KAPPA, "rank").parameters()] == [(KAPPA,)]


class ToySegmentor(nn.Module):
    """A pixel classifier at half the size."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 9, 1))

    def forward(self, images):
        return self.layers(images)


def test_a_toy_learns_by_readmes_lines():
    """Colour says the label; three of nine are in each image."""
    torch.manual_seed(0)
    block, colours = readmes_blocks()[ANY_MODULE], torch.randn(9, 3)

    def scene():
        labels = torch.rand(8, 9).argsort(1)[:, :3]
        target = labels.gather(1, torch.randint(0, 3, (8, 64))).view(8, 8, 8)
        target = target.repeat_interleave(2, 1).repeat_interleave(2, 2)
        return colours[target].permute(0, 3, 1, 2), target

    names = {"model": ToySegmentor(), "num_labels": 9, "kappa": 4}
    names["images"], names["label_map"], names["progress"] = *scene(), 0.0
    narrow = "MultiLabelHead(num_labels, num_labels, hidden_dim=32, dropout=0.0)"
    exec(block.replace("MultiLabelHead(num_labels, num_labels)", narrow), names)
    # The lines that make modules, once; those of a step, often.
    start, end = (block.index(line) for line in ("logits = model(images)", "candidates = "))
    step, evaluation = block[start:end], block[end:]
    modules = [names[key] for key in ("model", "ml_head", "temperature")]
    optimizer = torch.optim.AdamW([p for m in modules for p in m.parameters()], 5e-3)
    for i in range(200):
        names["images"], names["label_map"] = scene()
        names["progress"] = i / 200
        exec(step, names)
        optimizer.zero_grad()
        sum(names["losses"].values()).backward()
        optimizer.step()
    names["images"], names["label_map"] = scene()
    names["progress"] = 1.0
    with torch.no_grad():
        exec(step + evaluation.replace("deny=[3]", ""), names)
    found = names["label_ids"][0].repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert (found == names["label_map"][0]).float().mean() > 0.8
