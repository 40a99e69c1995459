"""The whole of RankSeg in one go: make the scenes, train, evaluate, write a report.

    python demo/run_demo.py [--config-file FILE] [KEY VALUE ...]

An interrupted run goes on where it stopped.
"""

import argparse
import os
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The scripts beside the package; `datasets` itself would hide a library of that name.
sys.path[:0] = [str(ROOT / "datasets"), str(ROOT / "tools")]

import torch
from constant_baseline import constant_baseline
from detectron2.data import DatasetCatalog, MetadataCatalog
from make_scenes import make_scenes
from report import Run, metric_rows, write_report

from rankseg_m2f import __version__
from rankseg_m2f.engine import main as engine

DEMO = ROOT / "configs" / "scenes" / "panoptic" / "demo-rankseg.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", default=str(DEMO), metavar="FILE")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ...")
    args = parser.parse_args()
    start = time.perf_counter()
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / "scenes"
    make_scenes(root)
    cfg = engine.load_config(args.config_file, args.opts)
    folder = Path(cfg.OUTPUT_DIR)
    command = ["--config-file", args.config_file, "--resume", *args.opts]
    if not same_config(cfg, folder):
        command.remove("--resume")
    engine.main(engine.argument_parser().parse_args(command))
    trained = time.perf_counter()

    train, test = cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]
    baseline = constant_baseline(
        DatasetCatalog.get(train),
        DatasetCatalog.get(test),
        MetadataCatalog.get(test),
        kappa=cfg.MODEL.RANKSEG.TOPK or None,
        train_metadata=MetadataCatalog.get(train),
    )
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    cfg.freeze()
    shown = os.path.relpath(args.config_file)
    facts = {
        "command": f"python train_net.py --config-file {shown} {' '.join(args.opts)}".strip(),
        "time": f"{(trained - start) / 60:.1f} minutes for scenes, training and evaluation",
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()}, {cfg.MODEL.DEVICE}",
        "software": f"rankseg_m2f {__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
        "scenes": f"{root}/contact_sheet.png",
    }
    page = write_report(cfg, folder, baseline, facts)
    rows = metric_rows(Run.read(folder / "metrics.json"), baseline)
    print(f"\n{'validation':12}{'model':>8}{'constant prediction':>22}")
    for name, _, ours, constant in rows:
        print(f"{name:12}{ours:8.1f}{'-' if constant is None else f'{constant:.1f}':>22}")
    print(f"\nReport: {page}")


def same_config(cfg, folder: Path) -> bool:
    """Whether the run in `folder` had this config, so that it can be resumed."""
    dumped = folder / "config.yaml"
    return dumped.is_file() and dumped.read_text(encoding="utf-8") == cfg.dump()


if __name__ == "__main__":
    main()
