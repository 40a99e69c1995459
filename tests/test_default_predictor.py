"""Detectron2's own DefaultPredictor with our models and a plain config, as README says."""

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from test_readme import DETECTRON2S, readmes_blocks

import rankseg_m2f
import rankseg_m2f.registration
from rankseg_m2f.config import get_cfg
from rankseg_m2f.engine.predictor import Predictor
from rankseg_m2f.modeling.results import build_inference_options

CONFIG = ROOT / "configs" / "scenes" / "panoptic" / "demo-rankseg.yaml"
PIXELS = [
    *("MODEL.META_ARCHITECTURE", "PixelSegmentor", "MODEL.SEM_SEG_HEAD.NAME", "FCNHead"),
    *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res5"], "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False),
    *("MODEL.MASK_FORMER.TEST.INSTANCE_ON", False),
]
LABELS = ["MODEL.META_ARCHITECTURE", "LabelClassifier", "INPUT.DATASET_MAPPER_NAME", "multi_label"]
LABELS += ["INPUT.IMAGE_SIZE", 128]


def config(new, *overrides):
    cfg = new()
    if type(cfg) is CfgNode:
        rankseg_m2f.add_rankseg_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "DATASETS.TEST", [], *overrides])
    return cfg


def random_weights(folder, *overrides) -> str:
    """A file with the weights of a model that was not trained."""
    torch.manual_seed(0)
    model = build_model(config(get_cfg, *overrides))
    path = folder / "model_final.pth"
    torch.save({"model": model.state_dict()}, path)
    return str(path)


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(theirs: dict, ours: dict):
    assert theirs.keys() == ours.keys()
    if "label_scores" in ours:
        torch.testing.assert_close(theirs["label_scores"], ours["label_scores"])
        assert torch.equal(theirs["label_ranking"], ours["label_ranking"])
    if "sem_seg" in ours:
        assert torch.equal(theirs["sem_seg"].argmax(0), ours["sem_seg"].argmax(0))
    if "panoptic_seg" in ours:
        assert torch.equal(theirs["panoptic_seg"][0], ours["panoptic_seg"][0])
        assert theirs["panoptic_seg"][1] == ours["panoptic_seg"][1]
    if "instances" in ours:
        assert theirs["instances"].image_size == ours["instances"].image_size
        torch.testing.assert_close(theirs["instances"].scores, ours["instances"].scores)


@pytest.mark.parametrize(
    ("overrides", "size", "results"),
    [
        ([], (90, 120), {"sem_seg", "panoptic_seg", "instances"}),
        (["MODEL.RANKSEG.FLAG", False], (90, 120), {"sem_seg", "panoptic_seg", "instances"}),
        (PIXELS, (90, 120), {"sem_seg"}),
        (LABELS, (128, 128), set()),
    ],
    ids=["queries", "plain queries", "pixels", "labels"],
)
def test_default_predictor_gives_what_ours_gives(overrides, size, results, tmp_path):
    weights = ["MODEL.WEIGHTS", random_weights(tmp_path, *overrides)]
    image = random_image(*size)
    plain = config(get_detectron2_cfg, *overrides, *weights)
    theirs = DefaultPredictor(plain)(np.ascontiguousarray(image[:, :, ::-1]))
    ours = Predictor(config(get_cfg, *overrides, *weights))(image)
    labels = {"label_scores", "label_ranking"}
    assert ours.keys() == results | (labels if "MODEL.RANKSEG.FLAG" not in overrides else set())
    if "sem_seg" in results:
        assert theirs["sem_seg"].argmax(0).shape == size
    assert_same(theirs, ours)


def test_readmes_lines_run(tmp_path, scenes, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    random_weights(tmp_path)
    cv2.imwrite("image.jpg", random_image(60, 80))
    block = readmes_blocks()[DETECTRON2S]
    named = "configs/ade20k/panoptic/mask2former-R50-rankseg.yaml"
    assert named in block and (ROOT / named).is_file()
    names = {}
    exec(block.replace(named, str(CONFIG)), names)
    assert names["result"]["sem_seg"].argmax(0).shape == (60, 80)
    assert type(names["cfg"]) is CfgNode
    # Without the datasets, whose metadata says so, no label would be a thing.
    assert build_inference_options(names["cfg"]).thing_ids
