"""Check registered datasets before training: python tools/check_dataset.py NAME ..."""

import argparse
import sys

import numpy as np
from tqdm import tqdm

from rankseg_m2f.config import get_cfg
from rankseg_m2f.data.check import DatasetReport, check_dataset, label_difference
from rankseg_m2f.engine.main import register_datasets
from rankseg_m2f.errors import UserError, one_line_errors, sentence


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="registered dataset")
    parser.add_argument(
        "--definitions", nargs="*", default=[], help="YAML files as in DATASETS.DEFINITIONS"
    )
    parser.add_argument("--limit", type=int, help="records to look at (default: all)")
    parser.add_argument("--show", type=int, default=10, help="bad files to name")
    args = parser.parse_args()
    cfg = get_cfg()
    cfg.DATASETS.DEFINITIONS = args.definitions
    with one_line_errors("check_dataset"):
        register_datasets(cfg)
    failed, reports = False, []
    for name in args.names:
        try:
            report = check_dataset(name, args.limit, progress=tqdm)
        except UserError as error:
            print(f"{name}: FAILED: {sentence(error)}")
            failed = True
            continue
        print(describe(report, args.show))
        failed |= bool(report.problems)
        reports.append(report)
    for other in reports[1:]:
        if difference := label_difference(reports[0].label_names, other.label_names):
            print(f"{reports[0].name} and {other.name} have different labels: {difference}")
    return int(failed)


def describe(report: DatasetReport, show: int) -> str:
    """A summary and the first `show` bad files."""
    counts = report.label_counts
    lines = [
        f"{report.name}: {report.num_records} records, {len(report.problems)} problems",
        f"  {int((counts > 0).sum())} of {len(counts)} labels occur; "
        f"{counts.sum() / max(report.num_records, 1):.1f} labels per image",
    ]
    if (absent := np.flatnonzero(counts == 0)).size:
        lines.append(
            f"  never seen: {', '.join(map(str, absent[:show]))}{' ...' * (len(absent) > show)}"
        )
    for title, entries in (("problem", report.problems), ("remark", report.remarks)):
        lines += [f"  {title}: {entry}" for entry in entries[:show]]
        if len(entries) > show:
            lines.append(f"  ... and {len(entries) - show} more {title}s")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
