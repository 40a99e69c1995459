"""Tables of docs/EVIDENCE.md from committed results that are no runs of an experiment."""

import json
from collections.abc import Sequence

from experiment import ROOT


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, its first row the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def first_attempt(content: dict) -> str:
    """From a list of settings with what they gave."""
    rows = content["rows"]
    shown = ([r["setting"], f"{r['PQ']:.1f}", f"{r['mIoU']:.1f}"] for r in rows)
    return markdown([["setting, seed 1", "PQ", "mIoU"], *shown])


def label_recall(content: dict) -> str:
    """From a file of tools/constant_baseline.py --json."""
    rows = content["rows"]
    header = ["κ", "recall@κ", "coverage@κ"]
    return markdown(
        [header, *([f"{r['kappa']}", f"{r['recall']:.1f}", f"{r['coverage']:.1f}"] for r in rows)]
    )


def large_vocabulary(content: dict) -> str:
    """From a file of benchmarks/large_vocabulary.py --json; κ = K and κ < K side by side."""
    few = content["kappa"]
    found = {(r["size"], r["labels"], r["kappa"]): r for r in content["rows"]}
    header = ["size", "K", f"memory, κ = {few}, GiB", "κ = K", "ratio"]
    header += [f"time, κ = {few}, s", "κ = K", "ratio"]
    rows = []
    for size, labels in dict.fromkeys(key[:2] for key in found):
        pair = found[size, labels, few], found[size, labels, labels]
        row = [size.replace("x", " × "), str(labels)]
        for key, unit in (("peak_bytes", 2**30), ("seconds", 1)):
            selected, all_labels = (side[key] / unit for side in pair)
            row += [f"{selected:.2f}", f"{all_labels:.2f}", f"{all_labels / selected:.2f}"]
        rows.append(row)
    return markdown([header, *rows]) + f"\n\nOn {content['machine']}."


def read_json(path: str) -> dict:
    """A file of the project."""
    return json.loads((ROOT / path).read_text(encoding="utf-8"))
