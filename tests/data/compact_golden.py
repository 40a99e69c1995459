"""Makes tests/data/golden from the full golden data: same weights bit for bit, smaller files.

    python tests/data/compact_golden.py ../shared/golden CASE [CASE ...]

float32 weights are stored as four byte planes, LZMA-compressed; of a semantic map every
third row and column is kept.
"""

import argparse
import json
import lzma
import shutil
from pathlib import Path

import numpy as np

STEP = 3


def to_planes(array: np.ndarray) -> np.ndarray:
    """float32 of any shape to (4, N) uint8: all first bytes, all second bytes, ..."""
    return np.frombuffer(array.tobytes(), np.uint8).reshape(-1, 4).T.copy()


def from_planes(planes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `to_planes`."""
    return np.frombuffer(planes.T.tobytes(), np.float32).reshape(shape)


def compact_case(source: Path, target: Path) -> None:
    """Copy one case folder."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "meta.json", "inputs.npz"):
        shutil.copyfile(source / name, target / name)
    weights = dict(np.load(source / "weights.npz"))
    floats = {k: v for k, v in weights.items() if v.dtype == np.float32}
    joined = np.concatenate([v.ravel() for v in floats.values()])
    others = {f"other:{k}": v for k, v in weights.items() if k not in floats}
    # One entry for all shapes: each entry of an npz costs a header or two.
    shapes = np.array(json.dumps({k: v.shape for k, v in floats.items()}))
    planes = np.frombuffer(lzma.compress(to_planes(joined).tobytes(), preset=9), np.uint8)
    np.savez_compressed(target / "weights.npz", planes=planes, shapes=shapes, **others)
    outputs = {
        k: v[..., ::STEP, ::STEP] if k.startswith("sem_seg.") else v
        for k, v in np.load(source / "outputs.npz").items()
    }
    np.savez_compressed(target / "outputs.npz", **outputs)


def load_weights(path: Path) -> dict[str, np.ndarray]:
    """Parameter name -> array, as saved by `compact_case`, or plain."""
    stored = dict(np.load(path))
    if "planes" not in stored:
        return stored
    shapes = json.loads(str(stored["shapes"]))
    planes = np.frombuffer(lzma.decompress(stored["planes"].tobytes()), np.uint8)
    joined = from_planes(planes.reshape(4, -1), (-1,))
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
    target = Path(__file__).parent / "golden"
    for case in args.cases:
        compact_case(args.source / case, target / case)
    for name in ("losses.npz", "msda.npz"):
        shutil.copyfile(args.source / name, target / name)


if __name__ == "__main__":
    main()
