"""Makes tests/data/backbones from the full golden data: what the backbones of its models do.

    python tests/data/compact_backbones.py ../shared/golden CASE [CASE ...]

Weights of golden data have float16 values and are stored as such, all of a case in one array;
of the rest, images, backbone outputs and what meta.json says about them are kept.
"""

import argparse
import json
from pathlib import Path

import numpy as np

# Names of backbone parameters in whole models; the adapter's cases are backbones alone.
_PARTS = ("backbone.", "encoder.")
_OUTPUTS = ("backbone.", "backbone_cls_emb.", "encoder")
_META = ("pixel_mean", "pixel_std", "fp32_vs_fp64_max_abs", "seed")


def compact_case(source: Path, target: Path) -> None:
    """Copy one case folder into one file."""
    weights = dict(np.load(source / "weights.npz"))
    kept_outputs = (*_OUTPUTS, "grad.")
    if any(name.startswith(_PARTS) for name in weights):
        weights = {k: v for k, v in weights.items() if k.startswith(_PARTS)}
        kept_outputs = _OUTPUTS  # gradients there are those of losses of the head
    floats = {k: v for k, v in weights.items() if v.dtype == np.float32}
    joined = np.concatenate([v.ravel() for v in floats.values()])
    half = joined.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), joined):
        raise ValueError(f"{source} has weights that float16 does not hold")
    meta = json.loads((source / "meta.json").read_text())
    texts = {
        "config": (source / "config.yaml").read_text(),
        "meta": json.dumps({key: meta[key] for key in _META}),
        "shapes": json.dumps({k: v.shape for k, v in floats.items()}),
        # Indices and counters have no other use than their names and shapes.
        "integers": json.dumps({k: v.shape for k, v in weights.items() if k not in floats}),
    }
    outputs = np.load(source / "outputs.npz")
    np.savez_compressed(
        target,
        half=half,
        image=np.load(source / "inputs.npz")["image"],
        **{key: np.array(text) for key, text in texts.items()},
        **{f"out:{k}": v for k, v in outputs.items() if k.startswith(kept_outputs)},
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("cases", nargs="+")
    args = parser.parse_args()
    target = Path(__file__).parent / "backbones"
    target.mkdir(exist_ok=True)
    for case in args.cases:
        compact_case(args.source / case, target / f"{case}.npz")


if __name__ == "__main__":
    main()
