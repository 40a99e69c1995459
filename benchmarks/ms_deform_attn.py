"""Deformable attention against its peers, alternately in one process.

    python benchmarks/ms_deform_attn.py [--device cpu] [--json benchmarks/results/NAME.json]

Shapes are those of Mask2Former's encoder with ResNet-50 (8 heads of 32, 3 levels, 4 points). Peers:
the PyTorch definition, the one of Hugging Face transformers, and torch-ms-deform-attn where it is
installed (pip install --no-build-isolation torch-ms-deform-attn==0.1.1). "From offsets" starts
where a layer's projections end: the softmax, the reference points and the division come on top, in
PyTorch for all but our second operator.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import machine, timed
from torch import Tensor
from tqdm import tqdm

from rankseg_m2f.ops.backends import available_backends
from rankseg_m2f.ops.dispatch import ms_deform_attn, ms_deform_attn_from_offsets
from rankseg_m2f.ops.reference import located

HEADS, CHANNELS, POINTS = 8, 32, 4
# Input sizes; the levels are 1/32, 1/16 and 1/8 of them.
SIZES = {"512x512": (512, 512), "800x1216": (800, 1216), "1024x1024": (1024, 1024)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 8])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=7, help="alternations; the median is shown")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    bandwidth = copy_bandwidth(args.device)
    print(f"{machine(args.device)}; copies {bandwidth / 1e9:.1f} GB/s\n")
    settings = list(itertools.product(args.sizes, args.batches, args.dtypes))
    rows = []
    for size, batch, dtype in tqdm(settings):
        for row in compare(size, batch, dtype, args.device, args.rounds):
            row["bandwidth_share"] = row["bytes"] / bandwidth / row["seconds"]
            rows.append(row)
    print(table(rows))
    if args.json:
        content = {"machine": machine(args.device), "copy_bytes_per_second": bandwidth}
        content["rows"] = rows
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def compare(size: str, batch: int, dtype: str, device: str, rounds: int) -> list[dict]:
    """One row per implementation and pass, timed in turns."""
    shapes = [(side[0] // s, side[1] // s) for s in (32, 16, 8) for side in (SIZES[size],)]
    inputs = make_inputs(shapes, batch, DTYPES[dtype], device)
    runs = {}
    for name, attend in implementations(device, DTYPES[dtype]).items():
        runs[name, "forward"] = forward_pass(attend, inputs, shapes)
        runs[name, "forward+backward"] = both_passes(attend, inputs, shapes)
    inputs = make_offsets(shapes, batch, DTYPES[dtype], device)
    for name, attend in from_offsets(device, DTYPES[dtype]).items():
        runs[name, "forward, from offsets"] = forward_pass(attend, inputs, shapes)
        runs[name, "forward+backward, from offsets"] = both_passes(attend, inputs, shapes)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for step in range(rounds + 1):
        for key, call in runs.items():
            seconds = timed(call, device)
            if step:  # the first is warm-up
                times[key].append(seconds)
    medians = {key: statistics.median(values) for key, values in times.items()}
    return [
        {
            "size": size,
            "batch": batch,
            "dtype": dtype,
            "pass": direction,
            "name": name,
            "seconds": seconds,
            "ours_is_faster_by": seconds / medians["ours", direction],
            "bytes": bytes_moved(inputs, direction),
        }
        for (name, direction), seconds in medians.items()
    ]


def implementations(device: str, dtype: torch.dtype) -> dict[str, Callable]:
    """Name -> function of (value, shapes, locations, weights)."""
    found: dict[str, Callable] = {"ours": ms_deform_attn}
    usable = [name for name, (ok, _) in available_backends(device, dtype).items() if ok]
    for name in usable[1:]:
        found[f"ours, {name}"] = lambda *a, name=name: ms_deform_attn(*a, backend=name)
    try:
        from transformers.models.mask2former.modeling_mask2former import (
            multi_scale_deformable_attention,
        )

        found["transformers"] = multi_scale_deformable_attention
    except ImportError:
        print("transformers is not installed: left out")
    try:
        found["torch-ms-deform-attn"] = torch_ms_deform_attn(device)
    except ImportError:
        print("torch-ms-deform-attn is not installed: left out")
    return found


def from_offsets(device: str, dtype: torch.dtype) -> dict[str, Callable]:
    """Name -> function of (value, shapes, offsets, logits)."""

    def after(attend: Callable) -> Callable:
        def call(value: Tensor, shapes: list, offsets: Tensor, logits: Tensor) -> Tensor:
            sides = [side for shape in shapes for side in shape]
            return attend(value, shapes, *located(offsets, logits, sides, value.dtype))

        return call

    found = {"ours": ms_deform_attn_from_offsets}
    return found | {
        f"{name}, after PyTorch's softmax": after(attend)
        for name, attend in implementations(device, dtype).items()
        if not name.startswith("ours, ")
    }


def torch_ms_deform_attn(device: str) -> Callable:
    """The peer's call, with its index tensors made beforehand."""
    from torch_ms_deform_attn.functional import ms_deform_attn as peer

    cache: dict[tuple, tuple[Tensor, Tensor]] = {}

    def attend(value: Tensor, shapes: list, locations: Tensor, weights: Tensor) -> Tensor:
        key = tuple(shapes)
        if key not in cache:
            sides = torch.tensor(shapes, device=device)
            areas = sides.prod(1)
            cache[key] = sides, torch.cat([areas.new_zeros(1), areas.cumsum(0)[:-1]])
        return peer(value, *cache[key], locations, weights)

    return attend


def make_offsets(shapes: list, batch: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Value, offsets, logits: as `make_inputs` before the reference points and the softmax."""
    generator = torch.Generator().manual_seed(0)
    queries = sum(h * w for h, w in shapes)
    grid = (batch, queries, HEADS, len(shapes), POINTS)
    value = torch.randn(batch, queries, HEADS, CHANNELS, generator=generator)
    offsets = torch.randn(*grid, 2, generator=generator) * 2.5
    logits = torch.randn(grid, generator=generator)
    return [t.to(device, dtype) for t in (value, offsets, logits)]


def make_inputs(shapes: list, batch: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Value, locations, weights as at the start of training: points on rays around each pixel."""
    generator = torch.Generator().manual_seed(0)
    places = [
        torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")[::-1], -1)
        .add(0.5)
        .div(torch.tensor([w, h]))
        .flatten(0, 1)
        for h, w in shapes
    ]
    places = torch.cat(places)[None, :, None, None, None]
    queries = places.shape[1]
    grid = (batch, queries, HEADS, len(shapes), POINTS)
    offsets = torch.randn(*grid, 2, generator=generator) * 2.5
    sides = torch.tensor([(w, h) for h, w in shapes])[:, None]
    weights = torch.rand(*grid, generator=generator).flatten(-2).softmax(-1).view(grid)
    value = torch.randn(batch, queries, HEADS, CHANNELS, generator=generator)
    return [t.to(device, dtype) for t in (value, places + offsets / sides, weights)]


def forward_pass(attend: Callable, inputs: list[Tensor], shapes: list) -> Callable[[], None]:
    """A call without gradients."""

    def call() -> None:
        with torch.no_grad():
            attend(inputs[0], shapes, *inputs[1:])

    return call


def both_passes(attend: Callable, inputs: list[Tensor], shapes: list) -> Callable[[], None]:
    """A call and the gradients of all inputs."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    grad = torch.ones(len(inputs[0]), inputs[0].shape[1], HEADS * CHANNELS).to(inputs[0])

    def call() -> None:
        torch.autograd.grad(attend(leaves[0], shapes, *leaves[1:]), leaves, grad)

    return call


def bytes_moved(inputs: list[Tensor], direction: str) -> int:
    """Least traffic: each input read and each result written once."""
    sizes = [t.numel() * t.element_size() for t in inputs]
    forward = sum(sizes) + sizes[0]
    return 2 * forward + sum(sizes) if direction.startswith("forward+") else forward


def copy_bandwidth(device: str) -> float:
    """Bytes per second of a large copy, read and write counted."""
    source = torch.ones(64 * 2**20, device=device)
    target = torch.empty_like(source)
    seconds = min(timed(lambda: target.copy_(source), device) for _ in range(8))
    return 2 * source.numel() * source.element_size() / seconds


def table(rows: list[dict]) -> str:
    """Aligned text."""
    lines = [
        f"{'input':10}{'batch':>6} {'type':10}{'pass':32}{'implementation':46}{'ms':>9}"
        f"{'ours is':>10}{'of copy':>9}"
    ]
    for row in rows:
        lines.append(
            f"{row['size']:10}{row['batch']:6} {row['dtype']:10}{row['pass']:32}{row['name']:46}"
            f"{1e3 * row['seconds']:9.2f}{row['ours_is_faster_by']:9.1f}x"
            f"{100 * row['bandwidth_share']:8.1f}%"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
