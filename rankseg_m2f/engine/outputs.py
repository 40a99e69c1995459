"""Where results go, checked before the work that makes them."""

import os
from pathlib import Path

from rankseg_m2f.errors import UserError


def check_folder(path: str | Path, name: str) -> None:
    """See that files can be written into a folder, which need not exist yet; nothing is made.

    Args:
        name: the key or flag that `path` comes from.

    Raises:
        UserError: it is an address or a file, lies below a file, or may not be written.
    """
    if "://" in str(path):
        raise UserError(f"{name} {path} is an address: name a folder of this machine")
    whole = Path(path).absolute()
    there = next(p for p in (whole, *whole.parents) if os.path.lexists(p))
    if not there.is_dir():
        where = "it" if there == whole else there
        raise UserError(f"{name} {path}: {where} is a file, not a folder; name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{name} {path}: {there} may not be written; name another folder")


def check_file(path: str | Path, name: str) -> None:
    """The same of a file, which may be replaced.

    Raises:
        UserError: it is a folder or may not be replaced, or see `check_folder` of its folder.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{name} {path} is a folder: name a file in it")
    check_folder(path.parent, name)
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"{name} {path} may not be replaced; name another file")
