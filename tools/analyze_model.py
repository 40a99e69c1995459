"""Parameters, FLOPs and activations of any config, by module, without weights or data.

    python tools/analyze_model.py --config-file X.yaml --size 640 640 MODEL.RANKSEG.TOPK 50

The model runs on PyTorch's meta device, which knows shapes and no values: any size fits in memory.
Counted as fvcore does (and so the paper): one multiply-add is one FLOP; norms, bilinear resizing
and sampling by a factor per element; other element-wise work is free. Both products of masked
attention are in, post-processing is not. The paper's "M" and "G" are 2^20 and 2^30.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from unittest.mock import patch

import torch
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from rankseg_m2f.config import Config
from rankseg_m2f.config.lookup import read_config
from rankseg_m2f.engine.config_checks import check_model
from rankseg_m2f.engine.outputs import check_file
from rankseg_m2f.errors import UserError, add_debug_flag, one_line_errors
from rankseg_m2f.files import replacing
from rankseg_m2f.modeling.segmentor import Segmentor
from rankseg_m2f.rankseg.labels import RankedLabels
from rankseg_m2f.structures.predictions import Prediction

aten = torch.ops.aten
_MI, _GI = 2**20, 2**30


@dataclass
class Row:
    """One module: its dotted name ("" is the model), and counts that include its submodules.

    `activations` are the elements written by convolutions and matrix products.
    """

    module: str
    parameters: int
    flops: int
    activations: int

    @property
    def depth(self) -> int:
        """0 for the model, 1 for its children, ..."""
        return self.module.count(".") + 1 if self.module else 0


@dataclass
class Analysis:
    """Counts of all modules, the model itself first, for one clip of `frames` x `size`."""

    rows: list[Row]
    size: tuple[int, int]
    frames: int

    @property
    def total(self) -> Row:
        """The model's row."""
        return self.rows[0]


def analyze(cfg: Config, size: tuple[int, int] = (640, 640), frames: int = 1) -> Analysis:
    """Count one forward pass in evaluation mode, up to and without post-processing.

    Args:
        cfg: of any model of this project; it is not changed, and its device and weights are not
            used.
        size: (height, width) of the input; padding to the model's divisor is counted.
        frames: T of the clip; 1 is an image.

    Raises:
        UserError: a size or number of frames below 1, or a model that is no `Segmentor`.
    """
    if min(*size, frames) < 1:
        raise UserError(f"size {size[0]} x {size[1]} and {frames} frames must be 1 or more")
    model = _build(cfg)
    network = Network(model)
    flops = FlopCounterMode(display=False, custom_mapping=_FVCORE_FLOPS)
    activations = FlopCounterMode(display=False, custom_mapping=_ACTIVATIONS)
    image = torch.empty(3, *size, dtype=torch.uint8, device="meta")
    # torch.autocast refuses the meta device; all is counted in one precision anyway.
    no_autocast = patch.object(torch, "autocast", lambda *args, **kwargs: nullcontext())
    sample = {"image": [image] * frames if frames > 1 else image}
    if cfg.MODEL.RANKSEG.SCORES:
        sample["label_scores"] = torch.empty(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, device="meta")
    with no_autocast, activations, flops:
        network(sample)
    flops_of = _by_module(flops, model)
    activations_of = _by_module(activations, model)
    rows = [
        Row(
            name,
            sum(p.numel() for p in module.parameters()),
            flops_of[name] // 2,  # PyTorch counts a multiply-add as two
            activations_of[name],
        )
        for name, module in model.named_modules()
    ]
    return Analysis(rows, tuple(size), frames)


class Network(nn.Module):
    """What of a segmentor is counted: all up to the logits of the labels selected."""

    def __init__(self, model: Segmentor):
        super().__init__()
        self.model = model

    def forward(self, sample: dict) -> Prediction:
        """Which labels are selected needs values, that is, how many is all there is to it."""
        prediction, policy = self.model.predict(self.model.clips([sample])), self.model.policy
        if not policy.selection:
            return self.model.ranked(prediction, None)
        ranked = RankedLabels.top(prediction.presence_logits, policy.kappa_eval)
        return self.model.ranked(prediction, ranked)


def _build(cfg: Config) -> Segmentor:
    """The model on the meta device."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    # The oracle would ask for ground truth; it costs nothing that is counted.
    cfg.MODEL.RANKSEG.USE_GT = cfg.MODEL.RANKSEG.USE_GT_EVAL = False
    # Panoptic results are post-processing, and would ask for a registered dataset.
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    check_model(cfg)
    with torch.device("meta"):
        # Without gradients: PyTorch's module tracker stumbles over views of parameters.
        model = build_model(cfg).eval().requires_grad_(False)
    if not isinstance(model, Segmentor):
        raise UserError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} is not a Segmentor, so its "
            "post-processing cannot be left out of the count"
        )
    return model


def _by_module(counter: FlopCounterMode, model: nn.Module) -> dict[str, int]:
    """Counts per dotted name."""
    root = Network.__name__
    counted = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    totals: dict[str, int] = {}

    def visit(name: str, module: nn.Module) -> int:
        below = sum(
            visit(f"{name}.{child}" if name else child, submodule)
            for child, submodule in module.named_children()
        )
        # What ran inside the module's own call lacks children that others call: all of a list,
        # and the `downsample` of a Swin stage.
        own = counted.get(f"{root}.model.{name}" if name else root, 0)
        totals[name] = max(own, below)
        return totals[name]

    visit("", model)
    return totals


def _per_input(plain: int, affine: int, weight: int) -> Callable[..., int]:
    """FLOPs per element read: `affine` if the argument at index `weight` is there, else `plain`."""

    def count(*shapes, **kwargs) -> int:
        return 2 * prod(shapes[0]) * (plain if shapes[weight] is None else affine)

    return count


def _per_output(factor: int) -> Callable[..., int]:
    """FLOPs per element written."""
    return lambda *shapes, out_shape, **kwargs: 2 * prod(out_shape) * factor


def _per_sample(factor: int) -> Callable[..., int]:
    """FLOPs per sampled channel of deformable attention."""
    return lambda value, shapes, locations, *rest, **kwargs: (
        2 * prod(locations[:-1]) * value[3] * factor
    )


def _written(*shapes, out_shape, **kwargs) -> int:
    """Elements of the first output."""
    return prod(out_shape[0] if isinstance(out_shape[0], (list, tuple)) else out_shape)


# What fvcore counts besides convolutions and products; twice, as PyTorch does with those.
_FVCORE_FLOPS = {
    aten.native_layer_norm: _per_input(plain=4, affine=5, weight=2),
    aten.native_group_norm: _per_input(plain=4, affine=5, weight=1),
    aten.native_batch_norm: _per_input(plain=1, affine=2, weight=1),
    aten._native_batch_norm_legit_no_training: _per_input(plain=1, affine=2, weight=1),
    aten.upsample_nearest2d: _per_output(1),
    aten.upsample_bilinear2d: _per_output(4),
    # As the sampling it stands for; weighting the samples is element-wise.
    torch.ops.rankseg_m2f.ms_deform_attn: _per_sample(4),
    torch.ops.rankseg_m2f.ms_deform_attn_from_offsets: _per_sample(4),
    aten._adaptive_avg_pool2d: _per_input(plain=1, affine=1, weight=0),
}
_ACTIVATIONS = dict.fromkeys(flop_registry, _written)


def table(analysis: Analysis, depth: int) -> str:
    """Totals, then an aligned table of the modules down to `depth`."""
    total = analysis.total
    height, width = analysis.size
    clip = "1 image" if analysis.frames == 1 else f"1 clip of {analysis.frames} frames"
    totals = [
        ["parameters", f"{total.parameters:,}", f"{total.parameters / _MI:.2f} M (2^20)"],
        ["FLOPs", f"{total.flops / 1e9:,.2f} x 10^9", f"{total.flops / _GI:,.2f} G (2^30)"],
        [
            "activations",
            f"{total.activations / 1e6:,.2f} x 10^6",
            f"{total.activations / _MI:,.2f} M (2^20)",
        ],
    ]
    rows = [
        [
            "  " * (row.depth - 1) + row.module.rpartition(".")[2],
            f"{row.parameters:,}",
            f"{row.flops / _GI:,.3f}",
            f"{row.flops / 1e9:,.3f}",
            f"{100 * row.flops / max(total.flops, 1):.1f}",
            f"{row.activations / 1e6:,.2f}",
        ]
        for row in shown(analysis, depth)[1:]
    ]
    header = ["module", "parameters", "FLOPs 2^30", "FLOPs 10^9", "%", "activations 10^6"]
    align = ("left", *["right"] * 5)
    return (
        f"{clip}, {height} x {width}, without post-processing\n"
        + tabulate(totals, tablefmt="plain", colalign=("left", "right", "right"))
        + "\n\n"
        + tabulate(rows, header, disable_numparse=True, colalign=align, preserve_whitespace=True)
    )


def shown(analysis: Analysis, depth: int) -> list[Row]:
    """The model's row and those down to `depth` that count anything."""
    return [
        row
        for row in analysis.rows
        if not row.module or (row.depth <= depth and (row.parameters or row.flops))
    ]


def write_json(analysis: Analysis, depth: int, path: Path) -> None:
    """Write the rows down to `depth`; the first one, named "", is the model."""
    content = {
        "size": analysis.size,
        "frames": analysis.frames,
        "rows": [asdict(row) for row in shown(analysis, depth)],
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="YAML")
    parser.add_argument(
        "--size", nargs=2, type=int, default=[640, 640], metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--frames", type=int, default=1, help="T of a clip; 1 is an image")
    parser.add_argument("--depth", type=int, default=3, help="levels of modules to show")
    parser.add_argument("--json", type=Path, help="write the counts here too")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config overrides")
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    with one_line_errors("analyze_model"):
        if arguments.json is not None:
            check_file(arguments.json, "--json")
        cfg = read_config(arguments.config_file, arguments.overrides)
        analysis = analyze(cfg, tuple(arguments.size), arguments.frames)
        print(table(analysis, arguments.depth))
        if arguments.json is not None:
            write_json(analysis, arguments.depth, arguments.json)


if __name__ == "__main__":
    main()
