"""Our pixel segmentors against official ones at tiny size.

    python tests/pixel_golden.py FOLDER [FOLDER ...]

prints the largest difference of each output of a folder and exits 0 when all lie within the
tolerances. Folders are laid out as ../shared/golden/pixel_*; seed, sizes and batch may be any.

Models are given the official features (`backbone.i`): all but the backbone is compared, and of
MaskFormer the backbone too.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import maskformer_golden
from data.compact_pixel_golden import LARGE, load_weights
from pixel_official import build_segmentor, head_weights, hooked_modules, our_name

from rankseg_m2f.modeling.pixel.pixel_segmentor import PixelSegmentor
from rankseg_m2f.rankseg.labels import ABSENT_LOGIT, RankedLabels
from rankseg_m2f.structures.predictions import PixelPrediction, PixelTargets

# Largest differences allowed; of all that is not named `OUTPUT` counts.
OUTPUT = 1e-5
OF_LABELS = 3e-6
ENCNET = 5e-5
# Where a bilinear map goes over to the logit -100 of labels left out.
EDGE = 3e-4
# Relative to the largest value, or to 1 if that is smaller: what is computed from outputs.
RELATIVE = {"train": 1e-5, "grad": 1e-4, "norm": 1e-4}
INTERMEDIATE = 1e-6
LOSSES = {
    "loss_seg": ("train.loss_seg", "train.loss"),
    "loss_ml": ("train.loss_img", "train.loss_se"),
    "loss_aux": ("train.aux_loss_seg",),
}


@dataclass
class Case:
    """One official segmentor with what went in and what came out."""

    folder: Path

    @cached_property
    def config(self) -> dict:
        """The official configuration."""
        return yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))

    @cached_property
    def meta(self) -> dict:
        """Facts about the case."""
        return json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        """What the official code gave."""
        return self._tensors("outputs.npz")

    @cached_property
    def inputs(self) -> list[dict]:
        """Images with their label maps, as datasets give them."""
        arrays = self._tensors("inputs.npz")
        maps = arrays["target"].masked_fill(arrays["target"] == self.meta["ignore_index"], 255)
        return [
            {"image": image, "sem_seg": label_map}
            for image, label_map in zip(arrays["image"], maps, strict=True)
        ]

    @property
    def features(self) -> dict[str, Tensor]:
        """The official backbone's maps; a ViT's only one is res5."""
        if "encoder" in self.outputs:
            # The original Segmenter's: class token first.
            tokens = self.outputs["encoder"][:, 1:].transpose(1, 2)
            return {"res5": tokens.unflatten(2, self.outputs["decoder"].shape[2:])}
        names = sorted(k for k in self.outputs if k.startswith("backbone."))
        maps = {f"res{6 - len(names) + i}": self.outputs[name] for i, name in enumerate(names)}
        if "backbone_cls_emb.0" in self.outputs:
            maps["cls_emb"] = self.outputs["backbone_cls_emb.0"]
        return maps

    def model(self) -> PixelSegmentor:
        """Ours, with the official weights, in eval mode."""
        model = build_segmentor(self.config, self.features)
        weights = load_weights(self.folder / "weights.npz")
        weights = {k: torch.from_numpy(v.copy()) for k, v in weights.items()}
        model.load_state_dict(head_weights(weights, model))
        return model.eval()

    def _tensors(self, name: str) -> dict[str, Tensor]:
        with np.load(self.folder / name) as arrays:
            return {k: torch.from_numpy(v) for k, v in arrays.items()}


def our_values(case: Case) -> dict[str, Tensor]:
    """What our model makes of a case, by the official names of outputs."""
    model = case.model()
    values = {}
    hooks = record_modules(model, values)
    clips = model.clips(case.inputs)
    prediction = model.predict(clips)
    targets = model.targets(clips)
    ranked = model.policy.train(prediction.presence_logits, targets.presence)
    ranked_prediction = model.ranked(prediction, ranked)
    maps = ranked_prediction.logits.of_all()  # of κ ranks, or of K labels
    full = maps if ranked is None else ranked.scatter(maps, dim=1, fill=ABSENT_LOGIT)
    values["head_logits"] = values["decoder"] = full
    values["seg_logits"] = upsampled(full, targets)
    if prediction.presence_logits is not None:
        values |= dict.fromkeys(("img_pred", "se_logits"), prediction.presence_logits)
    if ranked is not None:
        values["topk_index"] = ranked.index
    for hook in hooks:
        hook.remove()
    if any(name.startswith("train.") for name in case.outputs):
        values |= training_values(model, prediction, targets, ranked)
    return {k: v.detach() for k, v in values.items()}


def record_modules(model: PixelSegmentor, values: dict[str, Tensor]) -> list:
    """Hooks that keep inputs and outputs of modules under their official names."""

    def hook(name, kept):
        def keep(_module, args, output):
            values.setdefault(name, kept(args[0], output))

        return keep

    modules = hooked_modules(model)
    return [module.register_forward_hook(hook(k, kept)) for k, (module, kept) in modules.items()]


def training_values(
    model: PixelSegmentor,
    prediction: PixelPrediction,
    targets: PixelTargets,
    ranked: RankedLabels | None,
) -> dict[str, Tensor]:
    """Losses, gradients of their sum, and what the official code logs beside them."""
    if model.aux_head is not None:
        # Computed while training alone; dropout and batch norms are to stay as in evaluation.
        prediction.auxiliary = model.aux_head(model.backbone(None), 1).logits
    if model.policy.oracle_train:
        # The oracle's labels stand for ranks, ascending.
        ranked = RankedLabels(
            torch.stack([row.nonzero().flatten() for row in targets.presence]), model.num_labels
        )
        logits = ranked.gather(prediction.logits.of_all(), dim=1)
        losses = model.losses(prediction, targets, None)
    else:
        final = model.ranked(prediction, ranked)
        logits = final.logits.of_all()
        losses = model.losses(final, targets, ranked)
    losses |= model.label_loss(prediction, targets)
    values = gradients(model, losses)
    for ours, loss in losses.items():
        values |= dict.fromkeys(LOSSES[ours], loss)
    labels = targets.label_maps if ranked is None else ranked.rank_of(targets.label_maps, -1)
    values["train.acc_seg"] = accuracy(logits, targets, labels)
    if prediction.auxiliary is not None:
        auxiliary = prediction.auxiliary.of_all()
        values["train.aux_acc_seg"] = accuracy(auxiliary, targets, targets.label_maps)
    values |= dict.fromkeys(("train_rank_logits", "train_logits"), logits)
    if ranked is not None:
        values |= selection_quality(ranked, targets) | {"gt_index": ranked.index}
    return values


def gradients(model: PixelSegmentor, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of all parameters under our names, and their norms."""
    sum(losses.values()).backward()
    grads = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    values = {f"grad.{k}": grad for k, grad in grads.items()}
    return values | {f"norm.{k}": grad.norm() for k, grad in grads.items()}


def upsampled(maps: Tensor, targets: PixelTargets) -> Tensor:
    """Maps at the size of the label maps."""
    size = targets.label_maps.shape[1:]
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def accuracy(logits: Tensor, targets: PixelTargets, labels: Tensor) -> Tensor:
    """Percentage of all pixels, ignored ones included, whose best label is the true one."""
    return 100 * (upsampled(logits, targets).argmax(1) == labels).float().mean()


def selection_quality(ranked: RankedLabels, targets: PixelTargets) -> dict[str, Tensor]:
    """Of the labels selected: recall by pixels and by labels, and precision; means of images."""
    presence, label_maps = targets.presence, targets.label_maps
    hits = torch.zeros_like(presence).scatter(1, ranked.index, True) & presence
    seen = (ranked.rank_of(label_maps, missing=-1) >= 0).flatten(1).sum(1)
    return {
        "train.acc_pix": (seen / (label_maps >= 0).flatten(1).sum(1)).mean(),
        "train.acc_img": (hits.sum(1) / presence.sum(1)).mean(),
        "train.acc_img_accuracy": (hits.sum(1) / ranked.kappa).mean(),
    }


def official_values(case: Case) -> dict[str, Tensor]:
    """Outputs to compare, parameters by our names."""
    model = case.model()
    given = ("backbone", "encoder", "step")
    values = {k: v for k, v in case.outputs.items() if not k.startswith(given)}
    norms = case.meta.get("grad_norms", {})
    values |= {f"norm.{k}": torch.tensor(v) for k, v in norms.items()}
    if case.meta.get("per_image_stacked"):
        values |= {k: v.mean() for k, v in values.items() if k.startswith("train.")}
    for name in values.keys() & {"rank_logits", "rank_norm"}:
        if values[name].shape[3] == model.ml_norm.ranks:
            values[name] = values[name].movedim(3, 1)  # the official code has ranks last
    kinds = tuple(f"{kind}." for kind in ("grad", "norm"))
    return {
        k if not k.startswith(kinds) else f"{k[:5]}{our_name(k[5:], model)}": v
        for k, v in values.items()
        if "backbone." not in k
    }


def allowed(name: str, case: Case, official: Tensor) -> Tensor:
    """Largest difference allowed of each value of an output."""
    kind = name.split(".")[0]
    largest = official.abs().max()
    if kind in RELATIVE:
        return torch.as_tensor(RELATIVE[kind] * largest.clamp(min=1))
    if kind in ("img_pred", "topk_index", "gt_index"):
        return torch.tensor(OF_LABELS if official.is_floating_point() else 0.0)
    head = case.config.get("decode_head", {}).get("type", "")
    bound = ENCNET if head.endswith("EncHead") else OUTPUT
    if kind == "seg_logits" and "ESSNet" in head:
        # Labels are left out pixel by pixel, so maps are full of edges.
        return torch.where(official < -20, EDGE, bound)
    if kind.endswith("logits"):
        return torch.tensor(bound)
    return torch.as_tensor(max(bound, INTERMEDIATE * float(largest)))


@dataclass
class Row:
    """How far one output is from the official one, and how far it may be."""

    name: str
    difference: float
    allowed: float
    close: bool


def compare(case: Case) -> tuple[list[Row], list[str]]:
    """All outputs that our model makes, and the names of those it does not."""
    if "MODEL" in case.config:
        return [Row(*row) for row in maskformer_golden.compare(case.folder)], []
    ours = our_values(case)
    # Compact folders hold a part of the rows and columns of large maps.
    step = int(case.outputs.get("step", 1))
    ours |= {name: ours[name][..., ::step, ::step] for name in ours.keys() & set(LARGE)}
    rows, missing = [], []
    for name, official in official_values(case).items():
        if name not in ours:
            missing.append(name)
            continue
        if ours[name].shape[:2] != official.shape[:2] or ours[name].numel() != official.numel():
            rows.append(Row(name, float("inf"), 0.0, False))
            continue
        bound = allowed(name, case, official)
        difference = (ours[name].reshape(official.shape) - official).abs()
        worst = float(difference.max())
        rows.append(Row(name, worst, float(bound.max()), bool((difference <= bound).all())))
    return rows, missing


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    close = True
    for folder in parser.parse_args().folders:
        rows, missing = compare(Case(folder))
        print(folder.name)
        for row in rows:
            note = "" if row.close else "  TOO FAR"
            print(f"  {row.name:60s} {row.difference:.1e} <= {row.allowed:.0e}{note}")
            close &= row.close
        if missing:
            print(f"  not made without the backbone: {', '.join(missing)}")
    return 0 if close else 1


if __name__ == "__main__":
    sys.exit(main())
