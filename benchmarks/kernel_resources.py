"""What the Triton kernels of deformable attention become on each architecture; needs no GPU.

    python benchmarks/kernel_resources.py [--json benchmarks/results/NAME.json]

Every kernel of the table of launches, compiled and read by `kernel_static.py`, and those of
deformops, launched as version 3.0.1 does by default, where that package is installed.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from kernel_static import Resources, integer, resources
from tqdm import tqdm

from rankseg_m2f.ops import triton_kernels
from rankseg_m2f.ops.triton_launch import has_vector_atomics, launch

ARCHITECTURES = (80, 90, 100)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEADS, POINTS = 8, 4
TOKENS = 21_504  # of a 1024 x 1024 image


@dataclass(frozen=True)
class Case:
    """A kernel as launched.

    Attributes:
        kernel: a name of `triton_launch.TABLE`.
        offsets: whether points come as offsets and weights as logits.
        exact: whether sums are made in whole numbers, the deterministic mode.
        dtype: of all inputs, a name of `DTYPES`.
        architecture: compute capability times ten.
        levels, channels: L and D.
    """

    kernel: str
    dtype: str
    architecture: int
    offsets: bool = False
    exact: bool = False
    levels: int = 3
    channels: int = 32


def cases(levels: int = 3, channels: int = 32) -> Iterator[Case]:
    """Every kernel that a forward and a backward pass launch, in all types and architectures."""
    for architecture in ARCHITECTURES:
        for offsets in (False, True):
            for dtype in DTYPES:
                rest = {"levels": levels, "channels": channels, "offsets": offsets}
                yield Case("from_offsets" if offsets else "forward", dtype, architecture, **rest)
                for kernel in backward_kernels(architecture):
                    yield Case(kernel, dtype, architecture, **rest)
                yield Case("value", dtype, architecture, exact=True, **rest)


def backward_kernels(architecture: int) -> tuple[str, ...]:
    """Names of the kernels of a backward pass that need not be deterministic."""
    return ("backward",) if has_vector_atomics(architecture) else ("points", "value")


def measure(case: Case) -> Resources:
    """Compile a kernel for its architecture and read it."""
    forward = case.kernel in ("forward", "from_offsets")
    kernel = triton_kernels._forward_kernel if forward else triton_kernels._backward_kernel
    lanes = max(2, triton.next_power_of_2(case.channels))
    plan = launch(case.kernel, torch.empty(0, dtype=DTYPES[case.dtype]), case.architecture)
    known = {
        "shapes": "*i32", "pixels": "*fp32", "S": "i32", "Q": "i32",
        "M": HEADS, "D": case.channels, "L": case.levels, "P": POINTS,
        "ROWS": plan.rows(lanes), "LANES": lanes, "OFFSETS": case.offsets,
        "TO_VALUE": case.kernel != "points", "TO_POINTS": case.kernel != "value",
        "EXACT": case.exact, "grad_value": "*i64" if case.exact else "*fp32",
        # Where nothing is exact, its place is taken by the gradient of the output.
        "scale": "*fp32" if case.exact else f"*{case.dtype}",
    }  # fmt: skip
    arguments = {name: known.get(name, f"*{case.dtype}") for name in kernel.arg_names}
    return resources(kernel, arguments, case.architecture, plan.warps)


def peer_cases(levels: int = 3, channels: int = 32) -> Iterator[tuple[Case, Resources]]:
    """deformops' kernels for the same inputs; nothing where it is not installed."""
    try:
        from deformops.backends.triton._kernels import msda_query_tiled as peer
    except ImportError as error:
        print(f"deformops cannot be imported, and is left out: {error}")
        return
    for architecture in ARCHITECTURES:
        for dtype in DTYPES:
            for name, kernel, softmax in (
                ("forward", peer.msda_forward_kernel, False),
                ("forward, logits", peer.msda_forward_kernel, True),
                ("backward", peer._msda_backward_kernel, False),
            ):
                case = Case(
                    f"deformops {name}", dtype, architecture, False, False, levels, channels
                )
                arguments = peer_arguments(kernel.arg_names, case, softmax)
                yield case, resources(kernel, arguments, architecture, num_warps=4)


def peer_arguments(names: list[str], case: Case, softmax: bool) -> dict[str, str | int]:
    """Sizes, then strides of each contiguous tensor, in the order of `names`."""
    sizes = (1, TOKENS, HEADS, case.levels, POINTS, case.channels)
    value = (1, TOKENS, HEADS, case.channels)
    points = (1, TOKENS, HEADS, case.levels, POINTS, 2)
    shapes = [value, points, points[:-1], value]
    if "stride_gvb" in names:
        shapes += [value, points, points[:-1]]
    strides = [n for shape in shapes for n in torch.empty(shape, device="meta").stride()]
    pointers = [name for name in names if name.endswith("_ptr")]
    found: dict[str, str | int] = dict.fromkeys(pointers, f"*{case.dtype}")
    found |= {"shapes_ptr": "*i64", "level_start_index_ptr": "*i64"}
    numbers = names[len(pointers) : len(pointers) + len(sizes) + len(strides)]
    found |= dict(zip(numbers, map(integer, (*sizes, *strides)), strict=True))
    lanes = triton.next_power_of_2(case.channels)
    return found | {"BLOCK_SIZE_Q": 32, "BLOCK_SIZE_D": lanes, "aggregate": int(softmax)}


def table(rows: list[dict]) -> str:
    """Aligned text."""
    lines = [
        f"{'kernel':26}{'type':6}{'for':>7}{'L':>3}{'D':>5}{'registers':>11}{'stack':>7}"
        f"{'instructions':>14}{'barriers':>10}  loads (bits: number)    atomics"
    ]
    for row in rows:
        name = row["kernel"] + ", offsets" * (row["offsets"] and row["kernel"] != "from_offsets")
        name += ", exact" * row["exact"]
        loads = ", ".join(f"{bits}: {n}" for bits, n in sorted(row["loads"].items()))
        atomics = ", ".join(f"{n} x {kind}" for kind, n in row["atomics"].items())
        lines.append(
            f"{name:26}{row['dtype']:6}{'sm_' + str(row['architecture']):>7}{row['levels']:3}"
            f"{row['channels']:5}{row['registers']:11}{row['stack']:7}{row['instructions']:14}"
            f"{row['barriers']:10}  {loads:24}{atomics}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levels", nargs="+", type=int, default=[3, 4])
    parser.add_argument("--channels", nargs="+", type=int, default=[32])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    chosen = [c for d in args.channels for n in args.levels for c in cases(n, d)]
    found = [(case, measure(case)) for case in tqdm(chosen)]
    found += [pair for d in args.channels for n in args.levels for pair in peer_cases(n, d)]
    rows = [{**asdict(case), **asdict(figures)} for case, figures in found]
    print(f"triton {triton.__version__}, {HEADS} heads, {POINTS} points")
    print(table(rows))
    if args.json:
        lines = ",\n".join(json.dumps(row) for row in rows)
        args.json.write_text(
            f'{{"triton": "{triton.__version__}", "rows": [\n{lines}\n]}}\n', encoding="utf-8"
        )


if __name__ == "__main__":
    main()
