"""Weight files in and out. Nothing in a file is run, unless the caller trusts it."""

import codecs
import json
import logging
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from torch import Tensor

from rankseg_m2f.errors import MissingFileError, MissingPackageError, UserError
from rankseg_m2f.files import replacing
from rankseg_m2f.weights.safe_pickle import UnsafeCheckpointError, load_arrays

logger = logging.getLogger(__name__)

# What readers raise on bytes that are not what they seem.
_BROKEN = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
# torch.save before the zip format began with this number.
_LEGACY_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")
# Under which key weights lie, beside training state; ours and Detectron2's name first. Detectron1
# wrote "blobs", DeepSpeed writes "module".
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "module", "blobs")
# Averages over training; read where a file has nothing else.
_AVERAGES = ("model_ema", "ema_state_dict", "state_dict_ema", "ema_state", "ema")
# A wrapper may hold another; a damaged file could go on without end.
_MAX_DEPTH = 4
# What a folder of Hugging Face holds: whole, or in parts that an index names.
_FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Under which key our metadata is in a .safetensors file, as JSON: values there are texts.
_METADATA = "rankseg_m2f"
_AGAIN = "download or copy it again"


def read_weights(path: str | Path, trust: bool = False) -> dict:
    """Weights and training state of a file.

    Formats, known by content: torch.save (.pth, .pt, .bin), pickled arrays of Detectron2 (.pkl),
    .safetensors and .npz. Weights in parts are read by their index.json.

    Args:
        path: a local file, or a folder of Hugging Face's, which has model.safetensors or its
            index.
        trust: run what is in it. Without, only tensors, arrays and plain containers are read.

    Returns:
        "model": {name: Tensor} on the CPU; other keys as the file has them, among them the
        "metadata" of `write_weights`.

    Raises:
        MissingFileError: no such file.
        UnsafeCheckpointError: it holds other objects than weights, and is not trusted.
        UserError: a folder of other files, an empty, truncated or foreign file, or no weights in
            it.
        MissingPackageError: safetensors is needed and not installed.
    """
    path = _file_of(Path(path))
    return _read_parts(path, trust) if path.suffix == ".json" else _read_file(path, trust)


def _read_file(path: Path, trust: bool) -> dict:
    form = _format(path)
    try:
        content = _READERS[form](path, trust)
    except UserError:
        raise  # it says what it is
    except _BROKEN as error:
        if isinstance(error, OSError) and error.filename:
            raise  # not of what is in the file: it cannot be opened
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} cannot be read as {form} weights ({shorten(reason, 120)}): "
            f"if it is cut off or damaged, {_AGAIN}"
        ) from error
    return _checkpoint(path, content)


def write_weights(path: str | Path, checkpoint: dict) -> None:
    """Write a file whole or not at all; an older file of the name stays until the end.

    Args:
        path: .safetensors keeps tensors and metadata, any other name is written by torch.save.
        checkpoint: "model": {name: Tensor}; "metadata", if wished, of values that JSON knows; for
            torch.save also other plain state.

    Raises:
        UserError: training state for a .safetensors file.
        MissingPackageError: safetensors is needed and not installed.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except OSError as error:
            # That of a full disk names no file.
            if error.errno is not None and error.filename is None:
                error.filename = str(path)
            raise
        return
    if others := sorted(set(checkpoint) - {"model", "metadata"}):
        raise UserError(f"{path} can hold weights alone, not {', '.join(others)}: use .pth")
    save_file = _safetensors(path).torch.save_file
    about = {"format": "pt"}
    if "metadata" in checkpoint:
        about[_METADATA] = json.dumps(checkpoint["metadata"], allow_nan=False)
    # Tensors that share memory are refused there, so each gets its own.
    state = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
        for k, v in checkpoint["model"].items()
    }
    with replacing(path) as temporary:
        # The library gives its files to their owner alone; others are written for all.
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(state, temporary, about)
        temporary.chmod(mode)


def _file_of(path: Path) -> Path:
    """The file to read where `path` may be a folder."""
    if not path.is_dir():
        return path
    for name in _FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"{path} is a folder without {' or '.join(_FOLDER_FILES[:2])}: name a weights file, as "
        f"{path / 'model_final.pth'}"
    )


def _read_parts(index: Path, trust: bool) -> dict:
    """The tensors of all files that Hugging Face's index names."""
    if not index.exists():
        raise MissingFileError(f"no weights file at {index}: check MODEL.WEIGHTS")
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        parts = sorted(set(files.values()))
        # An index must not reach into other folders.
        local = all(Path(part).name == part != ".." for part in parts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of weight files: name a weights file") from error
    if not local:
        raise UserError(f"{index} names files of other folders, {parts}: {_AGAIN}")
    state: dict[str, Tensor] = {}
    for part in parts:
        state |= _read_file(index.parent / part, trust)["model"]
    if lost := sorted(set(files) - set(state)):
        raise UserError(f"the files of {index} lack {lost[0]}, which it lists: {_AGAIN}")
    return {"model": state}


def _format(path: Path) -> str:
    """A key of `_READERS`, from the first bytes."""
    if not path.exists():
        raise MissingFileError(f"no weights file at {path}: check MODEL.WEIGHTS")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise UserError(f"{path} is empty: {_AGAIN}")
    if head.removeprefix(codecs.BOM_UTF8).lstrip().lower().startswith(_WEB_PAGE):
        raise UserError(f"{path} is a web page, not weights: {_AGAIN}, by the address of the file")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not weights: run `git lfs pull` there")
    if path.suffix == ".safetensors":
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        first_entry = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return "npz" if first_entry.endswith(b".npy") else "torch"
    # torch.load takes any tar for a checkpoint, on a path that older versions guard badly.
    if head.startswith(_LEGACY_TORCH) and not tarfile.is_tarfile(path):
        return "torch"
    if head.startswith(b"\x80") or path.suffix in (".pkl", ".pickle"):
        return "pickle"
    raise UserError(
        f"{path} has no known format: weights are .pth, .pt, .bin, .pkl, .safetensors or .npz"
    )


def _read_torch(path: Path, trust: bool) -> object:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ValueError("a TorchScript program, not weights")
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        # A damaged file names none.
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        if trust or match is None:
            raise
        raise UnsafeCheckpointError(path, match[1]) from error


def _read_pickle(path: Path, trust: bool) -> object:
    if not trust:
        return load_arrays(path)
    with path.open("rb") as file:
        return pickle.load(file, encoding="latin1")


def _read_safetensors(path: Path, trust: bool) -> dict:
    package = _safetensors(path)
    try:
        with package.safe_open(path, "pt") as file:
            checkpoint = {"model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
            about = file.metadata() or {}
    except package.SafetensorError as error:
        raise ValueError(str(error)) from error
    if _METADATA in about:
        checkpoint["metadata"] = json.loads(about[_METADATA])
    return checkpoint


def _read_npz(path: Path, trust: bool) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


_READERS = {
    "torch": _read_torch,
    "pickle": _read_pickle,
    "safetensors": _read_safetensors,
    "npz": _read_npz,
}


def _safetensors(path: Path):
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise MissingPackageError(f"{path} needs a package: pip install safetensors") from error
    return safetensors


def _checkpoint(path: Path, content: object) -> dict:
    """The form `read_weights` returns."""
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a table of weights by name")
    state = {k: v for k, v in content.items() if isinstance(v, (Tensor, np.ndarray))}
    for key in _WRAPPERS if state else (*_WRAPPERS, *_AVERAGES):
        if isinstance(content.get(key), dict):
            rest = {k: v for k, v in content.items() if k != key}
            if averages := [k for k in _AVERAGES if k in rest]:
                logger.info("%s: weights are those of %r, not of %s", path, key, averages)
            return rest | {"model": _tensors(path, _unwrapped(content[key]))}
    if not state:
        raise UserError(f"{path} holds no weights: give a file of a trained model")
    return {k: v for k, v in content.items() if k not in state} | {"model": _tensors(path, state)}


def _unwrapped(state: dict) -> dict:
    for _ in range(_MAX_DEPTH):
        inner = [state[k] for k in (*_WRAPPERS, *_AVERAGES) if isinstance(state.get(k), dict)]
        if not inner:
            break
        state = inner[0]
    return state


def _tensors(path: Path, state: dict) -> dict[str, Tensor]:
    tensors = {}
    for name, value in state.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            native = value.dtype.newbyteorder("=")
            value = torch.from_numpy(np.array(value, native, order="C"))
        elif isinstance(value, (bool, int, float, np.generic)):
            value = torch.tensor(value)
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise UserError(
                f"{path} holds {name!r}, which is not a tensor: this is not a weights file"
            )
        tensors[name] = value.detach()
    return tensors
