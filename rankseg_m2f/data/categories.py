"""The labels of known datasets: tables beside this file, in the order of the label maps."""

import json
from functools import cache
from pathlib import Path

from rankseg_m2f.errors import UserError

_FOLDER = Path(__file__).parent / "categories"


@cache
def read_categories(table: str) -> tuple[dict, ...]:
    """K categories in the order of contiguous labels.

    Args:
        table: name of a file of the folder, such as "ade20k_150".

    Returns:
        Dicts of `id` (the release's own), `name`, and, where the release says so, `isthing`
        (0 or 1) and `color` (RGB).

    Raises:
        UserError: no such table.
    """
    path = _FOLDER / f"{table}.json"
    if not path.is_file():
        raise UserError(f"no table of categories {table!r}: there are {', '.join(tables())}")
    return tuple(json.loads(path.read_text(encoding="utf-8"))["categories"])


def tables() -> list[str]:
    """Names of all tables."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))
