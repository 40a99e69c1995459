"""Parameter groups as a list of rules, the optimizer, gradient clipping."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import Tensor, nn

from rankseg_m2f.errors import UserError

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


@dataclass(frozen=True)
class Rule:
    """Sets or scales the settings of the parameters it matches; later rules win.

    Attributes:
        pattern: regular expression searched in the parameter's full name.
        modules: types of the module that owns the parameter; None is any.
        multiplier: key under SOLVER of a factor on the learning rate.
        decay: key under SOLVER of the weight decay, or the weight decay.
    """

    pattern: str = ""
    modules: tuple[type, ...] | None = None
    multiplier: str | None = None
    decay: str | float | None = None

    def matches(self, name: str, module: nn.Module) -> bool:
        """Whether the rule is about parameter `name` of `module`."""
        fits = self.modules is None or isinstance(module, self.modules)
        return fits and re.search(self.pattern, name) is not None


RULES = (
    Rule(r"^backbone\.", multiplier="BACKBONE_MULTIPLIER"),
    Rule(r"^ml_head\.", multiplier="MLHEAD_MULTIPLIER"),
    Rule(r"relative_position_bias_table$|absolute_pos_embed$", decay=0.0),
    Rule(modules=_NORMS, decay="WEIGHT_DECAY_NORM"),
    # Here the temperature is not an nn.LayerNorm; in the official code it is its weight;
    # the scale of cosines is its control.
    Rule(r"^ml_norm\.|\.class_embed\.scale$", decay="WEIGHT_DECAY_NORM"),
    Rule(modules=(nn.Embedding,), decay="WEIGHT_DECAY_EMBED"),
    Rule(r"^ml_head\.cls_emb$", decay="WEIGHT_DECAY_LABEL_EMBED"),
)


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict]:
    """Trainable parameters of `model`, one group for each pair of learning rate and decay."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, module, parameter in _trainable(model):
        rate, decay = cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY
        for rule in RULES:
            if not rule.matches(name, module):
                continue
            if rule.multiplier is not None:
                rate *= cfg.SOLVER[rule.multiplier]
            value = cfg.SOLVER[rule.decay] if isinstance(rule.decay, str) else rule.decay
            decay = decay if value is None else value
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": members, "lr": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SOLVER.OPTIMIZER over `parameter_groups`.

    Raises:
        UserError: an unknown optimizer.
    """
    groups, node = parameter_groups(cfg, model), cfg.SOLVER
    if node.OPTIMIZER == "ADAMW":
        optimizer = torch.optim.AdamW(groups, node.BASE_LR, fused=True)
    elif node.OPTIMIZER == "ADAM":
        optimizer = torch.optim.Adam(groups, node.BASE_LR, fused=True)
    elif node.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(
            groups, node.BASE_LR, momentum=node.MOMENTUM, nesterov=node.NESTEROV
        )
    else:
        raise UserError(f"SOLVER.OPTIMIZER={node.OPTIMIZER!r} must be ADAMW, ADAM or SGD")
    if node.CLIP_GRADIENTS.CLIP_TYPE != "full_model":
        optimizer = maybe_add_gradient_clipping(cfg, optimizer)
    return optimizer


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Restore `state`, what `optimizer.state_dict` of an earlier run returned.

    Whether kernels are fused is a matter of this version and not of the checkpoint.

    Raises:
        UserError: it is of other parameters. PyTorch does not look, and fused kernels would write
            past the end of what is too small.
    """
    saved, own = state["param_groups"], optimizer.param_groups
    fits = [len(group["params"]) for group in saved] == [len(group["params"]) for group in own]
    if fits:
        for there, group in zip(saved, own, strict=True):
            for number, parameter in zip(there["params"], group["params"], strict=True):
                kept = state["state"].get(number, {}).values()
                shapes = [v.shape for v in kept if torch.is_tensor(v) and v.ndim]
                fits &= all(shape == parameter.shape for shape in shapes)
    if not fits:
        raise UserError(
            "the checkpoint's optimizer is of a model with other shapes, such as another κ or K: "
            "resume with the config it was trained with (MODEL.SEM_SEG_HEAD.NUM_CLASSES, "
            "MODEL.RANKSEG.TOPK, TRAIN_SELECTION, ...), or start from its weights with "
            "MODEL.WEIGHTS and without --resume"
        )
    groups = [
        {**there, "fused": group["fused"]} if "fused" in group else there
        for there, group in zip(saved, own, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def max_gradient_norm(cfg: CfgNode) -> float | None:
    """Norm to which the gradient of the whole model is clipped; None: it is not."""
    node = cfg.SOLVER.CLIP_GRADIENTS
    whole = node.ENABLED and node.CLIP_TYPE == "full_model" and node.CLIP_VALUE > 0
    return node.CLIP_VALUE if whole else None


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Each trainable parameter once, with its name and owner."""
    seen = set()
    for prefix, module in model.named_modules():
        for short, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield f"{prefix}.{short}" if prefix else short, module, parameter
