"""Our MaskFormer against the official one at tiny size, for `pixel_golden.py` and tests."""

import dataclasses
from functools import cached_property
from pathlib import Path

import torch
from data.compact_pixel_golden import load_weights
from detectron2.modeling import build_model
from detectron2.structures import Instances
from golden_folder import GoldenFolder
from torch import Tensor

import rankseg_m2f.registration  # noqa: F401
from rankseg_m2f.config import get_cfg
from rankseg_m2f.modeling.query.mask_former import MaskFormer
from rankseg_m2f.structures.predictions import QueryPrediction

# Largest differences allowed, by the first word of an output's name; 0: equal.
ABSOLUTE = {
    "backbone": 1e-4,
    "mask_features": 1e-4,
    "transformer_encoder_features": 1e-4,
    "queries": 1e-4,
    "pred_logits": 4e-4,
    "aux_pred_logits": 4e-4,
    "pred_masks": 2e-4,
    "aux_pred_masks": 2e-4,
    "sem_seg": 3e-5,
    "panoptic_seg": 0.0,
    "segments_info": 0.0,
    "match": 0.0,
}
# Relative to the largest value, or to 1 if that is smaller.
RELATIVE = {"train": 1e-5, "grad": 1e-4, "norm": 1e-3}


class MaskFormerCase(GoldenFolder):
    """An official MaskFormer."""

    @cached_property
    def inputs(self) -> list[dict]:
        """Images with their objects, as datasets give them."""
        arrays = self.tensors("inputs.npz")
        inputs = []
        for i in range(sum(name.startswith("image.") for name in arrays)):
            image, size = arrays[f"image.{i}"], arrays[f"out_size.{i}"].tolist()
            objects = Instances(
                tuple(image.shape[-2:]),
                gt_classes=arrays[f"gt.{i}.labels"],
                gt_masks=arrays[f"gt.{i}.masks"],
            )
            inputs.append(
                {"image": image, "instances": objects, "height": size[0], "width": size[1]}
            )
        return inputs

    def config(self, *overrides: object):
        """The official configuration, with KEY, value pairs on top."""
        cfg = get_cfg()
        cfg.merge_from_file(str(self.folder / "config.yaml"))
        cfg.MODEL.DEVICE = "cpu"
        cfg.merge_from_list(list(overrides))
        return cfg

    def model(self) -> MaskFormer:
        """Ours, with the official weights, in eval mode."""
        model = build_model(self.config()).eval()
        model.inference_options = dataclasses.replace(
            model.inference_options, thing_ids=set(self.meta["thing_ids"])
        )
        weights = load_weights(self.folder / "weights.npz")
        model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()})
        return model


def our_values(case: MaskFormerCase) -> dict[str, Tensor]:
    """What our model makes of a case, by the official names of outputs."""
    model = case.model()
    clips = model.clips(case.inputs)
    features = model.backbone(clips.frames)
    pixels = model.sem_seg_head.pixel_decoder(features)
    layers = model.sem_seg_head(features, num_frames=1)
    norm = model.sem_seg_head.predictor.transformer.decoder.norm
    values = {f"backbone.{name}": x for name, x in features.items()}
    values |= {
        "mask_features": pixels.mask_features,
        "transformer_encoder_features": pixels.encoded,
        "queries": torch.stack([norm(layer.queries) for layer in layers]),
    }
    for i, layer in enumerate(layers):
        logits, masks = layer.class_logits, layer.mask_logits.squeeze(2)
        last = layer is layers[-1]
        values["pred_logits" if last else f"aux_pred_logits.{i}"] = logits
        values["pred_masks" if last else f"aux_pred_masks.{i}"] = masks
    values |= training_values(case, model, layers)
    with torch.no_grad():
        results = model(case.inputs)
    for i, result in enumerate(results):
        values[f"sem_seg.{i}"] = result["sem_seg"]
        if "panoptic_seg" in result:
            values[f"panoptic_seg.{i}"], segments = result["panoptic_seg"]
            values[f"segments_info.{i}"] = as_tensor(segments)
    return {k: v.detach() for k, v in values.items() if v is not None}


def training_values(
    case: MaskFormerCase, model: MaskFormer, layers: list[QueryPrediction]
) -> dict[str, Tensor]:
    """Matches, losses and gradients."""
    targets = model.targets(model.clips(case.inputs)).clips
    values = {}
    for i, matches in enumerate(model.criterion.matcher(layers, targets)):
        name = f"match.aux{i}" if i < len(layers) - 1 else "match.final"
        values |= {f"{name}.{b}": ordered(torch.stack(pair)) for b, pair in enumerate(matches)}
    losses = model.criterion(layers, targets)
    for name, loss in losses.items():
        weight = model.criterion.weights["_".join(name.split("_")[:2])]
        values[f"train.{name}"] = loss / weight
    total = sum(losses.values())
    total.backward()
    values["train.total_weighted"] = total
    for name, parameter in model.named_parameters():
        values[f"grad.{name}"] = parameter.grad
        values[f"norm.{name}"] = parameter.grad.norm()
    return values


def official_values(case: MaskFormerCase) -> dict[str, Tensor]:
    """Outputs to compare."""
    values = {k: v for k, v in case.outputs.items() if k != "step"}
    values = {k: ordered(v) if k.startswith("match.") else v for k, v in values.items()}
    values |= {f"norm.{k}": torch.tensor(v) for k, v in case.meta["grad_norms"].items()}
    segments = {k: v for k, v in case.meta.items() if k.startswith("segments_info.")}
    return values | {k: as_tensor(v) for k, v in segments.items()}


def ordered(match: Tensor) -> Tensor:
    """(2, M) queries and objects in the order of objects."""
    return match[:, match[1].argsort()]


def as_tensor(segments: list[dict]) -> Tensor:
    """(S, 3) id, whether it is a thing, and label of each segment."""
    rows = [[s["id"], int(s["isthing"]), s["category_id"]] for s in segments]
    return torch.tensor(rows).reshape(-1, 3)


def compare(folder: Path) -> list[tuple[str, float, float, bool]]:
    """Of each official output: name, largest difference, that allowed, and whether it is close.

    An output that our model does not make, or in another shape, is infinitely far.
    """
    case = MaskFormerCase(folder)
    ours = our_values(case)
    rows = []
    for name, official in official_values(case).items():
        kind = name.partition(".")[0]
        allowed = ABSOLUTE.get(kind)
        if allowed is None:
            allowed = RELATIVE[kind] * float(official.abs().max().clamp(min=1))
        difference = float("inf")
        if name in ours and ours[name].shape == official.shape:
            difference = float((ours[name] - official).abs().max()) if official.numel() else 0.0
        rows.append((name, difference, allowed, difference <= allowed))
    return rows
