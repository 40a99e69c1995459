"""The official models at tiny size: weights, inputs and every intermediate (tests/data/golden)."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from data.compact_golden import STEP, load_weights
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor

import rankseg_m2f.registration  # noqa: F401
from rankseg_m2f.config import get_cfg

FOLDER = Path(__file__).parent / "data" / "golden"
# The full golden data, for cases too large to be part of the project.
SHARED = Path(__file__).parent.parent.parent / "shared" / "golden"
IMAGE_CASES = (
    "image_r50_baseline",
    "image_swin_baseline",
    "image_r50_rankseg",
    "image_swin_rankseg_kappaK",
    "image_r50_gt",
)
SEM_SEG_STEP = STEP


def _tensors(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {key: torch.from_numpy(value) for key, value in arrays.items()}


@dataclass
class Case:
    """One official model with what went in and what came out."""

    name: str
    cfg: object
    meta: dict
    inputs: list[dict]
    outputs: dict[str, Tensor]

    def model(self, *overrides) -> torch.nn.Module:
        """Our model with the official weights, in eval mode; KEY, value pairs on top."""
        cfg = self.cfg.clone()
        cfg.merge_from_list(list(overrides))
        model = build_model(cfg).eval()
        weights = load_weights(folder_of(self.name) / "weights.npz")
        model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()})
        return model


def folder_of(name: str) -> Path:
    """Where a case is: in the project or in the shared data."""
    return FOLDER / name if (FOLDER / name).is_dir() else SHARED / name


def load_case(name: str) -> Case:
    """Read a case; its thing and stuff ids are registered under the config's dataset name."""
    case = _read_case(name)
    # Each time, since what a test registers is gone after it.
    metadata = MetadataCatalog.get(case.cfg.DATASETS.TRAIN[0])
    metadata.thing_dataset_id_to_contiguous_id = {i: i for i in case.meta["thing_ids"] or ()}
    return case


@lru_cache
def _read_case(name: str) -> Case:
    folder = folder_of(name)
    meta = json.loads((folder / "meta.json").read_text())
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "config.yaml"))
    # The official oracle spares the auxiliary layers.
    cfg.MODEL.RANKSEG.USE_GT_AUX = False
    arrays = _tensors(folder / "inputs.npz")
    inputs = []
    for i in range(sum(key.startswith("image.") for key in arrays)):
        x = {
            "image": arrays[f"image.{i}"],
            "height": int(arrays.get(f"height.{i}", arrays["height.0"])),
            "width": int(arrays.get(f"width.{i}", arrays["width.0"])),
        }
        if cfg.MODEL.RANKSEG.USE_GT:
            x["instances"] = Instances(
                tuple(x["image"].shape[-2:]),
                gt_classes=arrays[f"gt_classes.{i}"],
                gt_masks=arrays[f"gt_masks.{i}"],
            )
        inputs.append(x)
    if meta["video"]:
        # The frames of one clip.
        inputs = [{**inputs[0], "image": [x["image"] for x in inputs]}]
    return Case(name, cfg, meta, inputs, _tensors(folder / "outputs.npz"))


@lru_cache
def losses() -> dict[str, Tensor]:
    """Official loss, matcher and criterion values."""
    return _tensors(FOLDER / "losses.npz")
