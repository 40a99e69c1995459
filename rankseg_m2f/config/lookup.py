"""Configs by what --config-file says: a file, or ours for an official one's path."""

import difflib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from rankseg_m2f.config.keys import get_cfg
from rankseg_m2f.config.node import Config

logger = logging.getLogger(__name__)
# Beside a checkout of this project; an installed package has none.
CONFIGS = Path(__file__).parents[2] / "configs"
# Files of the official repositories -> ours, both as paths in a folder called configs.
TABLE = "official_paths.json"


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a file, with ``KEY VALUE`` pairs over it; it is not frozen.

    Args:
        path: what `find_config` finds; "" for defaults.

    Raises:
        FileNotFoundError: no such config.
        ValueError, KeyError, AssertionError: see `Config`.
    """
    cfg = get_cfg()
    if path:
        cfg.merge_from_file(str(find_config(path)))
    cfg.merge_from_list(list(overrides))
    return cfg


def find_config(path: str | Path) -> Path:
    """The config file at `path`, or ours that stands for the official file of that path.

    An official path is looked up from its part configs/ on, in the table of the folder that it
    names, then in that of this project. A relative path of ours does in any working directory.

    Raises:
        FileNotFoundError: neither; names paths that are near.
    """
    path = Path(path)
    if path.is_file():
        return path
    folders = [folder for folder in (_configs_folder(path), CONFIGS) if folder is not None]
    tables = {folder: _official_paths(folder) for folder in folders}
    wanted = _from_configs_on(path)
    for folder, table in tables.items():
        ours = folder / table.get(wanted, "")
        if ours.is_file():
            logger.info("%s is an official config: using %s", path, ours)
            return ours
    own = CONFIGS.parent / path
    if wanted.startswith("configs/") and own.is_file():
        logger.info("%s is not below this folder: using %s", path, own)
        return own
    near = difflib.get_close_matches(wanted, sorted(_known(tables)), n=3)
    hint = f": did you mean {' or '.join(near)}?" if near else ""
    raise FileNotFoundError(f"config {path} does not exist{hint}")


def _known(tables: dict[Path, dict[str, str]]) -> set[str]:
    """Paths that would be found, from configs/ on."""
    files = {
        f"configs/{path.relative_to(folder).as_posix()}"
        for folder in tables
        for path in folder.rglob("*.yaml")
    }
    return files.union(*tables.values())


def _configs_folder(path: Path) -> Path | None:
    """The folder configs that `path` runs through, if it does."""
    return next((parent for parent in path.parents if parent.name == "configs"), None)


def _from_configs_on(path: Path) -> str:
    folder = _configs_folder(path)
    return path.as_posix() if folder is None else path.relative_to(folder.parent).as_posix()


def _official_paths(folder: Path) -> dict[str, str]:
    """The table in `folder`, empty where there is none."""
    file = folder / TABLE
    return json.loads(file.read_text(encoding="utf-8"))["paths"] if file.is_file() else {}
