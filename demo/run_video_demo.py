"""Video in one go: moving scenes, a model for instances and one for semantics, figures, mp4s.

    python demo/run_video_demo.py [KEY VALUE ...]

An interrupted run goes on where it stopped.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The scripts beside the package; `datasets` itself would hide a library of that name.
sys.path[:0] = [str(ROOT / "datasets"), str(ROOT / "tools")]

import numpy as np
from constant_baseline import constant_baseline
from demo_video import draw, write_video
from detectron2.data import DatasetCatalog
from label_statistics import LabelStatistics
from make_video_scenes import make_video_scenes
from PIL import Image
from run_demo import trained
from time_estimate import announce
from tqdm import tqdm
from visualise import Labels, side_by_side

from rankseg_m2f.engine.main import load_config
from rankseg_m2f.engine.predictor import VideoPredictor
from rankseg_m2f.errors import add_debug_flag, one_line_errors
from rankseg_m2f.evaluation.build import build_evaluator
from rankseg_m2f.evaluation.ground_truth import GroundTruth
from rankseg_m2f.files import datasets_root
from rankseg_m2f.images import read_image

CONFIGS = {
    task: ROOT / "configs" / "video_scenes" / task / "demo-rankseg.yaml"
    for task in ("instance", "semantic")
}
# Enough frames for consistency over sixteen.
_FRAMES = 18
_SIDE = 288  # of the images drawn
_SHOWN = ("AP", "AP50", "AR10", "mIoU", "VC8", "VC16", "mAP", "recall", "coverage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ..., for both models")
    add_debug_flag(parser)
    args = parser.parse_args()
    with one_line_errors("run_video_demo"):
        run(args)


def run(args: argparse.Namespace) -> None:
    """See the module."""
    start = time.perf_counter()
    make_video_scenes(datasets_root() / "video_scenes", frames=_FRAMES)
    announce([load_config(str(config), args.opts) for config in CONFIGS.values()])
    lines = [f"{'':22}{'model':>10}{'constant prediction':>22}"]
    for task, config in CONFIGS.items():
        cfg = trained(str(config), args.opts)
        results = Path(cfg.OUTPUT_DIR) / "inference" / cfg.DATASETS.TEST[0] / "results.json"
        metrics = json.loads(results.read_text(encoding="utf-8"))
        lines += rows(task, metrics, constant_prediction(cfg))
        show(cfg, Path(cfg.OUTPUT_DIR).parent)
    text = "\n".join(lines)
    minutes = (time.perf_counter() - start) / 60
    folder = Path(cfg.OUTPUT_DIR).parent
    (folder / "figures.txt").write_text(f"{text}\n\n{minutes:.1f} minutes\n", encoding="utf-8")
    print(f"\n{text}\n\nVideos, contact sheets and figures: {folder} ({minutes:.1f} minutes)")


def constant_prediction(cfg) -> dict[str, dict]:
    """Metrics of the best constant prediction, by the evaluators of the model."""
    train, test = (
        GroundTruth.from_dataset(names[0]) for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    )
    judge = build_evaluator(cfg, test.name, truth=test)
    return constant_baseline(
        LabelStatistics.from_truth(train), test, cfg.MODEL.RANKSEG.TOPK or None, judge
    )


def rows(task: str, results: dict, constant: dict) -> Iterator[str]:
    """Lines of the table."""
    for kind, metrics in results.items():
        for name in _SHOWN:
            value = metrics.get(name)
            if value is not None:
                other = constant.get(kind, {}).get(name, float("nan"))
                label = f"label {name}" if kind == "labels" else name
                yield f"{task:10}{label:12}{value:10.1f}{other:22.1f}"


def show(cfg, folder: Path, count: int = 4) -> None:
    """An mp4 of the first validation video, and four frames of each of the first few."""
    predictor = VideoPredictor(cfg)
    name = cfg.DATASETS.TEST[0]
    labels = Labels.from_datasets([name])
    task = Path(cfg.OUTPUT_DIR).name
    strips = []
    for number, record in enumerate(tqdm(DatasetCatalog.get(name)[:count], desc=f"draw {task}")):
        pictures = [enlarged(read_image(file)) for file in record["file_names"]]
        drawn = list(draw(iter(pictures), predictor(pictures), labels, min_score=0.3))
        if not number:
            write_video(folder / f"{task}.mp4", iter(drawn), rate=6)
        chosen = np.linspace(0, len(drawn) - 1, 4).astype(int)
        panel = drawn[0].crop((_SIDE + 8, 0, drawn[0].width, _SIDE))
        frames = [drawn[i].crop((0, 0, _SIDE, _SIDE)) for i in chosen]
        strips.append(side_by_side([*frames, panel]))
    sheet = Image.new("RGB", (strips[0].width, sum(s.height + 8 for s in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + 8
    sheet.save(folder / f"{task}.png")


def enlarged(picture: np.ndarray) -> np.ndarray:
    """The image at drawing size; the model resizes it as it resizes any."""
    return np.asarray(Image.fromarray(picture).resize((_SIDE, _SIDE)))


if __name__ == "__main__":
    main()
