"""Runs mutants one after the other and writes a line on each: fuzz_worker.py SEED FIRST LAST FILE.

A mutant that kills this process is the last that was begun; see `fuzz_watch`.
"""

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from fuzz_mutants import mutant
from kinds_doors import Walk, walk
from kinds_made import NAME, Made

SECONDS, GROWTH = 20, 2 << 30


def main() -> None:
    seed, first, last = map(int, sys.argv[1:4])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    limit = _virtual_memory() + GROWTH
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with open(sys.argv[4], "a", encoding="utf-8") as file:
        for index in range(first, last):
            for line in lines_of(seed, index):
                file.write(json.dumps(line) + "\n")
                file.flush()


def lines_of(seed: int, index: int):
    """Before the mutant is walked, and after: its outcome."""
    folder = Path(tempfile.mkdtemp(prefix="mutant_"))
    try:
        made, said = mutant(seed, index, folder / "data")
        line = {"index": index, "mutation": said}
        yield {**line, "outcome": "begun"}
        started, memory = time.monotonic(), _peak()
        # The default action of the signal ends the process, in foreign code too.
        signal.alarm(SECONDS)
        outcome = _outcome(made)
        signal.alarm(0)
        line |= {"seconds": time.monotonic() - started, "growth": _peak() - memory}
        if line["growth"] > GROWTH:
            outcome = {"outcome": "wrong", "why": f"memory grew by {line['growth']} bytes"}
        yield {**line, **outcome}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _outcome(made: Made) -> dict:
    try:
        found = walk(made.root / "data.yaml", made, guess)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "rankseg_m2f" in f.filename] or frames
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}"
        return {"outcome": "wrong", "why": f"{type(error).__name__}: {str(error)[:200]} at {where}"}
    if why := unsound(found, made.root):
        return {"outcome": "wrong", "why": why}
    return {"outcome": "refused" if found.stops else "results", "problems": len(found.problems)}


def unsound(found: Walk, root: Path) -> str | None:
    """What is wrong with what the doors said; None: nothing."""
    for door, sentence in found.refusals.items():
        if not sentence.strip() or "\n" in sentence or len(sentence) > 8000:
            return f"{door} does not end in one line: {sentence[:200]!r}"
        if str(root) not in sentence:
            return f"{door} names no file: {sentence[:200]}"
    if found.problems and not any(str(root) in problem for problem in found.problems):
        return f"problems name no file: {found.problems[:2]}"
    # A test set is sound, and cannot be trained on.
    untrained = any("no annotations" in remark for remark in found.remarks)
    if found.stops and not found.said and not untrained:
        return f"the check finds nothing, but: {found.stops[0][:200]}"
    return None


def guess(given: dict, made: Made) -> dict:
    """Results of a model that sees one object of the first label everywhere, or nothing at all."""
    metadata = MetadataCatalog.get(NAME)
    shape = given["height"], given["width"]
    nothing = len(given.get("file_name", "")) % 2
    labels = sorted(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())[: 1 - nothing]
    masks = torch.ones(len(labels), *shape, dtype=torch.bool)
    if made.is_video:
        frames = len(given["file_names"])
        scores = torch.zeros(len(metadata.label_names), frames, *shape)
        return {
            "sem_seg": scores,
            "pred_scores": torch.ones(len(labels)),
            "pred_labels": torch.tensor(labels, dtype=torch.int64),
            "pred_masks": masks[:, None].expand(-1, frames, -1, -1),
        }
    instances = Instances(shape)
    instances.pred_masks, instances.scores = masks, torch.ones(len(labels))
    instances.pred_classes = torch.tensor(labels, dtype=torch.int64)
    instances.pred_boxes = Boxes(torch.zeros(len(labels), 4))
    segments = [{"id": 1, "category_id": k, "isthing": True} for k in labels]
    return {
        "sem_seg": torch.zeros(len(metadata.label_names), *shape),
        "panoptic_seg": (torch.from_numpy(np.full(shape, len(labels))), segments),
        "instances": instances,
    }


def _virtual_memory() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    main()
