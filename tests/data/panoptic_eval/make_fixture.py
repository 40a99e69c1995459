"""Make the fixture of this folder: real panoptic maps, perturbed predictions, official scores.

    python make_fixture.py COCO_ROOT PANOPTICAPI_FOLDER [--all FOLDER]

COCO_ROOT holds annotations/panoptic_val2017.json and panoptic_val2017/ (annotations CC BY 4.0; no
photographs are used). PANOPTICAPI_FOLDER holds the package panopticapi, whose `pq_compute` makes
expected.json. With --all the same is done with all val2017 maps of COCO_ROOT at full size, in
FOLDER.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
# Three with a crowd, and three more; 1 pixel in 16 is plenty to test rules.
IMAGES = (632, 5586, 7511, 139, 776, 1268)
STEP = 4  # every fourth pixel of every fourth row


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(np.int64) @ [1, 256, 65536]


def write(path: Path, ids: np.ndarray) -> None:
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(path, optimize=True)


def shrink(ids: np.ndarray, segments: list[dict]) -> tuple[np.ndarray, list[dict]]:
    """Every STEP-th pixel, renumbered from 1; segments that vanish are dropped."""
    ids = ids[::STEP, ::STEP]
    small, kept = np.zeros_like(ids), []
    for segment in segments:
        mask = ids == segment["id"]
        if mask.any():
            small[mask] = len(kept) + 1
            common = {key: segment[key] for key in ("category_id", "iscrowd")}
            kept.append({**common, "id": len(kept) + 1, "area": int(mask.sum())})
    return small, kept


def perturb(ids: np.ndarray, segments: list[dict], categories: list[int], rng) -> tuple:
    """Shift some segments, drop, merge or rename others, and add one on pixels of no segment."""
    h, w = ids.shape
    result, info = np.zeros_like(ids), {}
    void = ids == 0
    for segment in segments:
        mask, category = ids == segment["id"], segment["category_id"]
        what = rng.choice(["keep", "shift", "drop", "merge", "rename"], p=[0.4, 0.3, 0.1, 0.1, 0.1])
        if what == "drop":
            continue
        if what == "shift":
            shift = rng.integers(-h // 12, h // 12 + 1), rng.integers(-w // 12, w // 12 + 1)
            mask = np.roll(mask, shift, axis=(0, 1))
        if what == "rename":
            category = int(rng.choice(categories))
        same = [i for i, c in info.items() if c == category]
        new = same[0] if what == "merge" and same else len(info) + 1
        result[mask] = new
        info[new] = category
    if void.any():
        new = len(info) + 1
        result[void] = new
        info[new] = int(rng.choice(categories))
    shown = set(np.unique(result).tolist())
    return result, [{"id": i, "category_id": c} for i, c in info.items() if i in shown]


def make(root: Path, out: Path, images: set[int] | None) -> None:
    """Write truth and prediction of the images, made small (None: of all, at full size)."""
    content = json.loads((root / "annotations/panoptic_val2017.json").read_text())
    ids = [c["id"] for c in content["categories"]]
    rng = np.random.default_rng(0)
    truth, prediction = [], []
    for folder in ("truth", "prediction"):
        (out / folder).mkdir(exist_ok=True)
    for annotation in content["annotations"]:
        if images is not None and annotation["image_id"] not in images:
            continue
        segment_map = read(root / "panoptic_val2017" / annotation["file_name"])
        segments = annotation["segments_info"]
        if images is not None:
            segment_map, segments = shrink(segment_map, segments)
        guess, guessed = perturb(segment_map, segments, ids, rng)
        common = {"image_id": annotation["image_id"], "file_name": annotation["file_name"]}
        truth.append({**common, "segments_info": segments})
        prediction.append({**common, "segments_info": guessed})
        write(out / "truth" / annotation["file_name"], segment_map)
        write(out / "prediction" / annotation["file_name"], guess)
    used = {a["image_id"] for a in truth}
    content["categories"] = [
        {k: c[k] for k in ("id", "name", "isthing")} for c in content["categories"]
    ]
    content["images"] = [
        {"id": i["id"], "file_name": i["file_name"], "height": i["height"], "width": i["width"]}
        for i in content["images"]
        if i["id"] in used
    ]
    truth_file = {k: content[k] for k in ("images", "categories")} | {"annotations": truth}
    (out / "truth.json").write_text(json.dumps(truth_file))
    (out / "prediction.json").write_text(json.dumps({"annotations": prediction}))


def score(folder: Path) -> dict:
    from panopticapi.evaluation import pq_compute

    result = pq_compute(
        str(folder / "truth.json"),
        str(folder / "prediction.json"),
        str(folder / "truth"),
        str(folder / "prediction"),
    )
    result["per_class"] = {str(k): v for k, v in result["per_class"].items() if any(v.values())}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("coco_root", type=Path)
    parser.add_argument("panopticapi_folder")
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="all images, at full size")
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.panopticapi_folder)
    out = arguments.all or HERE
    make(arguments.coco_root, out, None if arguments.all else set(IMAGES))
    (out / "expected.json").write_text(json.dumps(score(out), indent=1) + "\n")


if __name__ == "__main__":
    main()
