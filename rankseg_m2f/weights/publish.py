"""Checkpoints for others: the weights alone, what they are, and a name that tells them apart."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor

from rankseg_m2f.errors import ExistingFileError, UserError
from rankseg_m2f.weights.checkpoint import load_model
from rankseg_m2f.weights.file import read_weights, write_weights
from rankseg_m2f.weights.metadata import build_metadata

SUFFIXES = (".pth", ".safetensors")
_CHUNK = 1 << 20


def publish(
    cfg: CfgNode,
    source: str,
    target: Path,
    metrics: Mapping | None = None,
    trust: bool = False,
) -> Path:
    """Write the weights of a checkpoint with `build_metadata`, without any training state.

    Args:
        cfg: it was trained with; its weights must fill the model.
        source: anything that MODEL.WEIGHTS takes.
        target: with one of SUFFIXES; the first 8 hex digits of the file's MD5 go into its name.
        metrics: see `build_metadata`.
        trust: see `read_weights`.

    Returns:
        What was written, as `target` "model.pth" to "model-0123abcd.pth".

    Raises:
        UserError: another suffix, or weights that do not fill the model or are not finite.
        ExistingFileError: the very file is there already.
    """
    if target.suffix not in SUFFIXES:
        raise UserError(f"{target} must end in {' or '.join(SUFFIXES)}")
    there = cfg.clone()
    there.defrost()
    there.MODEL.WEIGHTS, there.MODEL.DEVICE = source, "cpu"
    model, rest = load_model(there, trust=trust)
    state = model.state_dict()
    if broken := [name for name, value in state.items() if not value.isfinite().all()]:
        raise UserError(
            f"{source}: {len(broken)} of {len(state)} weights are not finite, such as {broken[0]}"
        )
    metadata = build_metadata(cfg, metrics, rest.get("iteration"))
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        write_weights(temporary, {"model": state, "metadata": metadata})
        _check(temporary, state)
        named = target.with_name(f"{target.stem}-{_md5(temporary)[:8]}{target.suffix}")
        if named.exists():
            raise ExistingFileError(f"{named} is there already, and is never replaced")
        temporary.rename(named)
    finally:
        temporary.unlink(missing_ok=True)
    return named


def _check(path: Path, meant: Mapping[str, Tensor]) -> None:
    """Read a written file back without trust."""
    written = read_weights(path)["model"]
    if written.keys() != meant.keys() or not all(
        torch.equal(written[name], value) for name, value in meant.items()
    ):
        raise UserError(f"{path} does not hold what was written: check the disk")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
