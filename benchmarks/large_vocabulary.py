"""Time and peak memory of semantic inference with many labels: all K against the κ best.

    python benchmarks/large_vocabulary.py [--json benchmarks/results/NAME.json] [--png FILE]
    python benchmarks/large_vocabulary.py --from benchmarks/results/NAME.json --png FILE

Mask2Former with ResNet-50 and RankSeg at full size with random weights, from the image to its
label map, as an evaluation does it; the image has the size of the output. Each run is a process
of its own, for its peak memory, and the settings take turns. About seven minutes on two cores and
14 GiB, `--quick` half a minute; `--from` draws earlier figures again.

Shapes: K labels, κ selected labels.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from measuring import held_bytes, in_process, machine, peak_bytes, timed
from tqdm import tqdm

from rankseg_m2f.config import get_cfg
from rankseg_m2f.config.lookup import read_config
from rankseg_m2f.files import replacing

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT / "tools") not in sys.path:
    sys.path.append(str(ROOT / "tools"))
from vocabulary_costs import draw_vocabulary_costs, pairs  # noqa: E402

CONFIG = ROOT / "configs" / "ade20k_full" / "semantic" / "mask2former-R50-rankseg.yaml"
# ADE20K, ADE20K-Full, COCO+LVIS.
LABELS = (150, 847, 1284)
# A run repeats an inference until one of these is reached.
REPEATS, SECONDS = 5, 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", nargs="+", type=int, default=LABELS, metavar="K")
    parser.add_argument("--kappa", type=int, default=100, metavar="κ")
    parser.add_argument("--sizes", nargs="+", type=size, default=[(512, 512), (1024, 2048)])
    parser.add_argument("--rounds", type=int, default=2, help="processes for each setting")
    parser.add_argument("--quick", action="store_true", help="tiny settings: does it run?")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--png", type=Path, help="where to draw them")
    parser.add_argument("--from", type=Path, dest="earlier", metavar="JSON", help="do not measure")
    parser.add_argument("--one", nargs=4, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one)))
        return
    if args.quick:
        args.labels, args.kappa, args.sizes, args.rounds = (12, 24), 8, [(64, 64)], 1
    if args.kappa >= min(args.labels):
        parser.error(
            f"--kappa {args.kappa} must be less than each K, {min(args.labels)} among them"
        )
    if args.earlier:
        content = json.loads(args.earlier.read_text(encoding="utf-8"))
    else:
        rows = measure_all(args.labels, args.kappa, args.sizes, args.rounds)
        content = {"machine": machine(get_cfg().MODEL.DEVICE), "kappa": args.kappa, "rows": rows}
    print(f"{content['machine']}; Mask2Former with ResNet-50 and RankSeg, batch 1\n")
    print("\n".join([*table(content["rows"]), "", *findings(content["rows"], content["kappa"])]))
    if args.json:
        with replacing(args.json) as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if args.png:
        draw_vocabulary_costs(content, args.png)


def size(text: str) -> tuple[int, int]:
    """Height and width from "1024x2048"."""
    height, width = text.split("x")
    return int(height), int(width)


def measure_all(
    labels: Iterable[int], kappa: int, sizes: Iterable[tuple[int, int]], rounds: int
) -> list[dict]:
    """One row for each setting, κ before K: medians of times, the highest of peaks."""
    settings = [
        (num_labels, selected, *image)
        for image in sizes
        for num_labels in labels
        for selected in (kappa, num_labels)
    ]
    runs: dict[tuple, list[dict]] = {setting: [] for setting in settings}
    for setting in tqdm(settings * rounds):
        runs[setting].append(in_process(__file__, "--one", *setting))
    return [
        {
            "labels": num_labels,
            "kappa": selected,
            "size": f"{height}x{width}",
            "seconds": statistics.median(s for run in found for s in run["seconds"]),
            "runs": sum(len(run["seconds"]) for run in found),
            "peak_bytes": max(run["peak_bytes"] for run in found),
            "inference_bytes": max(run["inference_bytes"] for run in found),
        }
        for (num_labels, selected, height, width), found in runs.items()
    ]


def measure(num_labels: int, kappa: int, height: int, width: int) -> dict:
    """`seconds` of each repeat; `peak_bytes`, `inference_bytes` of it not held before."""
    from detectron2.modeling import build_model

    import rankseg_m2f.modeling.query.mask_former  # noqa: F401  (registration)

    cfg = read_config(CONFIG)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_labels
    cfg.MODEL.RANKSEG.TOPK = kappa
    device = cfg.MODEL.DEVICE
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    before = held_bytes(device)
    # A small image warms libraries up without reaching the peak.
    label_map(model, image[:, :64, :64])
    seconds: list[float] = []
    while len(seconds) < REPEATS and sum(seconds) < SECONDS:
        seconds.append(timed(lambda: label_map(model, image), device))
    peak = peak_bytes(device)
    return {"seconds": seconds, "peak_bytes": peak, "inference_bytes": peak - before}


@torch.inference_mode()
def label_map(model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """(h, w) labels on the CPU, as evaluators ask for them."""
    return model([{"image": image}])[0]["sem_seg"].argmax(0).cpu()


def table(rows: list[dict]) -> list[str]:
    """Aligned lines; "inference" is memory beside that of interpreter and model."""
    lines = [f"{'size':12}{'K':>6}{'κ':>6}{'seconds':>10}{'peak GiB':>10}{'inference':>11}"]
    for row in rows:
        lines.append(
            f"{row['size']:12}{row['labels']:6}{row['kappa']:6}{row['seconds']:10.2f}"
            f"{row['peak_bytes'] / 2**30:10.2f}{row['inference_bytes'] / 2**30:11.2f}"
        )
    return lines


def findings(rows: list[dict], kappa: int) -> list[str]:
    """What many labels cost with κ of them selected, and what the selection saves."""
    lines = []
    for size, by_labels in pairs(rows).items():
        few, many = min(by_labels), max(by_labels)
        (least, _), (lean, full) = by_labels[few], by_labels[many]
        lines += [
            f"{size}, κ = {kappa}: K = {many} needs {compared(lean, least)} of K = {few}",
            f"{size}, K = {many}: κ = K needs {compared(full, lean)} of κ = {kappa}",
        ]
    return lines


def compared(row: dict, to: dict) -> str:
    """How many times the memory and time."""
    peak, inference, seconds = (
        f"{row[field] / to[field]:.2f}" for field in ("peak_bytes", "inference_bytes", "seconds")
    )
    return f"{peak}x the memory ({inference}x without interpreter and model), {seconds}x the time"


if __name__ == "__main__":
    main()
