"""What registration accepts, and the sentences that refuse the rest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankseg_m2f.annotations.coco_categories import first_repeated, is_name, is_rgb
from rankseg_m2f.annotations.fields import is_int
from rankseg_m2f.errors import MissingFileError, UserError


def existing_file(path: str | Path, name: str) -> Path:
    """The path of a file of dataset `name`, which must exist."""
    if not Path(path).is_file():
        raise MissingFileError(f"dataset {name!r}: {path} does not exist")
    return Path(path)


def check_classes(classes: Sequence[str], name: str) -> None:
    """Raise unless `classes` are unique, non-empty texts."""
    if not isinstance(classes, (list, tuple)) or not classes:
        raise UserError(f"dataset {name!r}: classes must be a list of names, not {classes!r}")
    for number, entry in enumerate(classes):
        if not is_name(entry):
            raise UserError(
                f"dataset {name!r}: classes[{number}] is {entry!r}, which is not text; quote names "
                "that YAML takes for something else, such as yes, no, on, off or numbers"
            )
    if (twice := first_repeated(classes)) is not None:
        raise UserError(f"dataset {name!r}: classes names {twice!r} more than once")


def check_colours(colours: Sequence[Sequence[int]], count: int, name: str) -> None:
    """Raise unless `colours` are `count` RGB triples."""
    if not isinstance(colours, (list, tuple)) or not all(map(is_rgb, colours)):
        raise UserError(f"dataset {name!r}: colours must be a list of RGB triples, 0 to 255")
    if len(colours) != count:
        raise UserError(f"dataset {name!r} has {count} classes but {len(colours)} colours")


def check_ignore_label(
    ignore_label: int, num_labels: int, name: str, label_offset: int = 0
) -> None:
    """Raise unless `ignore_label` is an integer and not the value of a label in the files."""
    if not is_int(ignore_label):
        raise UserError(f"dataset {name!r}: ignore_label={ignore_label!r} is not an integer")
    if label_offset <= ignore_label < label_offset + num_labels:
        values = ""
        if label_offset:
            values = (
                f", whose values are {label_offset} to {label_offset + num_labels - 1} with "
                f"label_offset={label_offset}"
            )
        raise UserError(
            f"dataset {name!r}: ignore_label={ignore_label} is one of its {num_labels} labels"
            f"{values}; set one that is not, such as 65535 with 16-bit label maps"
        )


def check_count(key: str, value: Any, name: str) -> None:
    """Raise unless argument `key` is an integer, 0 or more."""
    if not is_int(value) or value < 0:
        raise UserError(f"dataset {name!r}: {key}={value!r} must be an integer, 0 or more")


def check_endings(name: str, *endings: Any) -> None:
    """Raise unless endings of file names are text, or None."""
    for ending in endings:
        if ending is not None and not is_name(ending):
            raise UserError(
                f"dataset {name!r}: {ending!r} is not an ending of file names, such as '_map.png'"
            )


def check_path(key: str, value: Any, name: str) -> None:
    """Raise unless argument `key` is text."""
    if not is_name(value):
        raise UserError(f"dataset {name!r}: {key}={value!r} must be text")
