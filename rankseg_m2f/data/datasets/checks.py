"""What registration accepts, and the sentences that refuse the rest."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

# A message of more lines helps nobody.
_MAX_PROBLEMS = 10


def read_coco(path: Path, *lists: str, **entries: Sequence[str]) -> dict:
    """A COCO json.

    Args:
        lists: keys under which it must have lists.
        entries: the same, with the keys that each entry of the list must have.

    Raises:
        ValueError: no json, or such a key is missing, naming the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no json ({error})") from error
    for key in (*lists, *entries):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{path} is no COCO json: it has no list of {key!r}")
    for key, wanted in entries.items():
        for number, entry in enumerate(content[key]):
            lacks = [k for k in wanted if k not in entry] if isinstance(entry, dict) else wanted
            if lacks:
                raise ValueError(f"{path}: number {number} of {key!r} lacks {lacks[0]!r}")
    return content


def read_lines(path: Path) -> list[str]:
    """Lines of a text, without those that are empty."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def entry_of(mapping: Any, key: str, where: str) -> Any:
    """`mapping[key]`, or an error that says where it is missing."""
    if not isinstance(mapping, dict) or key not in mapping:
        raise ValueError(f"{where} lacks {key!r}")
    return mapping[key]


def existing_file(path: str | Path, name: str) -> Path:
    """The path of a file of dataset `name`, which must exist."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"dataset {name!r}: {path} does not exist")
    return Path(path)


def coco_categories(path: Path, name: str) -> list[dict]:
    """The categories of a COCO json, each with an id of its own and a name."""
    categories = read_coco(path, "categories")["categories"]
    if not categories:
        raise ValueError(f"dataset {name!r}: {path} lists no categories")
    for number, category in enumerate(categories):
        where = f"dataset {name!r}: {path}: category number {number}"
        if not is_int(entry_of(category, "id", where)):
            raise ValueError(f"{where} has the id {category['id']!r}, which is no integer")
        if not _is_name(entry_of(category, "name", where)):
            raise ValueError(f"{where} has the name {category['name']!r}, which is no text")
        if "color" in category and not _is_rgb(category["color"]):
            raise ValueError(f"{where} has the color {category['color']!r}, which is no RGB triple")
    if (twice := _first_repeated([c["id"] for c in categories])) is not None:
        raise ValueError(f"dataset {name!r}: {path} has several categories of id {twice}")
    return categories


def check_agreement(path: Path, categories: Sequence[dict], names: dict[int, str]) -> None:
    """Raise unless a json's categories are among the dataset's, under the same ids.

    Releases spell some names differently; what none may do is to have the name of another id.

    Args:
        categories: of the json.
        names: the dataset's, by id.
    """
    id_of = {_spelt(name): number for number, name in names.items()}
    for number, category in enumerate(categories):
        where = f"{path}: category number {number}"
        listed, name = entry_of(category, "id", where), str(entry_of(category, "name", where))
        if listed not in names:
            raise ValueError(
                f"{path}: category {listed} ({name}) is none of the {len(names)} that this "
                "dataset counts"
            )
        if name != names[listed] and id_of.get(_spelt(name), listed) != listed:
            raise ValueError(
                f"{path}: category {listed} is {name!r}, but in this dataset {names[listed]!r} "
                f"has that id and {name!r} is {id_of[_spelt(name)]}"
            )


def _spelt(name: str) -> str:
    """A name without what releases spell differently."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def check_classes(classes: Sequence[str], name: str) -> None:
    """Raise unless `classes` are unique, non-empty texts."""
    if not isinstance(classes, (list, tuple)) or not classes:
        raise ValueError(f"dataset {name!r}: classes must be a list of names, not {classes!r}")
    for number, entry in enumerate(classes):
        if not _is_name(entry):
            raise ValueError(
                f"dataset {name!r}: classes[{number}] is {entry!r}, which is no text; quote names "
                "that YAML takes for something else, such as yes, no, on, off or numbers"
            )
    if (twice := _first_repeated(classes)) is not None:
        raise ValueError(f"dataset {name!r}: classes names {twice!r} more than once")


def check_colours(colours: Sequence[Sequence[int]], count: int, name: str) -> None:
    """Raise unless `colours` are `count` RGB triples."""
    if not isinstance(colours, (list, tuple)) or not all(map(_is_rgb, colours)):
        raise ValueError(f"dataset {name!r}: colours must be a list of RGB triples, 0 to 255")
    if len(colours) != count:
        raise ValueError(f"dataset {name!r} has {count} classes but {len(colours)} colours")


def check_ignore_label(ignore_label: int, num_labels: int, name: str) -> None:
    """Raise unless `ignore_label` is an integer outside [0, num_labels)."""
    if not is_int(ignore_label):
        raise ValueError(f"dataset {name!r}: ignore_label={ignore_label!r} is no integer")
    if 0 <= ignore_label < num_labels:
        raise ValueError(
            f"dataset {name!r}: ignore_label={ignore_label} is one of its {num_labels} labels; "
            "set one that is not, such as 65535 with 16-bit label maps"
        )


def check_count(key: str, value: Any, name: str) -> None:
    """Raise unless argument `key` is an integer, 0 or more."""
    if not is_int(value) or value < 0:
        raise ValueError(f"dataset {name!r}: {key}={value!r} must be an integer, 0 or more")


def is_int(value: Any) -> bool:
    """Whether a value is an integer, and no boolean."""
    # Python counts True as an integer.
    return isinstance(value, int) and not isinstance(value, bool)


def files_below(folder: str | Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files at any depth, in the order of their paths; unlike `rglob`, through linked folders too.

    Args:
        folder: must exist.
        above: real paths of the folders above, which a link may lead back to: it is not followed.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir():
            yield from files_below(entry.path, (*above, real))
        else:
            yield Path(entry.path)


def missing_files(paths: Iterable[str]) -> list[str]:
    """One line per file that does not exist; folders are listed once, which is fast on servers."""
    folders: dict[Path, set[str]] = {}
    problems = []
    for path in map(Path, paths):
        if path.parent not in folders:
            there = path.parent.is_dir()
            folders[path.parent] = {p.name for p in path.parent.iterdir()} if there else set()
        if path.name not in folders[path.parent]:
            problems.append(f"{path} does not exist")
    return problems


def raise_incomplete(name: str, problems: list[str]) -> None:
    """Raise a ValueError of the first problems and the number of the rest, if there are any."""
    if problems:
        rest = len(problems) - _MAX_PROBLEMS
        raise ValueError(
            f"dataset {name!r} is incomplete: "
            + "; ".join(problems[:_MAX_PROBLEMS])
            + (f"; and {rest} more" if rest > 0 else "")
        )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_rgb(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(is_int(x) and 0 <= x <= 255 for x in value)
    )


def _first_repeated(values: Sequence) -> Any:
    seen = set()
    # set.add returns None.
    return next((v for v in values if v in seen or seen.add(v)), None)
