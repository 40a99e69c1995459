"""What registration accepts, and the sentences that refuse the rest."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankseg_m2f.annotations.coco_categories import first_repeated, is_name, is_rgb
from rankseg_m2f.annotations.fields import QUOTED, is_int, name_fault, shown
from rankseg_m2f.errors import MissingFileError, UserError

_MAX_VALUE = 0xFFFF


def existing_file(path: str | Path, name: str) -> Path:
    """The path of a file of dataset `name`, which must exist."""
    # Unlike Path's, of a name that is too long this one is simply no file.
    if not os.path.isfile(path):
        raise MissingFileError(f"dataset {name!r}: {path} does not exist")
    return Path(path)


def check_classes(classes: Sequence[str], name: str) -> None:
    """Raise unless `classes` are unique, non-empty texts."""
    if not isinstance(classes, (list, tuple)) or not classes:
        raise UserError(f"dataset {name!r}: classes must be a list of names, not {shown(classes)}")
    for number, entry in enumerate(classes):
        if not is_name(entry):
            raise UserError(
                f"dataset {name!r}: classes[{number}] is {shown(entry)}, which is not text; quote "
                "names that YAML takes for something else, such as yes, no, on, off or numbers"
            )
    if (twice := first_repeated(classes)) is not None:
        raise UserError(f"dataset {name!r}: classes names {shown(twice, QUOTED)} more than once")


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
        raise UserError(f"dataset {name!r}: ignore_label={shown(ignore_label)} is not an integer")
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


def check_values(ignore_label: int, num_labels: int, name: str, label_offset: int) -> None:
    """Raise unless labels and offset fit label maps, and `ignore_label` is not a label's value."""
    check_count("label_offset", label_offset, name)
    if label_offset + num_labels - 1 > _MAX_VALUE:
        raise UserError(
            f"dataset {name!r}: label_offset={shown(label_offset)} puts the values of its "
            f"{num_labels} labels beyond {_MAX_VALUE}, the largest of a 16-bit label map"
        )
    check_ignore_label(ignore_label, num_labels, name, label_offset)


def check_count(key: str, value: Any, name: str) -> None:
    """Raise unless argument `key` is an integer, 0 or more."""
    if not is_int(value) or value < 0:
        raise UserError(f"dataset {name!r}: {key}={shown(value)} must be an integer, 0 or more")


def check_endings(name: str, **endings: Any) -> None:
    """Raise unless endings of file names are text, or None."""
    for key, ending in endings.items():
        if ending is not None and not is_name(ending):
            raise UserError(
                f"dataset {name!r}: {key}={shown(ending)} is not an ending of file names, such as "
                "'_map.png'"
            )


def check_flag(key: str, value: Any, name: str) -> None:
    """Raise unless argument `key` is a boolean."""
    if not isinstance(value, bool):
        raise UserError(f"dataset {name!r}: {key}={shown(value)} must be true or false")


def check_path(key: str, value: Any, name: str) -> None:
    """Raise unless argument `key` can be the name of a file or folder."""
    if fault := name_fault(value):
        raise UserError(f"dataset {name!r}: {key} is {fault}")


def check_name(name: Any) -> None:
    """Raise unless a dataset's name is a text that names of result files can end with."""
    if not is_name(name) or len(name) > QUOTED:
        raise UserError(
            f"a dataset is named {shown(name, QUOTED)}: give it a name, of {QUOTED} characters at "
            "most"
        )
