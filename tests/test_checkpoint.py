"""Checkpoints: nothing unsafe is run, names are found, misfits are said, files are whole."""

import copy
import io
import logging
import os
import re
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.checkpoint import PeriodicCheckpointer
from detectron2.modeling import build_model
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import CosineParamScheduler
from golden import load_case
from torch import nn
from torchvision.models import resnet50
from weights_made import arrays, save_pkl, save_pth

from rankseg_m2f.rankseg.temperature import RankTemperature
from rankseg_m2f.weights.checkpoint import Checkpointer
from rankseg_m2f.weights.file import write_weights
from rankseg_m2f.weights.key_names import our_names
from rankseg_m2f.weights.load_report import compare
from rankseg_m2f.weights.plain_state import plain_state

R50 = "image_r50_rankseg"
SWIN = "image_swin_baseline"
K = 150
LABEL_HEADS = {
    "sem_seg_head.predictor.class_embed.weight",
    "criterion.empty_weight",
    "ml_head.cls_emb",
    "ml_head.fc.W",
    "ml_head.fc.b",
}


@pytest.fixture(scope="module")
def r50():
    return load_case(R50).model()


@pytest.fixture(scope="module")
def swin():
    return load_case(SWIN).model()


@pytest.fixture
def blank(r50):
    """The R50 model with other weights."""
    return shaken(r50)


def shaken(model):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(1)
    return model


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, state):
    ours = model.state_dict()
    assert set(ours) == set(state)
    return all(torch.equal(ours[name], state[name]) for name in ours)


def load(model, path, **kwargs):
    checkpointer = Checkpointer(model, **kwargs)
    checkpointer.load(path)
    return checkpointer.report


def backbone_only(state):
    return {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}


# -- round trips -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_round_trip_is_bitwise(tmp_path, r50, blank, suffix):
    path = tmp_path / f"model{suffix}"
    write_weights(path, {"model": r50.state_dict()})
    assert not same(blank, state_of(r50))
    report = load(blank, str(path), for_evaluation=True)
    assert same(blank, state_of(r50))
    assert report.complete and report.temperature == ("layernorm", "layernorm")
    assert len(report.matched) == len(r50.state_dict())


def test_official_pkl_matches_wholly(tmp_path, r50, blank):
    content = {
        "model": arrays(state_of(r50)),
        "__author__": "someone",
        "matching_heuristics": True,
    }
    report = load(blank, save_pkl(tmp_path / "model.pkl", content), for_evaluation=True)
    assert report.complete and same(blank, state_of(r50))
    assert all(set(row) for row in report.counts().values())
    assert report.counts()["ml_norm"] == {
        "matched": 2,
        "missing": 0,
        "unexpected": 0,
        "mismatched": 0,
    }


def trainer_parts(model, schedule):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    if schedule == "detectron2":
        scheduler = LRMultiplier(optimizer, CosineParamScheduler(1.0, 0.0), max_iter=10)
    elif schedule == "multistep":
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    else:
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    return optimizer, scheduler


def train(model, optimizer, scheduler, steps):
    rates = []
    for i in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 3) * i).sum().backward()
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("schedule", ["detectron2", "multistep", "lambda"])
def test_training_resumes_as_if_never_stopped(tmp_path, schedule):
    model = nn.Linear(3, 2)
    optimizer, scheduler = trainer_parts(model, schedule)
    train(model, optimizer, scheduler, 3)
    saver = Checkpointer(model, tmp_path / "new", optimizer=optimizer, scheduler=scheduler)
    assert not saver.has_checkpoint()
    saver.save("model_0000003", iteration=3)
    torch.load(tmp_path / "new" / "model_0000003.pth", weights_only=True)
    rates = train(model, optimizer, scheduler, 3)

    again = nn.Linear(3, 2)
    optimizer, scheduler = trainer_parts(again, schedule)
    loader = Checkpointer(again, tmp_path / "new", optimizer=optimizer, scheduler=scheduler)
    assert loader.get_checkpoint_file() == str(tmp_path / "new" / "model_0000003.pth")
    assert loader.resume_or_load("unused.pth", resume=True) == {"iteration": 3}
    assert train(again, optimizer, scheduler, 3) == rates
    assert torch.equal(model.weight, again.weight)


def test_without_resume_weights_alone_are_loaded(tmp_path):
    model = nn.Linear(3, 2)
    optimizer, scheduler = trainer_parts(model, "multistep")
    train(model, optimizer, scheduler, 1)
    saver = Checkpointer(model, tmp_path, optimizer=optimizer)
    saver.save("a", iteration=1)
    other = nn.Linear(3, 2)
    fresh, _ = trainer_parts(other, "multistep")
    Checkpointer(other, tmp_path / "elsewhere", optimizer=fresh).resume_or_load(
        str(tmp_path / "a.pth"), resume=True
    )
    assert torch.equal(model.weight, other.weight) and not fresh.state_dict()["state"]


@pytest.mark.parametrize("tag", ["model_final.pth", ""])
def test_a_last_checkpoint_that_is_gone_is_named(tmp_path, tag):
    saver = Checkpointer(nn.Linear(2, 2), tmp_path)
    for time, name in enumerate(("new", "old")):
        saver.save(name)
        os.utime(tmp_path / f"{name}.pth", (1 - time, 1 - time))
    (tmp_path / "last_checkpoint").write_text(tag)
    said = "model_final.pth, which is missing" if tag else "no checkpoint"
    with pytest.raises(
        FileNotFoundError, match=f"last_checkpoint names {said}: .*such as new.pth$"
    ):
        saver.resume_or_load("unused.pth", resume=True)
    # Without --resume nobody asks.
    saver.resume_or_load(str(tmp_path / "old.pth"), resume=False)
    for name in ("new", "old"):
        (tmp_path / f"{name}.pth").unlink()
    with pytest.raises(FileNotFoundError, match="none; start without --resume"):
        saver.resume_or_load("unused.pth", resume=True)


def test_the_periodic_hook_saves_and_cleans_up(tmp_path):
    checkpointer = Checkpointer(nn.Linear(2, 2), tmp_path)
    hook = PeriodicCheckpointer(checkpointer, 2, max_iter=6, max_to_keep=1)
    for i in range(6):
        hook.step(i)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["last_checkpoint", "model_0000005.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 5


def test_state_that_needs_trust_is_left_out(caplog):
    state = {
        "best": np.float64(0.5),
        "curve": np.arange(2),
        "count": Counter("aab"),
        "shape": torch.Size([1]),
        "nested": {"fine": (1, [2.0, {3}]), "object": [object()]},
        "function": len,
    }
    with caplog.at_level(logging.WARNING):
        plain = plain_state(state)
    assert set(plain) == set(state) - {"function"}
    assert plain["nested"] == {"fine": (1, [2.0, {3}])} and plain["count"] == Counter("aab")
    assert type(plain["best"]) is float and torch.equal(plain["curve"], torch.arange(2))
    assert "nested.object is not saved" in caplog.text and "function is not saved" in caplog.text
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    assert torch.load(file, weights_only=True).keys() == plain.keys()


@pytest.mark.parametrize("when", ["writing", "replacing"])
def test_a_failed_save_leaves_the_old_file_whole(tmp_path, monkeypatch, when):
    model = nn.Linear(2, 2)
    checkpointer = Checkpointer(model, tmp_path)
    checkpointer.save("model")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def write_half(content, file):
        file.write(b"half")
        raise OSError("disk full")

    def fail(*args):
        raise OSError("disk full")

    if when == "writing":
        monkeypatch.setattr(torch, "save", write_half)
    else:
        monkeypatch.setattr(os, "replace", fail)
    with torch.no_grad():
        model.weight.add_(1)
    with pytest.raises(OSError, match="disk full"):
        checkpointer.save("model")
    with pytest.raises(OSError, match="disk full"):
        checkpointer.save("other")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# -- names -------------------------------------------------------------------------------------


def test_a_table_of_ours_is_not_renamed(r50, swin):
    for model in (r50, swin):
        state = state_of(model)
        assert our_names(state, state.keys()).keys() == state.keys()


def test_old_maskformer_names(tmp_path, r50, blank):
    def old(name):
        name = name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")
        return name.replace("query_feat", "static_query")

    content = {"model": {old(name): value for name, value in state_of(r50).items()}}
    content["model"]["pixel_mean"] = torch.zeros(3, 1, 1)
    assert "sem_seg_head.mask_features.weight" in content["model"]
    assert "sem_seg_head.predictor.static_query.weight" in content["model"]
    assert load(blank, save_pth(tmp_path / "old.pth", content)).complete
    assert same(blank, state_of(r50))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrapped_models(tmp_path, r50, blank, prefix):
    wrapped = {"model": {f"{prefix}{name}": value for name, value in state_of(r50).items()}}
    wrapped["model"]["n_averaged"] = torch.tensor(3)
    assert load(blank, save_pth(tmp_path / "ddp.pth", wrapped)).complete
    assert same(blank, state_of(r50))


@pytest.mark.parametrize("timm", [False, True])
def test_imagenet_swin(tmp_path, swin, timm):
    state = backbone_only(state_of(swin))
    state = {k: v for k, v in state.items() if not re.match(r"norm\d", k)}
    state |= {
        "norm.weight": torch.ones(8),
        "norm.bias": torch.ones(8),
        "head.fc.weight" if timm else "head.weight": torch.ones(1000, 8),
        "layers.0.blocks.1.attn_mask": torch.ones(1),
    }
    if timm:
        state = {
            re.sub(
                r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", k
            ): v
            for k, v in state.items()
        }
    content = state if timm else {"model": state}
    model = shaken(swin)
    report = load(model, save_pth(tmp_path / "swin.pth", content))
    assert not report.unexpected and not report.mismatched
    assert {k for k in report.missing if k.startswith("backbone.")} == {
        f"backbone.norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias")
    }
    assert report.coverage()["backbone"] > 0.99 and report.coverage()["sem_seg_head"] == 0
    ours = model.state_dict()
    assert all(torch.equal(ours[name], swin.state_dict()[name]) for name in report.matched)


def torchvision_name(name):
    name = name.replace("stem.conv1.norm", "bn1").replace("stem.", "")
    name = re.sub(r"res(\d)", lambda m: f"layer{int(m[1]) - 1}", name)
    name = re.sub(r"conv(\d)\.norm", r"bn\1", name)
    return name.replace("shortcut.norm", "downsample.1").replace("shortcut.", "downsample.0.")


@pytest.mark.parametrize("kind", ["torchvision", "detectron2"])
def test_imagenet_resnet(tmp_path, r50, blank, kind):
    state = backbone_only(state_of(r50))
    if kind == "torchvision":
        state = {torchvision_name(k): v for k, v in state.items()}
        assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight"} <= set(state)
        state |= {"fc.weight": torch.ones(1), "bn1.num_batches_tracked": torch.tensor(1)}
        path = save_pth(tmp_path / "resnet50.pth", state)
    else:
        state |= {"stem.fc.weight": torch.ones(1)}
        content = {"model": arrays(state), "__author__": "x", "matching_heuristics": True}
        path = save_pkl(tmp_path / "R-50.pkl", content)
    report = load(blank, path)
    assert not report.unexpected and not report.mismatched
    assert report.coverage()["backbone"] == 1
    ours = backbone_only(blank.state_dict())
    assert all(torch.equal(ours[k], v) for k, v in r50.backbone.state_dict().items())


def test_torchvision_names_are_those_of_torchvision():
    with torch.device("meta"):
        theirs = resnet50().state_dict()
    renamed = our_names(theirs, set())
    norms = ("weight", "bias", "running_mean", "running_var")
    assert len(renamed) == 265
    assert all(name.startswith("backbone.") for name in renamed)
    assert {f"backbone.res5.0.shortcut.norm.{x}" for x in norms} <= set(renamed)
    conv = renamed["backbone.res4.5.conv3.weight"]
    assert conv.shape == theirs["layer3.5.conv3.weight"].shape


def test_hugging_face_names():
    value = torch.ones(1)
    theirs = {"model.pixel_level_module.decoder.mask_projection.weight": value, "x": value}
    assert set(our_names(theirs, set())) == {"sem_seg_head.pixel_decoder.mask_features.weight", "x"}


def test_of_two_names_for_one_parameter_the_second_is_reported():
    known = {"backbone.stem.conv1.weight"}
    theirs = {"stem.conv1.weight": torch.ones(1), "conv1.weight": torch.zeros(1)}
    renamed = our_names(theirs, known)
    assert renamed == {"backbone.stem.conv1.weight": torch.ones(1), "conv1.weight": torch.zeros(1)}


# -- what fits ---------------------------------------------------------------------------------


def test_other_labels_reinitialise_just_their_heads(tmp_path, r50):
    cfg = load_case(R50).cfg.clone()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 20
    model = build_model(cfg)
    before = state_of(model)
    path = save_pth(tmp_path / "ade.pth", {"model": r50.state_dict()})
    report = load(model, path)
    heads = LABEL_HEADS | {"ml_norm.weight", "ml_norm.bias"}  # κ = 20, not 50
    assert set(report.mismatched) == heads and not report.missing and not report.unexpected
    assert report.mismatched["ml_head.fc.b"] == ((1, K), (1, 20))
    after = model.state_dict()
    for name in after:
        assert torch.equal(after[name], before[name] if name in heads else r50.state_dict()[name])
    assert "stay at initialisation" in report.describe()
    assert "temperature: layernorm form in the file, does not fit" in report.describe()
    with pytest.raises(
        ValueError, match=r"other shapes: .*class_embed.*\(151, 32\).*--allow-partial"
    ):
        load(model, path, for_evaluation=True)


def test_an_evaluation_with_half_a_backbone_stops(tmp_path, r50, blank):
    state = state_of(r50)
    kept = {k: v for k, v in state.items() if not k.startswith("backbone.res5")}
    path = save_pth(tmp_path / "half.pth", {"model": kept})
    before = state_of(blank)
    share = sum(v.numel() for k, v in kept.items() if k.startswith("backbone."))
    share /= sum(v.numel() for k, v in state.items() if k.startswith("backbone."))
    message = rf"half\.pth does not fit .*only {share:.1%} of backbone.*--allow-partial"
    assert share < 0.6
    with pytest.raises(ValueError, match=message):
        load(blank, path, for_evaluation=True)
    assert same(blank, before)
    report = load(blank, path, for_evaluation=True, allow_partial=True)
    assert report.coverage()["backbone"] == pytest.approx(share)
    assert load(blank, path).coverage()["backbone"] == pytest.approx(share)


@pytest.mark.parametrize("name", ["query_feat.weight", "decoder_norm.bias", "level_embed.weight"])
def test_an_evaluation_needs_all_of_the_query_decoder(tmp_path, r50, blank, name):
    kept = {k: v for k, v in state_of(r50).items() if k != f"sem_seg_head.predictor.{name}"}
    path = save_pth(tmp_path / "w.pth", kept)
    assert load(blank, path).coverage()["sem_seg_head"] > 0.99
    with pytest.raises(ValueError, match=rf"has nothing for sem_seg_head\.predictor\.{name}"):
        load(blank, path, for_evaluation=True)


def test_what_a_file_lacks_stays_as_it_is(tmp_path, r50, blank):
    before = state_of(blank)
    kept = {k: v for k, v in state_of(r50).items() if not k.startswith("backbone.res5")}
    load(blank, save_pth(tmp_path / "half.pth", {"model": kept}))
    # Statistics of frozen batch norm among them, which Detectron2 would set to 0 and 1.
    assert any("running_mean" in name and name not in kept for name in before)
    assert same(blank, before | kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_to_the_models(tmp_path, r50, blank, dtype):
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state_of(r50).items()}
    write_weights(tmp_path / "w.safetensors", {"model": cast})
    assert load(blank, str(tmp_path / "w.safetensors"), for_evaluation=True).complete
    assert same(blank, {k: v.to(r50.state_dict()[k].dtype) for k, v in cast.items()})


def test_computed_buffers_may_be_missing(tmp_path, swin):
    state = state_of(swin)
    computed = {k for k in state if k.endswith(("relative_position_index", "empty_weight"))}
    path = save_pth(tmp_path / "w.pth", {k: v for k, v in state.items() if k not in computed})
    report = load(swin, path, for_evaluation=True)
    assert set(report.missing) == computed and len(computed) > 1
    assert report.complete and set(report.coverage().values()) == {1.0}


def test_a_baseline_file_has_no_multi_label_head(tmp_path, r50, blank):
    baseline = {k: v for k, v in state_of(r50).items() if not k.startswith("ml_")}
    path = save_pth(tmp_path / "base.pth", baseline)
    assert "The file has no ml_head" in load(blank, path).describe()
    with pytest.raises(ValueError, match=r"has nothing for ml_head\.cls_emb"):
        load(blank, path, for_evaluation=True)


def test_a_linear_class_head_does_not_fit_a_cosine_one(tmp_path, r50, blank):
    state = state_of(r50) | {"sem_seg_head.predictor.class_embed.bias": torch.zeros(K + 1)}
    path = save_pth(tmp_path / "linear.pth", state)
    assert "USE_LAYERNORM" in load(blank, path).describe()
    with pytest.raises(ValueError, match="linear in the file and cosine"):
        load(blank, path, for_evaluation=True)


@pytest.mark.parametrize(
    ("theirs", "ours", "fits"),
    [
        ("layernorm", "layernorm", True),
        ("layernorm", "rank", False),
        ("rank", "layernorm", False),
        ("rank", "rank", True),
        ("rank", "shared", False),
        ("shared", "shared", True),
    ],
)
def test_forms_of_the_temperature(theirs, ours, fits):
    file = RankTemperature(5, theirs).state_dict(prefix="ml_norm.")
    model = nn.Module()
    model.ml_norm = RankTemperature(5, ours)
    report, fitting = compare("f.pth", file, model.state_dict())
    assert report.temperature == (theirs, ours)
    assert set(fitting) == (set(model.state_dict()) if fits else set())
    said = "fits" if fits else "does not fit"
    assert f"temperature: {theirs} form in the file, {said} ({ours} here)" in report.describe()
    assert bool(report.problems()) == (not fits)
    assert any("ml_norm is left" in note for note in report.notes) == (not fits)


@pytest.mark.parametrize("for_evaluation", [False, True])
def test_no_weights_load_nothing(blank, caplog, for_evaluation):
    before = state_of(blank)
    with caplog.at_level(logging.INFO):
        assert Checkpointer(blank, for_evaluation=for_evaluation).load("") == {}
    record = caplog.records[-1]
    assert "random weights" in record.message
    assert record.levelno == (logging.WARNING if for_evaluation else logging.INFO)
    assert same(blank, before)


def test_training_does_not_start_from_a_file_of_another_model(blank, tmp_path):
    path = save_pkl(tmp_path / "R-50.pkl", {"conv5_w": np.zeros(3, dtype=np.float32)})
    with pytest.raises(ValueError, match=r"R-50\.pkl has nothing for this model .*conv5_w"):
        load(blank, path)


def test_the_report_is_logged(tmp_path, r50, blank, caplog):
    path = save_pth(tmp_path / "w.pth", state_of(r50) | {"neck.weight": torch.ones(1)})
    with caplog.at_level(logging.INFO):
        report = load(blank, path + "?matching_heuristics=True", for_evaluation=True)
    assert report.unexpected == ["neck.weight"]
    assert report.describe() in caplog.text
    assert re.search(r"^  neck +1 unexpected$", report.describe(), re.M)
    assert re.search(r"^  sem_seg_head.predictor +\d+ matched$", report.describe(), re.M)
