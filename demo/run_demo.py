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
from label_statistics import LabelStatistics
from make_scenes import make_scenes
from report import Run, metric_rows, write_report
from time_estimate import announce, is_run_of

from rankseg_m2f import __version__
from rankseg_m2f.config import Config
from rankseg_m2f.engine import main as engine
from rankseg_m2f.errors import add_debug_flag, one_line_errors
from rankseg_m2f.evaluation.ground_truth import GroundTruth
from rankseg_m2f.files import datasets_root

DEMO = ROOT / "configs" / "scenes" / "panoptic" / "demo-rankseg.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", default=str(DEMO), metavar="FILE")
    add_debug_flag(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ...")
    args = parser.parse_args()
    with one_line_errors("run_demo"):
        run(args)


def run(args: argparse.Namespace) -> None:
    """See the module."""
    start = time.perf_counter()
    root = datasets_root() / "scenes"
    make_scenes(root)
    announce([engine.load_config(args.config_file, args.opts)])
    cfg = trained(args.config_file, args.opts)
    minutes = (time.perf_counter() - start) / 60
    folder = Path(cfg.OUTPUT_DIR)
    train, test = (
        GroundTruth.from_dataset(names[0]) for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    )
    baseline = constant_baseline(
        LabelStatistics.from_truth(train), test, kappa=cfg.MODEL.RANKSEG.TOPK or None
    )
    shown = os.path.relpath(args.config_file)
    facts = {
        "command": f"python train_net.py --config-file {shown} {' '.join(args.opts)}".strip(),
        "time": f"{minutes:.1f} minutes for scenes, training and evaluation",
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


def trained(config: str, overrides: list[str]) -> Config:
    """Train, or go on with a run of the same config; its config, the final weights filled in."""
    cfg = engine.load_config(config, overrides)
    command = ["--config-file", config, *overrides]
    if is_run_of(cfg):
        command.insert(0, "--resume")
    engine.main(engine.argument_parser().parse_args(command))
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    cfg.freeze()
    return cfg


if __name__ == "__main__":
    main()
