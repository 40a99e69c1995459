"""Values of a json's entries as exporters write them: numbers as text, null, true for 1."""

import math
from typing import Any

# Characters of a user's text that a sentence quotes, and bytes that names of files may have.
QUOTED = 200
_LONGEST_PART, _LONGEST_NAME = 255, 1024

_FLAGS = {"": 0, "0": 0, "1": 1, "false": 0, "true": 1}


def is_int(value: Any) -> bool:
    """Whether a value is an integer, and no boolean."""
    # Python counts True as an integer.
    return isinstance(value, int) and not isinstance(value, bool)


def as_int(value: Any) -> int | None:
    """An integer, also written as 480.0 or "480"; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value) if "." in value else int(value)
        except ValueError:
            return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if is_int(value) else None


def as_number(value: Any) -> float | int | None:
    """A finite number; None for anything else."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    # Beyond a double's range it would overflow later.
    return value if is_int(value) and abs(value) < 1e300 else None


def as_id(value: Any) -> int | str | None:
    """An integer, also written as 7.0, or a text that is not empty; None for anything else.

    Text stays text: an id is what other entries say, letter by letter.
    """
    if isinstance(value, str):
        return value or None
    return as_int(value)


def as_flag(value: Any) -> int | None:
    """0 or 1 of 0, 1, false, true, null, "0", "1"; None for anything else."""
    if value is None:
        return 0
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    number = int(value) if isinstance(value, bool) else as_int(value)
    return number if number in (0, 1) else None


def name_fault(value: Any) -> str | None:
    """What follows "is" or "has" in a sentence on a value that cannot name a file; None: it can."""
    # A zero byte is in no name, and the system's answer to it is not about the file.
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return f"{shown(value)}, which is not a name"
    encoded = value.encode("utf-8", "surrogatepass")
    parts = encoded.replace(b"\\", b"/").split(b"/")
    if len(encoded) > _LONGEST_NAME or max(map(len, parts)) > _LONGEST_PART:
        return f"{shown(value, QUOTED)}, which is too long for the name of a file"
    return None


def shown(value: Any, longest: int = 40) -> str:
    """A value in a message, cut where it is long."""
    return shortened(repr(value), longest)


def shortened(text: str, longest: int = QUOTED) -> str:
    """A text in a message, cut where it is long."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
