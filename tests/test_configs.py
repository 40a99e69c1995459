"""Every config file parses and builds; ours say what the official ones say."""

import json

import pytest
import torch
from conftest import ROOT, TESTS
from detectron2.modeling import build_model

import rankseg_m2f.modeling.label_classifier
import rankseg_m2f.modeling.mask_former  # noqa: F401  (registration)
from rankseg_m2f.config import get_cfg

CONFIGS = ROOT / "configs"
FILES = sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.yaml"))
COMPLETE = [f for f in FILES if "base" not in f]
# Ours -> keys in which the official file of the same model differs from the defaults.
OFFICIAL = json.loads((TESTS / "data" / "official_configs.json").read_text())
# Where we differ on purpose: weights lie where the user puts them; AP costs nothing to report;
# official RankSeg panoptic runs evaluate half as often.
OURS = {"MODEL.WEIGHTS", "OUTPUT_DIR", "MODEL.MASK_FORMER.TEST.INSTANCE_ON", "TEST.EVAL_PERIOD"}


def flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value


def load(name):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


@pytest.mark.parametrize("name", COMPLETE)
def test_builds_without_weights(name):
    cfg = load(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    node = cfg.MODEL.RANKSEG
    assert (model.ml_head is not None) == (node.FLAG and not node.SCORES)


@pytest.mark.parametrize("name", OFFICIAL)
def test_says_what_the_official_file_says(name):
    ours, defaults = dict(flat(load(name))), dict(flat(get_cfg()))
    official = {**defaults, **OFFICIAL[name]}
    differing = {k for k in official.keys() | ours.keys() if official.get(k) != ours.get(k)}
    assert differing <= OURS, {k: (official.get(k), ours.get(k)) for k in differing - OURS}


def test_every_file_is_tested_or_a_base():
    assert OFFICIAL.keys() <= set(FILES)
    assert all("base" in f or f in COMPLETE for f in FILES) and len(COMPLETE) >= 11
