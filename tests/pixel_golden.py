"""Our pixel segmentors against official ones at tiny size.

    python tests/pixel_golden.py FOLDER [FOLDER ...]

prints the largest difference of each output of a folder and exits 0 when all lie within the
tolerances. Folders are laid out as ../shared/golden/pixel_*; seed, sizes and batch may be any.

Whole models are compared, in double precision: weights are loaded as MODEL.WEIGHTS are, and images
go through backbone, head, losses, gradients and sliding windows. Official rounding in single
precision (`fp32_vs_fp64_max_abs` of meta.json) is allowed where it exceeds the tolerance.
"""

import argparse
import re
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "backbones")]

import maskformer_golden
from data.compact_pixel_golden import LARGE, load_weights
from golden_folder import GoldenFolder
from official_backbones import build as build_backbone
from official_backbones import our_config
from pixel_official import build_segmentor, hooked_modules

from rankseg_m2f.modeling.pixel.pixel_segmentor import PixelSegmentor
from rankseg_m2f.modeling.wrappers.sliding import SlidingSegmentor
from rankseg_m2f.rankseg.labels import ABSENT_LOGIT, RankedLabels
from rankseg_m2f.structures.predictions import PixelPrediction, PixelTargets
from rankseg_m2f.weights.checkpoint import Checkpointer
from rankseg_m2f.weights.names import sources

# Largest differences allowed; of all that is not named `OUTPUT` counts.
OUTPUT = 1e-5
BACKBONE = 5e-6
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


class Case(GoldenFolder):
    """An official segmentor of pixels."""

    @cached_property
    def config(self) -> dict:
        """The official configuration."""
        return yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))

    @cached_property
    def inputs(self) -> list[dict]:
        """Images with their label maps, as datasets give them."""
        arrays = self.tensors("inputs.npz")
        maps = arrays["target"].masked_fill(arrays["target"] == self.meta["ignore_index"], 255)
        return [
            {"image": image, "sem_seg": label_map}
            for image, label_map in zip(arrays["image"], maps, strict=True)
        ]

    @property
    def slide_images(self) -> Tensor:
        """(N, 3, h, w) images larger than a window."""
        return self.tensors("inputs.npz")["slide_image"]

    @property
    def windows(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Crop, stride and output size of sliding windows."""
        if "slide" in self.meta:
            return tuple(tuple(self.meta["slide"][k]) for k in ("crop", "stride", "output_size"))
        # The original Segmenter's are in a note.
        note = " ".join(self.meta["notes"])
        crop, stride = map(int, re.search(r"window (\d+) stride (\d+)", note).groups())
        output = tuple(map(int, re.search(r"output (\d+)x(\d+)", note).groups()))
        return (crop, crop), (stride, stride), output

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """By official names."""
        weights = load_weights(self.folder / "weights.npz")
        return {k: torch.from_numpy(v.copy()) for k, v in weights.items()}

    def model(self) -> PixelSegmentor:
        """Ours, with the official weights, in eval mode and double precision."""
        mean, std = self.meta["pixel_mean"], self.meta["pixel_std"]
        backbone = build_backbone(our_config(self.config))
        model = build_segmentor(self.config, backbone, pixel_mean=mean, pixel_std=std)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "official.pth"
            torch.save({"meta": {}, "state_dict": self.weights}, file)
            checkpointer = Checkpointer(model, for_evaluation=True)
            checkpointer.load(file)
        if not checkpointer.report.complete:
            raise ValueError(checkpointer.report.describe())
        return model.double().eval()


def our_values(case: Case) -> dict[str, Tensor]:
    """What our model makes of a case, by the official names of outputs."""
    model = case.model()
    values, features = {}, {}
    hooks = record_modules(model, values)
    hooks.append(model.backbone.register_forward_hook(lambda _m, _x, maps: features.update(maps)))
    clips = model.clips(case.inputs)
    prediction = model.predict(clips)
    targets = model.targets(clips)
    ranked = model.policy.train(prediction.presence_logits, targets.presence)
    ranked_prediction = model.ranked(prediction, ranked)
    maps = ranked_prediction.logits.of_all()  # of κ ranks, or of K labels
    full = maps if ranked is None else ranked.scatter(maps, dim=1, fill=ABSENT_LOGIT)
    values |= named_features(features)
    values["head_logits"] = values["decoder"] = full
    height, width = case.inputs[0]["image"].shape[1:]
    values["seg_logits"] = upsampled(full, targets)[:, :, :height, :width]
    if prediction.presence_logits is not None:
        values |= dict.fromkeys(("img_pred", "se_logits"), prediction.presence_logits)
    if ranked is not None:
        values["topk_index"] = ranked.index
    for hook in hooks:
        hook.remove()
    if any(name.startswith("train.") for name in case.outputs):
        values |= training_values(model, features, prediction, targets, ranked)
    if case.outputs.keys() & {"slide_logits", "slide_prob"}:
        values |= slide_values(model, case)
    return {k: v.detach() for k, v in values.items()}


def named_features(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's maps by official names."""
    maps = [features[name] for name in sorted(features) if name != "cls_emb"]
    values = {f"backbone.{i}": x for i, x in enumerate(maps)} | {"encoder": maps[-1]}
    if "cls_emb" in features:
        values["backbone_cls_emb.0"] = features["cls_emb"]
    return values


@torch.no_grad()
def slide_values(model: PixelSegmentor, case: Case) -> dict[str, Tensor]:
    """Averages of windows by the product's own wrapper."""
    crop, stride, (height, width) = case.windows
    sliding = SlidingSegmentor(model, crop, stride)
    images = case.slide_images

    def averages(images: Tensor) -> Tensor:
        inputs = [{"image": x, "height": height, "width": width} for x in images]
        clips = sliding.clips(inputs)
        prediction = sliding.predict(clips)
        maps = []
        for i, hints in enumerate(sliding.hints(inputs, clips)):
            candidates = sliding.choose(prediction[i].presence_logits, hints)
            frames = sliding.averaged_frames(
                prediction[i], candidates, clips.sizes_of(i), sliding.inference_options
            )
            maps += [frame.scores for frame in frames]
        return torch.stack(maps)

    logits = averages(images)
    mirrored = averages(images.flip(3)).flip(3)
    both = (logits.softmax(1) + mirrored.softmax(1)) / 2
    return {"slide_logits": logits, "slide_prob": both[0]}


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
    features: dict[str, Tensor],
    prediction: PixelPrediction,
    targets: PixelTargets,
    ranked: RankedLabels | None,
) -> dict[str, Tensor]:
    """Losses, gradients of their sum, and what the official code logs beside them."""
    if model.aux_head is not None:
        # Computed while training alone; dropout and batch norms are to stay as in evaluation.
        prediction.auxiliary = model.aux_head(features, 1).logits
    final = model.ranked(prediction, ranked)
    losses = model.losses(final, targets, ranked)
    logits = final.logits.of_all()
    counts = targets.presence.sum(1)
    if model.policy.oracle_train and (counts == counts[0]).all():
        # The oracle's labels, ascending, stand for ranks.
        rows = targets.presence.nonzero()[:, 1].view(len(counts), -1)
        ranked = RankedLabels(rows, model.num_labels)
        logits = ranked.gather(logits, dim=1)
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
    values = {k: v for k, v in case.outputs.items() if not k.startswith(("grad.", "step"))}
    if "encoder" in values:
        # The original Segmenter's tokens: class token first.
        tokens = values["encoder"][:, 1:].transpose(1, 2)
        values["encoder"] = tokens.unflatten(2, values["decoder"].shape[2:])
    if case.meta.get("per_image_stacked"):
        values |= {k: v.mean() for k, v in values.items() if k.startswith("train.")}
    for name in values.keys() & {"rank_logits", "rank_norm"}:
        if values[name].shape[3] == model.ml_norm.ranks:
            values[name] = values[name].movedim(3, 1)  # the official code has ranks last
    grads = {k[5:]: v for k, v in case.outputs.items() if k.startswith("grad.")}
    norms = case.meta.get("grad_norms", {})
    norms = {k: torch.full(case.weights[k].shape, norm) for k, norm in norms.items()}
    values |= {f"grad.{k}": v for k, v in by_our_names(case, grads).items()}
    return values | {f"norm.{k}": v.flatten()[0] for k, v in by_our_names(case, norms).items()}


def by_our_names(case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of some parameters, by official names, as our parameters have them.

    They go through the tables in place of the weights.
    """
    unknown = {k: torch.full(v.shape, torch.nan) for k, v in case.weights.items()}
    ours = sources.our_names(unknown | tensors)
    return {k: v for k, v in ours.items() if not v.isnan().any()}


def allowed(name: str, case: Case, official: Tensor) -> Tensor:
    """Largest difference allowed of each value of an output."""
    noise = case.meta.get("fp32_vs_fp64_max_abs", {}).get(name, 0.0)
    noise = 0.0 if isinstance(noise, str) else 1.1 * noise
    return bound_of(name, case, official).clamp(min=noise)


def bound_of(name: str, case: Case, official: Tensor) -> Tensor:
    """The tolerance of PIXEL_FACTS of each value of an output."""
    kind = name.split(".")[0]
    largest = official.abs().max()
    if kind in RELATIVE:
        return torch.as_tensor(RELATIVE[kind] * largest.clamp(min=1))
    if kind in ("img_pred", "topk_index", "gt_index"):
        return torch.tensor(OF_LABELS if official.is_floating_point() else 0.0)
    head = case.config.get("decode_head", {}).get("type", "")
    bound = ENCNET if head.endswith("EncHead") else OUTPUT
    if kind in ("backbone", "backbone_cls_emb", "encoder"):
        return torch.tensor(BACKBONE)
    if kind == "slide_logits":
        return torch.tensor(EDGE if overlaps(case) and selects(case) else bound)
    if kind == "seg_logits" and "ESSNet" in head:
        # Labels are left out pixel by pixel, so maps are full of edges.
        return torch.where(official < -20, EDGE, bound)
    if kind.endswith("logits"):
        return torch.tensor(bound)
    return torch.as_tensor(max(bound, INTERMEDIATE * float(largest)))


def overlaps(case: Case) -> bool:
    """Whether sliding windows overlap."""
    crop, stride, _ = case.windows
    return any(step < side for step, side in zip(stride, crop, strict=True))


def selects(case: Case) -> bool:
    """Whether κ is less than K."""
    return case.outputs.get("topk_index", torch.empty(0)).shape[-1] in range(
        1, case.meta["num_classes"]
    )


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
            print(f"  not made: {', '.join(missing)}")
            close = False
    return 0 if close else 1


if __name__ == "__main__":
    sys.exit(main())
