"""Optimizer rules, the training step, resuming, several processes."""

import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from datasets_made import NAMES, quarters, write_dataset
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from golden import load_case
from PIL import Image
from test_data import counted_loads
from torch import nn
from weights_made import arrays, save_pkl

from rankseg_m2f.config import get_cfg
from rankseg_m2f.data.datasets.definitions import KINDS
from rankseg_m2f.engine import main as engine
from rankseg_m2f.engine.evaluate import evaluate, evaluation_sets
from rankseg_m2f.engine.main import argument_parser, load_config
from rankseg_m2f.engine.multi_scale import MultiScaleModel
from rankseg_m2f.engine.optimizer import (
    RULES,
    build_optimizer,
    load_optimizer_state,
    max_gradient_norm,
    parameter_groups,
)
from rankseg_m2f.engine.trainer import Trainer, seed_step
from rankseg_m2f.images import read_image
from rankseg_m2f.weights.file import write_weights

DEMO = ROOT / "configs" / "scenes" / "panoptic" / "demo-rankseg.yaml"
VIDEO = ROOT / "configs" / "video_scenes" / "instance" / "demo-rankseg.yaml"
# A model and images so small that a step takes a fraction of a second.
SETTINGS = {
    "SOLVER.IMS_PER_BATCH": "4",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": "64",
    "INPUT.CROP.SIZE": "(48,48)",
    "INPUT.MIN_SIZE_TRAIN": "(48,64)",
    "INPUT.MIN_SIZE_TEST": "48",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": "8",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": "1",
    "MODEL.DEVICE": "cpu",
}
SMALL = [word for pair in SETTINGS.items() for word in pair]


def command(scenes, output, *extra, launcher=(), config=DEMO):
    """Arguments and environment of a run of train_net.py, or train_net_video.py."""
    script = "train_net.py" if config == DEMO else "train_net_video.py"
    arguments = [sys.executable, "-W", "ignore", *launcher, script, "--config-file", str(config)]
    flags = [a for a in extra if a.startswith("--")]
    values = [a for a in extra if not a.startswith("--")]
    if "--num-gpus" in flags:
        values, flags = values[1:], [*flags, values[0]]
        # A free port each time: tests may run side by side.
        flags += ["--dist-url", "auto"]
    arguments += [*flags, *SMALL, "OUTPUT_DIR", str(output), *values]
    environment = {"DETECTRON2_DATASETS": str(scenes), "OMP_NUM_THREADS": "1"}
    return {"args": arguments, "cwd": ROOT, "env": {**_clean_environment(), **environment}}


def _clean_environment():
    return {k: v for k, v in os.environ.items() if not k.startswith(("TORCHELASTIC", "RANK"))}


def run(scenes, output, *extra, **how):
    done = subprocess.run(
        **command(scenes, output, *extra, **how),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def small_config(scenes, output, monkeypatch, *extra):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    return load_config(str(DEMO), [*SMALL, "OUTPUT_DIR", str(output), *extra])


def official_settings(cfg, name, module):
    """(learning rate, weight decay) by the official recipe, written out."""
    node = cfg.SOLVER
    rate = node.BASE_LR
    if "backbone" in name:
        rate *= node.BACKBONE_MULTIPLIER
    if "ml_head" in name:
        rate *= node.MLHEAD_MULTIPLIER
    decay = node.WEIGHT_DECAY
    if "relative_position_bias_table" in name or "absolute_pos_embed" in name:
        decay = 0.0
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)) or name.startswith(
        "ml_norm."
    ):
        decay = node.WEIGHT_DECAY_NORM
    if isinstance(module, nn.Embedding):
        decay = node.WEIGHT_DECAY_EMBED
    return rate, decay


@pytest.mark.parametrize("case", ["image_swin_rankseg_kappaK", "image_r50_rankseg"])
def test_every_parameter_has_the_official_settings(case):
    cfg = load_case(case).cfg.clone()
    cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM = 0.05, 0.01
    cfg.SOLVER.BACKBONE_MULTIPLIER, cfg.SOLVER.MLHEAD_MULTIPLIER = 0.1, 0.5
    cfg.MODEL.SWIN.APE = True
    model = build_model(cfg)
    settings = {
        parameter: (group["lr"], group["weight_decay"])
        for group in parameter_groups(cfg, model)
        for parameter in group["params"]
    }
    assert len(settings) == sum(p.requires_grad for p in model.parameters())
    for prefix, module in model.named_modules():
        for short, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                name = f"{prefix}.{short}"
                assert settings[parameter] == official_settings(cfg, name, module), name


def test_every_rule_matches_something():
    cfg = load_case("image_swin_rankseg_kappaK").cfg.clone()
    cfg.MODEL.SWIN.APE = True
    model = build_model(cfg)
    for rule in RULES:
        matched = [
            name
            for prefix, module in model.named_modules()
            for name, _ in module.named_parameters(prefix, recurse=False)
            if rule.matches(name, module)
        ]
        assert matched, rule


def test_label_embeddings_can_be_spared_decay():
    cfg = load_case("image_r50_rankseg").cfg.clone()
    model = build_model(cfg)
    for value, expected in ((None, cfg.SOLVER.WEIGHT_DECAY), (0.0, 0.0)):
        cfg.SOLVER.WEIGHT_DECAY_LABEL_EMBED = value
        for group in parameter_groups(cfg, model):
            if any(p is model.ml_head.cls_emb for p in group["params"]):
                assert group["weight_decay"] == expected


def test_optimizers_and_clipping():
    cfg = load_case("image_r50_rankseg").cfg.clone()
    model = build_model(cfg)
    for name, kind in (("ADAMW", torch.optim.AdamW), ("SGD", torch.optim.SGD)):
        cfg.SOLVER.OPTIMIZER = name
        assert isinstance(build_optimizer(cfg, model), kind)
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match="LION"):
        build_optimizer(cfg, model)
    node = cfg.SOLVER.CLIP_GRADIENTS
    node.ENABLED, node.CLIP_TYPE, node.CLIP_VALUE = True, "full_model", 0.01
    assert max_gradient_norm(cfg) == 0.01
    node.CLIP_VALUE = 0.0
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    assert max_gradient_norm(cfg) is None and build_optimizer(cfg, model)
    node.CLIP_TYPE, node.CLIP_VALUE = "norm", 1.0
    assert max_gradient_norm(cfg) is None


def test_an_optimizer_resumes_with_kernels_of_its_own():
    weight = nn.Parameter(torch.ones(5))
    earlier = torch.optim.AdamW([weight], 0.1)
    weight.sum().backward()
    earlier.step()
    fused = torch.optim.AdamW([weight], 0.1, fused=True)
    load_optimizer_state(fused, earlier.state_dict())
    assert fused.param_groups[0]["fused"] and torch.equal(
        fused.state[weight]["exp_avg"], earlier.state[weight]["exp_avg"]
    )
    # With a scaler, which leaves unscaling to fused kernels.
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(weight.sum()).backward()
    before = weight.detach().clone()
    scaler.step(fused)
    assert (weight < before).all()
    # Of other shapes PyTorch says nothing, and kernels would write past the end.
    for others in ([torch.ones(7)], [torch.ones(5)] * 2):
        other = torch.optim.AdamW([nn.Parameter(x) for x in others], 0.1, fused=True)
        with pytest.raises(ValueError, match=r"other shapes.*TRAIN_SELECTION.*without --resume"):
            load_optimizer_state(other, earlier.state_dict())


def test_steps_and_processes_draw_different_numbers():
    drawn = set()
    for seed in (0, 1):
        for iteration in (0, 1, 10**6):
            for rank in (0, 1):
                seed_step(seed, iteration, rank)
                drawn.add(torch.rand(1).item())
    assert len(drawn) == 12


class OneWeight(nn.Module):
    """Loss = weight x number of the batch."""

    def __init__(self, value=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))

    def forward(self, batch):
        return {"loss": self.weight * batch}


def stubbed(cfg, model, batches):
    """A trainer of `cfg` whose model and data are replaced."""
    trainer = Trainer(cfg, seed=0)
    trainer.model = model
    trainer.optimizer = torch.optim.SGD(model.parameters(), 1.0)
    trainer.batches = iter(batches)
    return trainer


def test_accumulation_averages_and_clipping_limits(scenes, tmp_path, monkeypatch):
    cfg = small_config(scenes, tmp_path, monkeypatch, "SOLVER.ACCUMULATION_STEPS", "2")
    model = OneWeight()
    trainer = stubbed(cfg, model, [0.1, 0.5, 30.0, 50.0])
    with EventStorage() as storage:
        trainer.run_step()
        # (0.1 + 0.5) / 2, below the norm of 1 that the config clips to.
        assert model.weight.item() == pytest.approx(1 - 0.3)
        assert storage.latest()["total_loss"][0] == pytest.approx(0.3)
        trainer.run_step()
        assert model.weight.item() == pytest.approx(1 - 0.3 - 1.0)


def test_an_optimizer_that_clips_meets_unscaled_gradients(scenes, tmp_path, monkeypatch):
    clips = ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "1.0")
    cfg = small_config(scenes, tmp_path, monkeypatch, *clips)
    model = OneWeight()
    trainer = stubbed(cfg, model, [0.2, 30.0])
    trainer.optimizer = build_optimizer(cfg, model)
    trainer.scaler = torch.amp.GradScaler("cpu")
    with EventStorage():
        trainer.run_step()
        assert model.weight.grad.item() == pytest.approx(0.2)
        trainer.run_step()
        assert model.weight.grad.item() == pytest.approx(1)


def test_a_loss_that_is_not_finite_stops_before_the_weights(scenes, tmp_path, monkeypatch):
    model = OneWeight()
    trainer = stubbed(small_config(scenes, tmp_path, monkeypatch), model, [float("nan")])
    with EventStorage(), pytest.raises(FloatingPointError, match="loss"):
        trainer.run_step()
    assert model.weight.item() == 1.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains_on_cpu(scenes, tmp_path, monkeypatch, dtype):
    cfg = small_config(
        scenes, tmp_path, monkeypatch,
        "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype,
        "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()",
    )  # fmt: skip
    trainer = Trainer(cfg, seed=0)
    assert trainer.amp_dtype is torch.bfloat16  # the CPU has no float16
    before = trainer.model.ml_head.fc.W.clone()
    trainer.train()
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert not torch.equal(before, trainer.model.ml_head.fc.W)


def test_unknown_precision_and_missing_config_are_named(scenes, tmp_path, monkeypatch):
    cfg = small_config(
        scenes, tmp_path, monkeypatch, "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "int4"
    )
    with pytest.raises(ValueError, match="int4"):
        Trainer(cfg, seed=0)
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml"):
        load_config("gone.yaml", [])


def test_mistakes_are_one_line(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    for words, message in {
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"): "scenes_panoptic_train' has 40 labels.*is 7",
        ("MODEL.SEM_SEG_HEAD.NUM_CLASES", "7"): "unknown config key.*NUM_CLASES",
        ("SOLVER.BASE_LR",): "SOLVER.BASE_LR' has no value",
        ("DATASETS.DEFINITIONS", "['gone.yaml']"): "gone.yaml does not exist",
    }.items():
        monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", str(DEMO), *words])
        with pytest.raises(SystemExit, match=f"train_net.py: .*{message}"):
            engine.run()


@pytest.mark.parametrize(
    "words, message",
    [
        (("MODEL.RANKSEG.TRAIN_SELECTION", "foo"), "'foo'"),
        (("SOLVER.OPTIMIZER", "LION"), "LION"),
        (
            ("DATASETS.TEST", "('scenes_panoptic_vall',)"),
            "'scenes_panoptic_vall' is not registered",
        ),
        (("--eval-only", "DATASETS.TEST", "('vall',)"), "'vall' is not registered"),
        (("SOLVER.EMA_DECAY", "1.5"), "EMA_DECAY.*1.5"),
        (("SOLVER.IMS_PER_BATCH", "3", "SOLVER.ACCUMULATION_STEPS", "2"), "IMS_PER_BATCH=3 must"),
        (
            ("--eval-only", "MODEL.META_ARCHITECTURE", "Nothing"),
            "'Nothing' must be one of .*MaskFormer",
        ),
    ],
)
def test_what_cannot_be_built_is_one_line(scenes, tmp_path, monkeypatch, words, message):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    flags = [word for word in words if word.startswith("--")]
    settings = [*SMALL, "OUTPUT_DIR", str(tmp_path), *words[len(flags) :]]
    command = ["train_net.py", "--config-file", str(DEMO), *flags, *settings]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match=f"^train_net.py: .*{message}"):
        engine.run()


def test_refused_weights_are_one_line(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    unsafe = tmp_path / "unsafe.pkl"
    unsafe.write_bytes(pickle.dumps({"model": {"weight": print}}))
    words = [*SMALL, "MODEL.WEIGHTS", str(unsafe), "OUTPUT_DIR", str(tmp_path / "output")]
    for flags in ([], ["--eval-only"]):
        command = ["train_net.py", *flags, "--config-file", str(DEMO), *words]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit, match=r"train_net.py: .*unsafe.pkl holds .*print"):
            engine.run()


def test_datasets_must_agree_on_their_labels(tmp_path):
    names = []
    for folder, classes in (("a", NAMES), ("b", NAMES[::-1])):
        arguments = write_dataset(tmp_path / folder, [quarters(8, 8, [0, 1, 2, 3])])
        names.append(f"agree_{folder}_{tmp_path.name}")
        KINDS["semantic_folder"](names[-1], **{**arguments["semantic_folder"], "classes": classes})
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (names[0],), (names[0],)
    engine.check_labels(cfg)
    cfg.DATASETS.TEST = (names[1],)
    with pytest.raises(ValueError, match="label 0 is 'sky' in one and 'person' in the other"):
        engine.check_labels(cfg)


def test_broken_files_end_a_run_in_one_line(tmp_path, monkeypatch):
    name = f"broken_{tmp_path.name}"
    arguments = write_dataset(tmp_path / "data", [quarters(48, 48, [0, 1, 2, 3])])
    KINDS["semantic_folder"](name, **arguments["semantic_folder"])
    words = [*SMALL, "OUTPUT_DIR", str(tmp_path), "DATASETS.TRAIN", (name,), "DATASETS.TEST"]
    words += [(name,), "INPUT.DATASET_MAPPER_NAME", "mask_former_semantic", "SOLVER.MAX_ITER", "2"]
    words += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4", "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False"]
    monkeypatch.setattr(sys, "argv", ["train_net.py"])

    def end(*flags):
        with pytest.raises(SystemExit) as ended:
            engine.main(argument_parser().parse_args(["--config-file", str(DEMO), *flags, *words]))
        return ended.value.code

    label_map = tmp_path / "data" / "labels" / "000.png"
    Image.fromarray(quarters(48, 48, [0, 1, 2, 7])).save(label_map)
    assert end().startswith(f"train_net.py: {label_map}: label 7 is neither below ")
    assert end("--eval-only").startswith(f"train_net.py: ground truth {label_map} has label 7")
    Image.fromarray(quarters(46, 48, [0, 1, 2, 3])).save(label_map)
    picture = tmp_path / "data" / "images" / "000.png"
    assert end("--eval-only").startswith(f"train_net.py: {picture}: the prediction is (48, 48)")
    picture.write_bytes(picture.read_bytes()[:50])
    assert end("--eval-only").startswith(f"train_net.py: {picture}: broken image")


def evaluate_by_command(weights, *extra):
    """As train_net.py --eval-only, in this process; results lie beside the weights."""
    words = ["--config-file", str(DEMO), "--eval-only", *SMALL, *extra]
    folder = str(Path(weights).parent)
    words += ["MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", folder]
    return engine.main(argument_parser().parse_args(words))


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
def test_files_in_the_official_layout_are_evaluated(scenes, tmp_path, monkeypatch, suffix):
    extra = ["DATASETS.TEST", "('scenes_panoptic_val',)"]
    cfg = small_config(scenes, tmp_path, monkeypatch, *extra)
    state = build_model(cfg).state_dict()
    path = tmp_path / f"official{suffix}"
    if suffix == ".pkl":
        content = {"model": arrays(state), "__author__": "third_party", "matching_heuristics": True}
        save_pkl(path, content)
    else:
        write_weights(path, {"model": state})
    evaluate_by_command(path, *extra)
    results = tmp_path / "inference" / "scenes_panoptic_val" / "results.json"
    assert {"panoptic_seg", "sem_seg", "labels"} <= json.loads(results.read_text()).keys()
    log = (tmp_path / "log.txt").read_text()
    assert f"{len(state)} of {len(state)} tensors loaded from {path}" in log


def test_backbone_weights_start_a_training_and_stop_an_evaluation(scenes, tmp_path, monkeypatch):
    cfg = small_config(scenes, tmp_path, monkeypatch)
    state = build_model(cfg).backbone.state_dict()
    cfg = small_config(
        scenes, tmp_path, monkeypatch, "MODEL.WEIGHTS", save_pkl(tmp_path / "R.pkl", arrays(state))
    )
    trainer = Trainer(cfg, seed=0)
    trainer.resume_or_load(resume=False)
    found = trainer.model.backbone.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    with pytest.raises(SystemExit, match=r"only 0\.0% of sem_seg_head .*--allow-partial"):
        evaluate_by_command(cfg.MODEL.WEIGHTS)


def test_a_run_of_another_program_cannot_be_resumed(scenes, tmp_path, monkeypatch):
    cfg = small_config(scenes, tmp_path, monkeypatch)
    trainer = Trainer(cfg, seed=0)
    state = {"model": trainer.model.state_dict(), "trainer": {"iteration": 5}, "iteration": 5}
    torch.save(state, tmp_path / "model_0000005.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    with pytest.raises(ValueError, match=r"no seed, optimizer, scaler.*another program"):
        trainer.resume_or_load(resume=True)


def test_a_run_without_loss_scaling_goes_on_with_it(scenes, tmp_path, monkeypatch):
    """A disabled scaler's state is empty, which an enabled one refuses."""
    trainer = Trainer(small_config(scenes, tmp_path, monkeypatch), seed=0)
    state = trainer.state_dict()
    assert state["scaler"] == {}
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.load_state_dict(state)
    assert trainer.loaded and trainer.scaler.get_scale() == 8


@pytest.mark.parametrize("launcher", ["launch", "torchrun"])
def test_the_cpu_can_be_chosen_where_a_gpu_is(scenes, tmp_path, monkeypatch, launcher):
    """CUDA's driver, asked before, says that it is there, but has no devices any more."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    arguments = ["train_net.py", "--config-file", str(DEMO), *SMALL, "OUTPUT_DIR", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    called = []
    if launcher == "launch":
        monkeypatch.setattr(engine, "launch", lambda *_, **__: called.append("launch"))
    else:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
        group = lambda backend, timeout: called.append((backend, timeout.seconds))  # noqa: E731
        monkeypatch.setattr(torch.distributed, "init_process_group", group)
        for name in ("create_local_process_group", "synchronize"):
            monkeypatch.setattr(engine.comm, name, lambda *_: None)
        monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
        monkeypatch.setattr(engine, "train_or_evaluate", lambda *_: called.append("main"))
    engine.run()
    assert called == (["launch"] if launcher == "launch" else [("gloo", 1800), "main"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_weights_without_training_state_start_at_the_beginning(scenes, tmp_path, monkeypatch):
    cfg = small_config(scenes, tmp_path, monkeypatch)
    trainer = Trainer(cfg, seed=0)
    torch.save({"model": trainer.model.state_dict()}, tmp_path / "model_0000005.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0


def test_random_weights_are_not_judged_as_those_of_a_run(scenes, tmp_path, monkeypatch):
    """Nor do their results replace the run's."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    words = ["train_net.py", "--eval-only", "--config-file", str(DEMO)]
    settings = [*SMALL, "OUTPUT_DIR", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*words, "--resume", *settings])
    with pytest.raises(
        SystemExit, match=r"--resume: no checkpoint in .*, and MODEL\.WEIGHTS names"
    ):
        engine.run()
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    monkeypatch.setattr(sys, "argv", [*words, *settings])
    with pytest.raises(SystemExit, match=r"MODEL\.WEIGHTS is empty, and results of random weights"):
        engine.run()
    assert not (tmp_path / "inference").exists()


def test_a_finished_run_can_be_made_longer(scenes, tmp_path, monkeypatch, caplog):
    poly = ("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR")
    state = Trainer(small_config(scenes, tmp_path, monkeypatch, *poly), seed=0)
    end = state.scheduler.max_iters
    state.optimizer.step()
    for _ in range(end - 1):
        state.scheduler.step()
    longer = small_config(scenes, tmp_path, monkeypatch, *poly, "SOLVER.MAX_ITER", str(3 * end))
    trainer = Trainer(longer, seed=0)
    trainer.load_state_dict(state.state_dict())
    assert f"SOLVER.MAX_ITER is {3 * end}, and was {end}" in caplog.text
    rates = []
    for _ in range(2 * end):
        trainer.scheduler.step()
        rates.append(trainer.scheduler.get_last_lr()[0])
    # Two thirds of the new schedule are left, so that it is above what the old one ended with.
    assert rates[0] > state.scheduler.get_last_lr()[0] and rates == sorted(rates, reverse=True)


def test_flags_are_detectron2s_and_ours():
    args = argument_parser().parse_args(
        ["--config-file", "a.yaml", "--eval-only", "--num-gpus", "2", "--num-machines", "3",
         "--machine-rank", "1", "--dist-url", "tcp://x:1", "--resume", "--allow-partial",
         "--trust-checkpoint", "MODEL.WEIGHTS", "b.pth"]
    )  # fmt: skip
    assert args.opts == ["MODEL.WEIGHTS", "b.pth"] and args.num_machines == 3


def _equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def test_a_second_run_in_a_process_logs_each_line_once(scenes, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    logs = {}
    for name in ("first", "second", "first"):
        words = ["--config-file", str(DEMO), *SMALL, "OUTPUT_DIR", str(tmp_path / name)]
        args = argument_parser().parse_args([*words, "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"])
        engine.main(args)
        shown = capfd.readouterr().out
        assert shown.count("Starting training from iteration") == 1
        assert shown.count("MODEL.WEIGHTS is empty") == 1
        logs[name] = (tmp_path / name / "log.txt").read_text(encoding="utf-8")
    assert [logs[n].count("Starting training from iteration") for n in logs] == [2, 1]


def test_multi_scale_averages_views(tmp_path):
    case = load_case("image_r50_rankseg")
    cfg = case.cfg.clone()
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = (64,), 128, True
    model = case.model()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", cfg.INPUT.FORMAT).transpose(2, 0, 1)
    image = torch.from_numpy(np.ascontiguousarray(image))
    sample = {"file_name": str(tmp_path / "a.png"), "image": image, "height": 64, "width": 96}
    with torch.no_grad():
        found = MultiScaleModel(cfg, model)([sample])[0]["sem_seg"]
        views = [model([dict(sample, image=v)])[0]["sem_seg"] for v in (image, image.flip(2))]
    straight, mirrored = (view.full(model.num_labels) for view in views)
    torch.testing.assert_close(found, (straight + mirrored.flip(2)) / 2)
    assert not torch.equal(found, straight)


def test_multi_scale_takes_photos_however_thin(tmp_path):
    cfg = load_config(str(DEMO), [*SMALL, "TEST.AUG.MIN_SIZES", "(48,)", "TEST.AUG.MAX_SIZE", "64"])
    Image.fromarray(np.full((1, 4000, 3), 99, np.uint8)).save(tmp_path / "line.png")
    sample = {"file_name": str(tmp_path / "line.png"), "height": 1, "width": 4000}
    with torch.no_grad():
        (found,) = MultiScaleModel(cfg, build_model(cfg).eval())([sample])
    assert found["sem_seg"].shape == (40, 1, 4000)


@pytest.mark.parametrize("config", [DEMO, VIDEO], ids=["image", "video"])
def test_multi_scale_is_for_pictures_and_passes_windows_by(scenes, tmp_path, monkeypatch, config):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    window = ["MODEL.MASK_FORMER.TEST.WINDOW", "3", "MODEL.MASK_FORMER.TEST.WINDOW_OVERLAP", "1"]
    views = ["TEST.AUG.MIN_SIZES", "(48,)", "TEST.AUG.MAX_SIZE", "64"]
    cfg = load_config(str(config), [*SMALL, *window, *views, "OUTPUT_DIR", str(tmp_path)])
    loads = counted_loads(monkeypatch, cfg.DATASETS.TEST[0])
    results = evaluate(cfg, build_model(cfg), evaluation_sets(cfg, multi_scale=True))
    assert len(loads) == 1
    assert ("sem_seg_TTA" in results) == (config == DEMO)
    assert "segm" in results


@pytest.mark.parametrize("config", [DEMO, VIDEO], ids=["image", "video"])
def test_a_killed_and_resumed_run_ends_as_if_never_killed(scenes, tmp_path, config):
    schedule = ["SOLVER.MAX_ITER", "14", "SOLVER.CHECKPOINT_PERIOD", "3", "DATASETS.TEST", "()"]
    # κ, too, is a function of the iteration.
    schedule += ["MODEL.RANKSEG.TRAIN_SELECTION", "schedule"]
    schedule += ["MODEL.RANKSEG.TRAIN_SCHEDULE", "(0.0,1.0)"]
    run(scenes, tmp_path / "whole", *schedule, config=config)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        **command(scenes, killed, *schedule, config=config),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 120
    while not (killed / "last_checkpoint").exists() and time.time() < deadline:
        time.sleep(0.02)
    time.sleep(random.SystemRandom().uniform(0, 0.6))  # a random step, another each time
    process.send_signal(signal.SIGKILL)
    process.wait()
    log = run(scenes, killed, "--resume", *schedule, config=config)
    assert re.search(r"Starting training from iteration [1-9]", log)
    whole, resumed = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)
        for name in ("whole", "killed")
    )
    assert whole["iteration"] == resumed["iteration"] == 13
    assert _equal(whole, resumed)


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")


@pytest.mark.parametrize(
    "config, flags, launcher, selection",
    [
        (DEMO, ("--num-gpus", "2"), (), "keep_present"),
        (DEMO, (), TORCHRUN, "schedule"),
        (VIDEO, ("--num-gpus", "2"), (), "keep_present"),
    ],
    ids=["spawn", "torchrun", "video"],
)
def test_two_processes_train_and_give_the_metrics_of_one(
    scenes, tmp_path, config, flags, launcher, selection
):
    steps = ("SOLVER.MAX_ITER", "2", "MODEL.RANKSEG.TRAIN_SELECTION", selection)
    run(scenes, tmp_path / "two", *flags, *steps, launcher=launcher, config=config)
    weights = ("MODEL.WEIGHTS", str(tmp_path / "two" / "model_final.pth"))
    run(scenes, tmp_path / "one", "--eval-only", *weights, *steps, config=config)
    results = [
        json.loads(next((tmp_path / n / "inference").glob("*/results.json")).read_text())
        for n in ("one", "two")
    ]
    tasks = {"panoptic_seg", "sem_seg"} if config == DEMO else set()
    assert results[0].keys() == results[1].keys() == {*tasks, "segm", "labels"}
    for task, metrics in results[0].items():
        for key, value in metrics.items():
            # What cannot be measured is null for both.
            expected = value if value is None else pytest.approx(value, rel=1e-9)
            assert results[1][task][key] == expected, key
