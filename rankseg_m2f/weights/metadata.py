"""What a published checkpoint says of itself, in values that JSON and torch read without trust."""

from collections.abc import Mapping
from textwrap import shorten

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from rankseg_m2f import __version__
from rankseg_m2f.data.check import label_difference
from rankseg_m2f.revision import revision

# Letters of each value in a log.
_SHOWN = 200


def label_names(cfg: CfgNode) -> list[str]:
    """Names of the model's labels, from the first dataset of the config that has them, or none."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if names := MetadataCatalog.get(name).get("label_names", ()):
            return list(names)
    return []


def build_metadata(cfg: CfgNode, metrics: Mapping | None, iteration: int | None) -> dict:
    """Metadata of a model of `cfg`.

    Args:
        metrics: of an evaluation, such as {task: {metric: value}}.
        iteration: the last one trained.

    Returns:
        "version", "revision" (of this project's checkout, or None), "iteration", "labels" (K names,
        or none), "metrics", and "config", a YAML text without the paths of its machine.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "", "./output"
    return {
        "version": __version__,
        "revision": revision(),
        "iteration": iteration,
        "labels": label_names(cfg),
        "metrics": dict(metrics or {}),
        "config": cfg.dump(),
    }


def describe_metadata(metadata: object, labels: list[str]) -> tuple[str, str | None]:
    """Metadata of a file for a log.

    Args:
        metadata: as read; other programs may mean anything by it.
        labels: of the model; none: not known.

    Returns:
        A line, "" where nothing is known; and a sentence where its labels are other ones, or None.
    """
    if not isinstance(metadata, Mapping):
        return "", None
    known = [
        f"{key} {shorten(str(metadata[key]), _SHOWN)}"
        for key in ("version", "revision", "iteration", "metrics")
        if metadata.get(key)
    ]
    theirs = metadata.get("labels")
    difference = None
    if isinstance(theirs, (list, tuple)) and theirs:
        known.append(f"{len(theirs)} labels")
        difference = label_difference(theirs, labels) if labels else None
    note = f"The file's labels are not the dataset's: {difference}." if difference else None
    return f"The file says: {', '.join(known)}" if known else "", note
