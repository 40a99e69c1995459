"""Reading pickled arrays without running what a pickle says."""

import builtins
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np

from rankseg_m2f.errors import UserError


class UnsafeCheckpointError(UserError):
    """A file holds objects that could run code when read."""

    def __init__(self, path: Path, name: str):
        super().__init__(
            f"{path} holds {name}, which could run code when read: "
            "give --trust-checkpoint only if you trust where the file comes from"
        )


def load_arrays(path: Path) -> object:
    """What is pickled in a file: arrays, numbers and texts in plain containers.

    Args:
        path: of any pickle protocol, also of Python 2.

    Raises:
        UnsafeCheckpointError: it holds other objects; nothing of it was run.
        pickle.UnpicklingError: arrays of objects, or types where values belong.
    """
    with path.open("rb") as file:
        return _plain(_ArrayUnpickler(file, path).load(), {})


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


def _encode(text: str, encoding: str) -> bytes:
    """`codecs.encode` as pickle writes bytes for Python 2; other codecs are modules to import."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_ADMITTED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
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


def _plain(value: object, done: dict[int, object]) -> object:
    """The same containers, with arrays in place of what was said of them.

    Args:
        done: results by id. Each object is looked at once: a few lists that hold one another
            twice would else become millions.
    """
    if id(value) not in done:
        done[id(value)] = _made(value, done)
    return done[id(value)]


def _made(value: object, done: dict[int, object]) -> object:
    if isinstance(value, _Scalar):
        return value.numpy().item()
    if isinstance(value, _Array):
        return value.numpy()
    if isinstance(value, dict):
        return {k: _plain(v, done) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(v, done) for v in value)
    if isinstance(value, (type, _DType)):
        raise pickle.UnpicklingError("a type where weights belong")
    return value
