"""Our pixel segmentors against official ones at tiny size.

    python tests/pixel_golden.py FOLDER [FOLDER ...]

prints the largest difference of each output of a folder and exits 0 when all lie within the
tolerances. Folders are laid out as ../shared/golden/pixel_*; seed, sizes and batch may be any.

The heads read the official features (`backbone.i`), and are told nothing else.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from data.compact_golden import load_weights
from pixel_official import Heads, build_heads, hooked_modules

from rankseg_m2f.rankseg.labels import ABSENT_LOGIT, RankedLabels
from rankseg_m2f.rankseg.pixel_loss import pixel_cross_entropy
from rankseg_m2f.rankseg.presence import presence_of_map

# The largest difference allowed, by the first word of an output's name; see `tolerance`.
TOLERANCES = {"img_pred": 3e-6, "se_logits": 3e-6}
HEAD_TOLERANCE = 1e-5
ENCNET_TOLERANCE = 5e-5
# Values that are computed from the outputs above: relative to their size.
RELATIVE = {"train": 1e-5, "grad": 1e-4, "norm": 1e-4}


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
        with np.load(self.folder / "outputs.npz") as arrays:
            return {k: torch.from_numpy(v) for k, v in arrays.items()}

    @cached_property
    def target(self) -> Tensor:
        """(B, H, W) label maps, -1 where ignored."""
        with np.load(self.folder / "inputs.npz") as arrays:
            target = torch.from_numpy(arrays["target"])
        return target.masked_fill(target == self.meta["ignore_index"], -1)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """By official names."""
        arrays = load_weights(self.folder / "weights.npz")
        return {k: torch.from_numpy(v.copy()) for k, v in arrays.items()}

    @property
    def features(self) -> dict[str, Tensor]:
        """The official backbone's maps, as res2, res3, ... or, of ViT, as the last alone."""
        if "encoder" in self.outputs:
            # The original Segmenter's: class token first.
            tokens = self.outputs["encoder"][:, 1:].transpose(1, 2)
            return {"last": tokens.unflatten(2, self.outputs["decoder"].shape[2:])}
        names = sorted(k for k in self.outputs if k.startswith("backbone."))
        maps = {f"res{i + 2}": self.outputs[name] for i, name in enumerate(names)}
        maps["last"] = self.outputs[names[-1]]
        if "backbone_cls_emb.0" in self.outputs:
            maps["cls_emb"] = self.outputs["backbone_cls_emb.0"]
        return maps

    def heads(self) -> Heads:
        """Ours, with the official weights, in eval mode."""
        heads = build_heads(self.config)
        for name, module in heads.modules.items():
            start = f"{name}." if "decode_head" in self.config else "decoder."
            weights = {k: v for k, v in self.weights.items() if k.startswith(start)}
            module.load_state_dict({k.removeprefix(start): v for k, v in weights.items()})
            module.eval()
        return heads


@dataclass
class Run:
    """What our heads make of a case, by the official names of outputs."""

    case: Case
    heads: Heads
    values: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self) -> dict[str, Tensor]:
        """All values."""
        hooks = self.record_modules()
        case, head = self.case, self.heads.decode_head
        presence_logits, logits = head(case.features)
        ranked = self.ranking(presence_logits)
        if ranked is not None:
            self.values["topk_index"] = ranked.index
            rank_logits = head.temperature(logits.of_labels(ranked.index), dim=1)
            full = ranked.scatter(rank_logits, dim=1, fill=ABSENT_LOGIT)
            self.train(
                presence_logits, rank_logits, ranked.rank_of(case.target, missing=-1), ranked
            )
        else:
            full = self.unranked(presence_logits, logits)
        self.values["head_logits"] = self.values["decoder"] = full
        self.values["seg_logits"] = F.interpolate(
            full, case.target.shape[1:], mode="bilinear", align_corners=False
        )
        if presence_logits is not None:
            self.values |= {"img_pred": presence_logits, "se_logits": presence_logits}
        for hook in hooks:
            hook.remove()
        return {k: v.detach() for k, v in self.values.items()}

    def ranking(self, presence_logits: Tensor | None) -> RankedLabels | None:
        """The labels selected; None: labels are not ranked."""
        if presence_logits is None or self.heads.decode_head.temperature is None:
            return None
        return RankedLabels.top(presence_logits, self.heads.kappa)

    def unranked(self, presence_logits: Tensor | None, logits) -> Tensor:
        """Logits of all labels of a head that does not rank; it is trained on them, too."""
        case, head = self.case, self.heads.decode_head
        if self.heads.oracle:
            present = presence_of_map(case.target, head.num_labels)
            logits = logits.of_present(present)
            self.values["gt_index"] = torch.stack([row.nonzero().flatten() for row in present])
            ranked = RankedLabels(self.values["gt_index"], head.num_labels)
            rank_logits = ranked.gather(logits.of_all(), dim=1)
            self.train(None, rank_logits, ranked.rank_of(case.target, missing=-1), ranked)
            return logits.of_all()
        full = logits.of_all()
        if "train.loss_seg" in case.outputs or "train.loss" in case.outputs:
            self.train(presence_logits, full, case.target)
            self.values["train_logits"] = full
        return full

    def train(
        self,
        presence_logits: Tensor | None,
        logits: Tensor,
        target: Tensor,
        ranked: RankedLabels | None = None,
    ) -> None:
        """Losses, gradients of their sum, and what the official code logs beside them.

        Args:
            logits: (B, K or κ, h, w).
            target: (B, H, W) of labels or ranks.
        """
        heads, case = self.heads, self.case
        losses = {"loss_seg": pixel_cross_entropy(logits, target, "train.loss" not in case.outputs)}
        presence = presence_of_map(case.target, heads.decode_head.num_labels)
        if presence_logits is not None:
            loss = heads.label_loss(presence_logits, presence)
            losses["loss_se" if heads.gates else "loss_img"] = loss
        if heads.auxiliary_head is not None:
            auxiliary = heads.auxiliary_head(case.features)[1].of_all()
            losses["aux_loss_seg"] = 0.4 * pixel_cross_entropy(auxiliary, case.target)
            self.values["train.aux_acc_seg"] = pixel_accuracy(auxiliary, case.target)
        self.gradients(sum(losses.values()))
        self.values["train_rank_logits"] = logits
        self.values["train.acc_seg"] = pixel_accuracy(logits, target)
        self.values |= {f"train.{k}": v for k, v in losses.items()}
        self.values["train.loss"] = losses["loss_seg"]
        if ranked is not None:
            self.values |= selection_quality(ranked, case.target, presence)

    def gradients(self, total: Tensor) -> None:
        """Gradients of our parameters under their official names, and their norms."""
        total.backward()
        for part, module in self.heads.modules.items():
            for name, parameter in module.named_parameters():
                if parameter.grad is None:
                    continue
                for official in (f"{part}.{name}", f"decoder.{name}"):
                    self.values[f"grad.{official}"] = parameter.grad
                    self.values[f"norm.{official}"] = parameter.grad.norm()

    def record_modules(self) -> list:
        """Hooks that keep inputs and outputs of modules under the official names."""
        hooks = []
        for name, (module, transform) in hooked_modules(self.heads.decode_head).items():

            def keep(_module, args, output, name=name, transform=transform):
                self.values.setdefault(name, transform(args[0], output))

            hooks.append(module.register_forward_hook(keep))
        return hooks


def pixel_accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Percentage of all pixels, ignored ones included, whose best label is the true one."""
    logits = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
    return 100 * (logits.argmax(1) == target).float().mean()


def selection_quality(ranked: RankedLabels, target: Tensor, presence: Tensor) -> dict[str, Tensor]:
    """Of the labels selected: recall by pixels and by labels, and precision; means of images."""
    selected = torch.zeros_like(presence).scatter(1, ranked.index, True)
    hits = (selected & presence).sum(1)
    seen = (ranked.rank_of(target, missing=-1) >= 0).flatten(1).sum(1)
    return {
        "train.acc_pix": (seen / (target >= 0).flatten(1).sum(1)).mean(),
        "train.acc_img": (hits / presence.sum(1)).mean(),
        "train.acc_img_accuracy": (hits / ranked.kappa).mean(),
    }


def official_values(case: Case) -> dict[str, Tensor]:
    """Outputs to compare, in the shapes of ours."""
    values = {k: v for k, v in case.outputs.items() if not k.startswith(("backbone", "encoder"))}
    norms = case.meta.get("grad_norms", {})
    values |= {f"norm.{k}": torch.tensor(v) for k, v in norms.items()}
    if case.meta.get("per_image_stacked"):
        values |= {k: v.mean() for k, v in values.items() if k.startswith("train.")}
    for name in ("img_pred", "ml_logits"):
        if name in values:
            values[name] = values[name].flatten(1)
    for name in ("rank_logits", "rank_norm"):
        # DeepLabv3's and UPerNet's lie with ranks last.
        if name in values:
            values[name] = values[name].movedim(3, 1)
    return values


def tolerance(name: str, case: Case, official: Tensor) -> float:
    """The largest difference allowed of one output."""
    kind = name.split(".")[0]
    if kind in RELATIVE:
        return RELATIVE[kind] * max(1.0, float(official.abs().max()))
    if (
        "Enc" in case.config.get("decode_head", {}).get("type", "")
        and "MLSeg" not in (case.config["decode_head"]["type"])
    ):
        return ENCNET_TOLERANCE
    return TOLERANCES.get(name, HEAD_TOLERANCE)


def compare(case: Case) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """Of each output the largest difference and the one allowed; names of outputs not made."""
    ours = Run(case, case.heads())()
    rows, missing = {}, []
    for name, official in official_values(case).items():
        if name not in ours:
            missing.append(name)
        elif ours[name].shape != official.shape:
            rows[name] = (float("inf"), 0.0)
        elif not official.is_floating_point():
            rows[name] = (float((ours[name] - official).abs().max()), 0.0)
        else:
            difference = float((ours[name] - official).abs().max())
            rows[name] = (difference, tolerance(name, case, official))
    return rows, missing


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    failed = 0
    for folder in parser.parse_args().folders:
        print(folder.name)
        rows, missing = compare(Case(folder))
        for name, (difference, allowed) in rows.items():
            bad = not difference <= allowed
            failed += bad
            print(f"  {name:60s} {difference:.2e}  <= {allowed:.0e}{'  TOO FAR' if bad else ''}")
        if missing:
            print(f"  not made by heads alone: {', '.join(missing)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
