"""Where datasets lie, texts as editors save them, files written whole or not at all."""

import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rankseg_m2f.errors import MissingFileError, UserError

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def datasets_root() -> Path:
    """The folder of all datasets: $DETECTRON2_DATASETS, or `datasets` where it is empty or unset.

    Shells leave the ~ of a quoted path as it is.
    """
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


def read_utf8(path: str | Path) -> str:
    """A text in UTF-8, with or without the byte order mark that Windows editors write.

    Raises:
        MissingFileError: no such file.
        UserError: a folder, or text in another encoding; names the file.
    """
    path = Path(path)
    # Unlike Path's, these know no error of a name that is too long: there is no such file.
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder, not a file")
    if not os.path.exists(path):
        raise MissingFileError(f"{path} does not exist")
    content = path.read_bytes()
    if content.startswith(_UTF_16):
        raise UserError(f"{path} is saved as UTF-16 (Windows calls it Unicode); save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        MissingFileError: no such file.
        UserError: not JSON, as when a download was cut short; names the file.
    """
    text = read_utf8(path)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{path} is not valid JSON: it is nested too deeply") from error
    except ValueError as error:
        reason = "the file is empty" if not text.strip() else str(error)
        raise UserError(f"{path} is not valid JSON ({reason})") from error


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text without spaces around them, and without those that are empty.

    Raises:
        MissingFileError: no such file.
        UserError: not a text in UTF-8; names the file.
    """
    return [line.strip() for line in read_utf8(path).splitlines() if line.strip()]


@contextmanager
def uncollected() -> Iterator[None]:
    """For reading large files: Python's collector of cycles pauses. There are none in what is read,
    and looking for them, in all of PyTorch too, takes longer than reading.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which it replaces if the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
