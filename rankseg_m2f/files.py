"""Where datasets lie, and files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def datasets_root() -> Path:
    """The folder of all datasets: $DETECTRON2_DATASETS, or `datasets` where it is empty or unset.

    Shells leave the ~ of a quoted path as it is.
    """
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


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
