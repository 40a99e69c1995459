"""Every config parses, builds and trains; official ones say what the official files say."""

import json
import logging
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TESTS
from data.compact_official_configs import compact, expand
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.structures import Instances
from list_configs import CONFIGS, README, leaves, load, main

from rankseg_m2f.config import get_cfg
from rankseg_m2f.config.lookup import TABLE, find_config
from rankseg_m2f.engine import main as engine
from rankseg_m2f.modeling.query import mask_former
from rankseg_m2f.modeling.results import build_inference_options

LEAVES = leaves()
OFFICIAL_PATHS = json.loads((CONFIGS / TABLE).read_text())["paths"]
NEW = json.loads((CONFIGS / TABLE).read_text())["new"]
# "<repository>:<path>" -> keys in which the official file differs from the defaults.
OFFICIAL = expand(json.loads((TESTS / "data" / "official_configs.json").read_text()))
OFFICIAL |= json.loads((TESTS / "data" / "maskformer_configs.json").read_text())
DEFAULTS = ("_defaults_mask2former", "_defaults_rankseg")
FILES = [name for name in OFFICIAL if name not in DEFAULTS]
# The official file does not load; with MLSEG read as RANKSEG it is Swin-B told what is present.
VSPW_ORACLE = "rankseg:configs/vspw/swin/video_maskformer2_swin_base_IN21k_384_bs16_8ep-gt.yaml"
OFFICIAL[VSPW_ORACLE] = {
    **OFFICIAL[VSPW_ORACLE.replace("-gt", "")],
    "MODEL.RANKSEG.USE_GT": True,
}
# Where ours differ on purpose: (official names, key, our value).
DIFFERENT = [
    # AP costs nothing to report, and Mask2Former's files report it.
    (r"rankseg:.*ade20k/panoptic", "MODEL.MASK_FORMER.TEST.INSTANCE_ON", True),
    # Nothing reads the other results.
    (r"mask2former:.*ade20k/instance", "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False),
    (r"mask2former:.*ade20k/instance", "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False),
    # Memory alone.
    (r"rankseg:.*coco/panoptic.*base", "MODEL.SWIN.USE_CHECKPOINT", False),
    # More than K: the official code crashes.
    (r"rankseg:.*coco/panoptic.*-rankseg", "MODEL.RANKSEG.TOPK", 133),
    # MaskFormer has no key for it: theirs is the only one.
    (r"maskformer:", "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder"),
    # Left at the sizes of semantic images half as large; panoptic results have no augmentation.
    (r"maskformer:.*panoptic", "TEST.AUG.MIN_SIZES", [320, 480, 640, 800, 960, 1120]),
    (r"maskformer:.*panoptic", "TEST.AUG.MAX_SIZE", 4480),
]
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.SWIN.EMBED_DIM": 8,
    "MODEL.SWIN.DEPTHS": [1, 1, 1, 1],
    "MODEL.SWIN.NUM_HEADS": [1, 1, 1, 1],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 2,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 4,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 6,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 16,
    "MODEL.RANKSEG.HIDDEN_DIM": 64,
}


def flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value


def changed(name, overrides):
    cfg = load(name).clone()
    cfg.defrost()
    cfg.merge_from_list([part for pair in overrides.items() for part in pair])
    return cfg


def expected_differences(name):
    return {key: ours for names, key, ours in DIFFERENT if re.match(names, name)}


@pytest.mark.parametrize("name", FILES)
def test_says_what_the_official_file_says(name):
    ours = dict(flat(load(OFFICIAL_PATHS[name.partition(":")[2]])))
    official = {**dict(flat(get_cfg())), **OFFICIAL[name], "OUTPUT_DIR": ours["OUTPUT_DIR"]}
    # RankSeg's lie in a folder.
    official["MODEL.WEIGHTS"] = official["MODEL.WEIGHTS"].removeprefix("pretrained_weights/")
    different = {
        key: ours.get(key)
        for key in official.keys() | ours.keys()
        if official.get(key) != ours.get(key)
    }
    expected = expected_differences(name).items()
    assert different == {key: value for key, value in expected if official[key] != value}


@pytest.mark.parametrize("name", [n for n in FILES if "youtubevis" in n or "vspw" in n])
def test_videos_give_ten_tracks_as_officially(name):
    assert build_inference_options(load(OFFICIAL_PATHS[name.partition(":")[2]])).max_tracks == 10


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_the_official_ones(name):
    ours = dict(flat(get_cfg()))
    assert {key: ours[key] for key in OFFICIAL[name]} == OFFICIAL[name]


def test_each_difference_is_one():
    for names, key, ours in DIFFERENT:
        matching = [OFFICIAL[name] for name in FILES if re.match(names, name)]
        assert matching and any(o.get(key, get_cfg().lookup(key)) != ours for o in matching)


def test_official_repositories_differ_as_the_table_says():
    twins = [
        (n, n.replace("mask2former:", "rankseg:")) for n in FILES if n.startswith("mask2former:")
    ]
    shared = [(OFFICIAL[a], OFFICIAL[b]) for a, b in twins if b in OFFICIAL]
    differing = {k for a, b in shared for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
    assert len(shared) == 17
    assert differing == {
        "MODEL.WEIGHTS",
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON",
        "MODEL.SWIN.USE_CHECKPOINT",
    }


@pytest.mark.shared
def test_compact_copy_is_the_reference():
    reference = json.loads((ROOT.parent / "shared/reference/official_configs.json").read_text())
    original = {name: keys for name, keys in reference.items() if "/Base-" not in name}
    copy = json.loads((TESTS / "data" / "official_configs.json").read_text())
    assert expand(copy) == original and compact(reference) == copy


def test_every_leaf_is_official_or_new():
    official = set(OFFICIAL_PATHS.values())
    assert sorted(OFFICIAL_PATHS) == sorted({name.partition(":")[2] for name in FILES})
    assert official | set(NEW) == set(LEAVES) and not official & set(NEW)


detectron2_backbone = mask_former.build_backbone


@cache
def meta_backbone(settings):
    """A full-size backbone, built once for all configs of these settings (MODEL, as YAML)."""
    cfg = get_cfg()
    cfg.MODEL = type(cfg).load_cfg(settings)
    with torch.device("meta"):
        return detectron2_backbone(cfg)


@pytest.mark.parametrize("name", LEAVES)
def test_builds_without_weights(name, monkeypatch):
    def cached(cfg):
        parts = ("BACKBONE", "RESNETS", "SWIN", "PIXEL_MEAN")
        return meta_backbone(type(cfg)({part: cfg.MODEL[part] for part in parts}).dump())

    monkeypatch.setattr(mask_former, "build_backbone", cached)
    cfg = changed(name, {"MODEL.DEVICE": "meta"})
    with torch.device("meta"):
        model = build_model(cfg)
    node = cfg.MODEL.RANKSEG
    segments = cfg.MODEL.META_ARCHITECTURE != "LabelClassifier"
    assert (model.ml_head is not None) == (node.FLAG and not node.SCORES)
    assert ("-rankseg" in name or "/labels/" in name) == node.FLAG
    assert (segments and model.policy.oracle_train) == ("-oracle" in name)
    assert node.TOPK <= cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    selects = 0 < node.TOPK < cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES and not node.SCORES
    assert selects == (node.TRAIN_SELECTION == "schedule")


def frame(num_labels):
    """64 x 64 noise with an object of the first label above one of the last."""
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :32], masks[1, 32:] = True, True
    objects = Instances(
        (64, 64),
        gt_classes=torch.tensor([0, num_labels - 1]),
        gt_masks=masks,
        gt_ids=torch.tensor([0, 1]),
    )
    return torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), objects


@pytest.mark.parametrize("name", LEAVES)
def test_a_shrunken_copy_trains_and_predicts(name):
    cfg = changed(name, SMALL)
    num_labels = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    frames = [frame(num_labels) for _ in range(2)]
    images, objects = map(list, zip(*frames, strict=True))
    if cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer":
        batch = [{"image": images, "instances": objects}]
    else:
        batch = [{"image": images[0], "instances": objects[0]}]
    if cfg.MODEL.RANKSEG.SCORES:
        batch[0]["label_scores"] = torch.rand(num_labels)
    model = build_model(cfg).train()
    model.progress = 1.0
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    with torch.no_grad():
        (result,) = model.eval()(batch)
    assert ("label_ranking" in result) == cfg.MODEL.RANKSEG.FLAG
    found = ["sem_seg" in result, "panoptic_seg" in result]
    found.append("instances" in result or "pred_masks" in result)
    wanted = cfg.MODEL.MASK_FORMER.TEST
    segments = cfg.MODEL.META_ARCHITECTURE != "LabelClassifier"
    assert found == [
        segments and on for on in (wanted.SEMANTIC_ON, wanted.PANOPTIC_ON, wanted.INSTANCE_ON)
    ]


@pytest.mark.parametrize("name", LEAVES)
def test_header_and_name(name):
    cfg, lines = load(name), (CONFIGS / name).read_text().splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    video = cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer"
    script = "train_net_video.py" if video else "train_net.py"
    gpus = 1 if "1gpu" in name or "scenes" in name else 8
    assert header[0].startswith("# Published: ") and len(header) <= 4
    command = f"#   python {script} --num-gpus {gpus} --config-file configs/{name}"
    assert header[-1] == command
    dataset, task, file = name.removesuffix(".yaml").split("/")
    if not file.startswith("demo"):
        assert f"output/{dataset}-{task}-{file.removeprefix('mask2former-')}" == cfg.OUTPUT_DIR


@pytest.mark.shared
def test_headers_print_rankseg_zoo_figures():
    tables = json.loads((ROOT.parent / "shared/paper/paper_tables.json").read_text())
    for row in tables["official_zoo_mask2former"]:
        header = (CONFIGS / OFFICIAL_PATHS[row["config"]]).read_text().splitlines()[0]
        figures = [row[k] for k in ("PQ", "AP", "mIoU", "mIoU (ms+flip)") if k in row]
        for figure in " ".join(figures).replace("-", "").split():
            assert figure.partition("(")[0] in header, (header, row)


def test_the_list_is_up_to_date(capsys):
    assert main(["--check"]) is None
    assert all(name in README.read_text() for name in LEAVES)


@pytest.mark.parametrize(
    ("dataset", "num_labels", "kappa", "weight"),
    [
        # The paper's paragraph "Hyper-parameters".
        ("pascal_context_60", 60, 25, 5),
        ("coco_stuff_10k", 171, 50, 10),
        ("ade20k_full", 847, 100, 100),
        ("coco_lvis", 1284, 100, 300),
    ],
)
def test_kappa_and_loss_weight_are_the_paper_s(dataset, num_labels, kappa, weight):
    model = load(f"{dataset}/semantic/mask2former-R50-rankseg.yaml").MODEL
    found = model.SEM_SEG_HEAD.NUM_CLASSES, model.RANKSEG.TOPK, model.RANKSEG.LOSS_WEIGHT
    assert found == (num_labels, kappa, weight)


def test_one_gpu_keeps_the_batch_or_scales_the_rate():
    kept = load("ade20k/semantic/mask2former-R50-1gpu-rankseg.yaml").SOLVER
    assert (kept.IMS_PER_BATCH, kept.ACCUMULATION_STEPS, kept.BASE_LR) == (16, 8, 1e-4)
    cfg = load("ade20k/semantic/mask2former-R50-1gpu-scaled-rankseg.yaml")
    scaled = DefaultTrainer.auto_scale_workers(cfg, 1).SOLVER
    assert (scaled.IMS_PER_BATCH, scaled.MAX_ITER) == (2, 8 * 160000)
    assert pytest.approx(1e-4 / 8) == scaled.BASE_LR


@pytest.mark.parametrize("path", OFFICIAL_PATHS)
def test_official_paths_lead_to_ours(path, tmp_path, monkeypatch):
    expected = CONFIGS / OFFICIAL_PATHS[path]
    assert expected.is_file() and find_config(ROOT / path) == expected
    # From anywhere, through a folder that is not there.
    monkeypatch.chdir(tmp_path)
    assert find_config(f"Mask2Former/{path}") == expected


def test_a_file_that_exists_goes_before_the_table(tmp_path, monkeypatch):
    path = Path("configs/youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml")
    monkeypatch.chdir(tmp_path)
    own = path.parent / "own.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("SEED: 1\n")
    Path("configs", TABLE).write_text(
        json.dumps({"paths": {str(path): "youtubevis_2019/own.yaml"}})
    )
    assert find_config(path) == own
    path.write_text("SEED: 2\n")
    assert find_config(path) == path


def test_our_own_paths_do_in_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = "configs/ade20k/semantic/mask2former-R50.yaml"
    assert find_config(path).samefile(ROOT / path)
    with pytest.raises(FileNotFoundError):
        find_config(tmp_path / path)


def test_config_by_official_path(caplog):
    path = "configs/vspw/swin/video_maskformer2_swin_base_IN21k_384_bs16_8ep-gt.yaml"
    with caplog.at_level(logging.INFO, logger="rankseg_m2f"):
        cfg = engine.load_config(path, ["SEED", "3"])
    assert cfg.MODEL.RANKSEG.USE_GT and cfg.MODEL.SWIN.EMBED_DIM == 128 and cfg.SEED == 3
    assert "vspw/semantic/mask2former-swin-B-oracle.yaml" in caplog.text


def test_the_log_is_told_the_file_that_was_found(monkeypatch):
    told = []
    monkeypatch.setattr(engine, "set_up", lambda cfg, args: told.append(args.config_file))
    monkeypatch.setattr(engine, "evaluate_weights", lambda cfg, *_: cfg)
    path = "configs/ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml"
    cfg = engine.main(engine.argument_parser().parse_args(["--config-file", path, "--eval-only"]))
    (file,) = map(Path, told)
    assert file.is_file() and file.samefile(CONFIGS / "ade20k/semantic/mask2former-R50.yaml")
    assert cfg.OUTPUT_DIR == "output/ade20k-semantic-R50"


@pytest.mark.parametrize(
    ("mistyped", "near"),
    [
        (
            "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50.yaml",
            "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
        ),
        (
            "configs/ade20k/semantic/mask2former-r50-rankseg.yaml",
            "configs/ade20k/semantic/mask2former-R50-rankseg.yaml",
        ),
    ],
)
def test_mistyped_paths_are_answered_by_near_ones(mistyped, near):
    with pytest.raises(FileNotFoundError, match=re.escape(near)):
        find_config(ROOT / mistyped)
    with pytest.raises(FileNotFoundError, match=r"config no\.such does not exist$"):
        find_config("no.such")
