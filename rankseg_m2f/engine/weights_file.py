"""Weight files in and out. Nothing in a file is run, unless the caller trusts it."""

import builtins
import codecs
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from torch import Tensor

from rankseg_m2f.files import replacing

# What readers raise on bytes that are not what they seem.
_BROKEN = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
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
# Under which key weights lie, beside training state; ours and Detectron2's name first.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state")
_AGAIN = "download or copy it again"


class UnsafeCheckpointError(ValueError):
    """A file holds objects that could run code when read."""

    def __init__(self, path: Path, name: str):
        super().__init__(
            f"{path} holds {name}, which could run code when read: "
            "give --trust-checkpoint only if you trust where the file comes from"
        )


def read_weights(path: str | Path, trust: bool = False) -> dict:
    """Weights and training state of a file.

    Formats, known by content: torch.save (.pth, .pt, .bin), pickled arrays of Detectron2 (.pkl),
    .safetensors and .npz.

    Args:
        path: a local file.
        trust: run what is in it. Without, only tensors, arrays and plain containers are read.

    Returns:
        "model": {name: Tensor} on the CPU; other keys as the file has them.

    Raises:
        FileNotFoundError: no such file.
        UnsafeCheckpointError: it holds other objects than weights, and is not trusted.
        ValueError: a folder, an empty, truncated or foreign file, or no weights in it.
        ImportError: safetensors is needed and not installed.
    """
    path = Path(path)
    form = _format(path)
    try:
        content = _READERS[form](path, trust)
    except UnsafeCheckpointError:
        raise
    except _BROKEN as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path} cannot be read as {form} weights ({shorten(reason, 120)}): "
            f"if it is cut off or damaged, {_AGAIN}"
        ) from error
    return _checkpoint(path, content)


def write_weights(path: str | Path, checkpoint: dict) -> None:
    """Write a file whole or not at all; an older file of the name stays until the end.

    Args:
        path: .safetensors keeps tensors alone, any other name is written by torch.save.
        checkpoint: "model": {name: Tensor}, and for torch.save other plain state.

    Raises:
        ValueError: training state for a .safetensors file.
        ImportError: safetensors is needed and not installed.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)
        return
    if others := sorted(set(checkpoint) - {"model"}):
        raise ValueError(f"{path} can hold weights alone, not {', '.join(others)}: use .pth")
    save_file = _safetensors(path).save_file
    # Tensors that share memory are refused there, so each gets its own.
    state = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
        for k, v in checkpoint["model"].items()
    }
    with replacing(path) as temporary:
        save_file(state, temporary, {"format": "pt"})


def _format(path: Path) -> str:
    """A key of `_READERS`, from the first bytes."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a weights file, as {path / 'model_final.pth'}")
    if not path.exists():
        raise FileNotFoundError(f"there is no weights file {path}: check MODEL.WEIGHTS")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty: {_AGAIN}")
    if head.removeprefix(codecs.BOM_UTF8).lstrip().lower().startswith(_WEB_PAGE):
        raise ValueError(f"{path} is a web page, not weights: {_AGAIN}, by the address of the file")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not weights: run `git lfs pull` there")
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
    raise ValueError(
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
    with path.open("rb") as file:
        if trust:
            return pickle.load(file, encoding="latin1")
        return _plain(_ArrayUnpickler(file, path).load())


def _read_safetensors(path: Path, trust: bool) -> dict[str, Tensor]:
    package = _safetensors(path)
    from safetensors import SafetensorError

    try:
        return package.load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


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
        import safetensors.torch
    except ImportError as error:
        raise ImportError(f"{path} needs a package: pip install safetensors") from error
    return safetensors.torch


class _DType:
    """What a pickle says of a numpy.dtype."""

    def __init__(self, code: str, *_flags: object):
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple) -> None:
        self.order = "=" if state[1] == "|" else state[1]

    def numpy(self) -> np.dtype:
        if not re.fullmatch(r"[biufc]\d+", self.code):
            raise pickle.UnpicklingError(f"an array of type {self.code!r}, not of numbers")
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """What a pickle says of an array. NumPy itself would trust the pickle."""

    def __init__(self, *_blank: object):
        self.__setstate__((1, (0,), _DType("u1"), False, b""))

    def __setstate__(self, state: tuple) -> None:
        _version, self.shape, self.dtype, self.fortran, self.data = state

    def numpy(self) -> np.ndarray:
        # Python 2 wrote bytes as text.
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        order = "F" if self.fortran else "C"
        dtype = self.dtype.numpy()
        array = np.ndarray(self.shape, dtype, buffer=data, order=order)
        return array.astype(dtype.newbyteorder("="), order="C")


class _Scalar(_Array):
    def __init__(self, dtype: _DType, data: bytes | str):
        self.__setstate__((1, (), dtype, False, data))


class _Buffer(_Array):
    """An array of pickle protocol 5."""

    def __init__(self, data: bytes, dtype: _DType, shape: tuple[int, ...], order: str):
        self.__setstate__((1, shape, dtype, order == "F", data))


_ADMITTED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): codecs.encode,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
}
for _numpy in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_numpy}.multiarray", "_reconstruct"] = _Array
    _ADMITTED[f"{_numpy}.multiarray", "scalar"] = _Scalar
    _ADMITTED[f"{_numpy}.numeric", "_frombuffer"] = _Buffer
for _container in ("dict", "list", "tuple", "set", "frozenset", "bytes", "bytearray", "complex"):
    for _module in ("builtins", "__builtin__"):
        _ADMITTED[_module, _container] = getattr(builtins, _container)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays in plain containers, and nothing else."""

    def __init__(self, file, path: Path):
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ADMITTED:
            raise UnsafeCheckpointError(self.path, f"{module}.{name}")
        return _ADMITTED[module, name]


def _plain(value: object) -> object:
    """The same containers, with arrays in place of what was said of them."""
    if isinstance(value, _Scalar):
        return value.numpy().item()
    if isinstance(value, _Array):
        return value.numpy()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(v) for v in value)
    if isinstance(value, (type, _DType)):
        raise pickle.UnpicklingError("a type where weights belong")
    return value


def _checkpoint(path: Path, content: object) -> dict:
    """The form `read_weights` returns."""
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a table of weights by name")
    for key in _WRAPPERS:
        if isinstance(content.get(key), dict):
            rest = {k: v for k, v in content.items() if k != key}
            return rest | {"model": _tensors(path, content[key])}
    state = {k: v for k, v in content.items() if isinstance(v, (Tensor, np.ndarray))}
    if not state:
        raise ValueError(f"{path} holds no weights: give a file of a trained model")
    return {k: v for k, v in content.items() if k not in state} | {"model": _tensors(path, state)}


def _tensors(path: Path, state: dict) -> dict[str, Tensor]:
    tensors = {}
    for name, value in state.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            native = value.dtype.newbyteorder("=")
            value = torch.from_numpy(np.array(value, native, order="C"))
        elif isinstance(value, (bool, int, float, np.generic)):
            value = torch.tensor(value)
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise ValueError(f"{path} holds {name!r}, which is no tensor: it is no weights file")
        tensors[name] = value.detach()
    return tensors
