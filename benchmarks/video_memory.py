"""Peak memory and speed of video instance inference, by length, whole and in windows.

    python benchmarks/video_memory.py [--lengths 2 8 36 100] [--window 8] [--json OUT]

Each setting runs in a process of its own, for its peak memory. Frames are 360 x 640; the model has
the shape of the official YouTube-VIS one with ResNet-50 and random weights.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from measuring import in_process, machine, peak_bytes, timed

SIZE = (360, 640)
CONFIG = Path(__file__).parent.parent / "configs" / "base" / "mask2former-R50.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=[2, 8, 36, 100])
    parser.add_argument("--window", type=int, default=8, help="frames of a window")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one)))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{machine(device)}; {SIZE[0]} x {SIZE[1]}, ResNet-50")
    print(f"{'frames':>7}{'window':>8}{'peak GiB':>10}{'frames/s':>10}")
    rows = []
    for window in (0, args.window):
        for length in args.lengths:
            row = in_process(__file__, "--one", length, window)
            rows.append(row)
            peak, rate = row["peak_bytes"] / 2**30, row["frames_per_second"]
            print(f"{length:7}{window or 'whole':>8}{peak:10.2f}{rate:10.2f}", flush=True)
    if args.json:
        args.json.write_text(
            json.dumps({"machine": machine(device), "rows": rows}, indent=1) + "\n"
        )


def measure(length: int, window: int) -> dict:
    """Peak memory of the process (of the GPU where there is one) and speed for one video."""
    from detectron2.modeling import build_model

    import rankseg_m2f.modeling.query.mask_former  # noqa: F401  (registration)
    from rankseg_m2f.config.lookup import read_config
    from rankseg_m2f.engine.windows import WindowedModel

    cfg = read_config(CONFIG)
    cfg.MODEL.META_ARCHITECTURE = "VideoMaskFormer"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 40
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = False
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    sample = {"height": SIZE[0], "width": SIZE[1]}
    sample["image"] = noise(length) if window else list(noise(length))
    if window:
        model = WindowedModel(model, window, overlap=max(1, window // 4))
    device = cfg.MODEL.DEVICE
    with torch.inference_mode():
        seconds = timed(lambda: model([sample]), device)
    return {
        "frames": length,
        "window": window,
        "peak_bytes": peak_bytes(device),
        "frames_per_second": length / seconds,
    }


def noise(length: int) -> Iterator[torch.Tensor]:
    """Frames, one at a time."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(length):
        yield torch.randint(0, 256, (3, *SIZE), generator=generator, dtype=torch.uint8)


if __name__ == "__main__":
    main()
