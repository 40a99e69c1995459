"""Makes tests/data/golden/pixel_* from the full golden data of pixel segmentors.

    python tests/data/compact_pixel_golden.py ../shared/golden CASE [CASE ...]

The layout of folders stays. Weights have float16 values there, and are stored as such in two byte
planes, LZMA-compressed; of maps at the size of the image every third row and column is kept.
"""

import argparse
import json
import lzma
import shutil
from pathlib import Path

import numpy as np

STEP = 3
LARGE = ("seg_logits", "slide_logits", "slide_prob")


def compact_case(source: Path, target: Path) -> None:
    """Copy one case folder."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "meta.json", "inputs.npz"):
        shutil.copyfile(source / name, target / name)
    weights = dict(np.load(source / "weights.npz"))
    floats = {k: v for k, v in weights.items() if fits_float16(v)}
    half = np.concatenate([v.ravel() for v in floats.values()]).astype(np.float16)
    planes = half.view(np.uint8).reshape(-1, 2).T
    packed = np.frombuffer(lzma.compress(planes.tobytes(), preset=9), np.uint8)
    shapes = np.array(json.dumps({k: v.shape for k, v in floats.items()}))
    others = {f"other:{k}": v for k, v in weights.items() if k not in floats}
    np.savez_compressed(target / "weights.npz", half=packed, shapes=shapes, **others)
    outputs = {
        k: v[..., ::STEP, ::STEP] if k in LARGE else v
        for k, v in np.load(source / "outputs.npz").items()
    }
    np.savez_compressed(target / "outputs.npz", step=STEP, **outputs)


def fits_float16(array: np.ndarray) -> bool:
    """Whether an array is float32 and loses nothing as float16; computed buffers may."""
    return array.dtype == np.float32 and np.array_equal(array.astype(np.float16), array)


def load_weights(path: Path) -> dict[str, np.ndarray]:
    """Parameter name -> array, as saved by `compact_case`, or plain."""
    with np.load(path) as arrays:
        stored = dict(arrays)
    if "half" not in stored:
        return stored
    planes = np.frombuffer(lzma.decompress(stored["half"].tobytes()), np.uint8).reshape(2, -1)
    joined = planes.T.copy().view(np.float16).ravel().astype(np.float32)
    shapes = json.loads(str(stored["shapes"]))
    ends = np.cumsum([int(np.prod(s, dtype=np.int64)) for s in shapes.values()])
    parts = np.split(joined, ends[:-1])
    weights = {k: v.reshape(s) for (k, s), v in zip(shapes.items(), parts, strict=True)}
    return weights | {k[6:]: v for k, v in stored.items() if k.startswith("other:")}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("cases", nargs="+")
    args = parser.parse_args()
    for case in args.cases:
        compact_case(args.source / case, Path(__file__).parent / "golden" / case)


if __name__ == "__main__":
    main()
