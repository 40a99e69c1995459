"""Categories of a json: each with an id of its own and a name, and those of two files compared."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankseg_m2f.annotations.fields import as_flag, as_int, shown
from rankseg_m2f.errors import UserError


def sound_categories(path: Path, entries: Sequence[Any]) -> list[dict]:
    """Categories with an integer `id`, a `name` and, where there is one, an RGB `color`.

    Of several categories of one name, all but the first are named with their id, "cup (id 3)", so
    that results tell them apart.

    Raises:
        UserError: one lacks something, or two have one id; names the file.
    """
    if not entries:
        raise UserError(f"{path} lists no categories")
    found = []
    for number, entry in enumerate(entries):
        where = f"{path}: category number {number}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is {shown(entry)}, not an object with 'id' and 'name'")
        for key in ("id", "name"):
            if key not in entry:
                raise UserError(f"{where} lacks {key!r}")
        number = None if isinstance(entry["id"], str) else as_int(entry["id"])
        if number is None:
            raise UserError(f"{where} has the id {shown(entry['id'])}, which is not an integer")
        if not is_name(entry["name"]):
            raise UserError(f"{where} has the name {shown(entry['name'])}, which is not a text")
        if entry.get("color") is not None and not is_rgb(entry["color"]):
            raise UserError(f"{where} has the color {entry['color']!r}, which is not an RGB triple")
        category = {key: x for key, x in entry.items() if x is not None} | {"id": number}
        if "isthing" in category and (thing := as_flag(entry["isthing"])) is None:
            raise UserError(f"{where} has isthing {shown(entry['isthing'])}, not 0 or 1")
        elif "isthing" in category:
            category["isthing"] = thing
        found.append(category)
    if (twice := first_repeated([c["id"] for c in found])) is not None:
        raise UserError(f"{path} has several categories of id {twice}")
    return _told_apart(found)


def namesakes(categories: Sequence[Mapping]) -> list[str]:
    """Remarks on categories of `sound_categories` that had the name of another one."""
    ids: dict[str, list[int]] = {}
    for category in categories:
        ids.setdefault(category.get("shared_name", category["name"]), []).append(category["id"])
    return [
        f"{len(numbers)} categories are named {name!r}, ids {', '.join(map(str, numbers))}: "
        "results tell them apart by id"
        for name, numbers in ids.items()
        if len(numbers) > 1
    ]


def contiguous_labels(
    path: Path,
    categories: Sequence[Mapping],
    names: Mapping[int, str],
    labels: Mapping[int, int],
    by_name: bool = False,
) -> dict[int, int]:
    """Contiguous label of each of a json's categories, by the json's ids.

    Releases spell some names differently; what none may do is to have the name of another id.

    Args:
        categories: of the json.
        names: the dataset's, by category id; empty: not known, and not compared.
        labels: contiguous, by the same ids.
        by_name: the json may number the dataset's categories in a way of its own, if names alone
            tell which is which.

    Raises:
        UserError: a category that is not the dataset's, or is another one there.
    """
    if not names:
        return {c["id"]: labels[c["id"]] for c in categories if c["id"] in labels}
    id_of = {_spelt(name): number for number, name in names.items()}
    wrong = [reason for c in categories if (reason := _disagreement(path, c, names, id_of))]
    if not wrong:
        return {c["id"]: labels[c["id"]] for c in categories}
    spelt = [_spelt(c["name"]) for c in categories]
    if by_name and len({*spelt}) == len(spelt) and {*spelt} <= {*id_of}:
        return {c["id"]: labels[id_of[name]] for c, name in zip(categories, spelt, strict=True)}
    raise UserError(wrong[0])


def is_name(value: Any) -> bool:
    """Whether a value is a text that says something."""
    return isinstance(value, str) and bool(value.strip())


def is_rgb(value: Any) -> bool:
    """Whether a value is three integers from 0 to 255."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(type(x) is int and 0 <= x <= 255 for x in value)
    )


def first_repeated(values: Sequence) -> Any:
    """The first value that an earlier one equals; None if all differ."""
    seen = set()
    # set.add returns None.
    return next((v for v in values if v in seen or seen.add(v)), None)


def _told_apart(categories: list[dict]) -> list[dict]:
    count = Counter(c["name"] for c in categories)
    seen: set[str] = set()
    for category in categories:
        name = category["name"]
        if count[name] > 1:
            category["shared_name"] = name
        if name in seen:
            category["name"] = f"{name} (id {category['id']})"
        seen.add(name)
    return categories


def _disagreement(
    path: Path, category: Mapping, names: Mapping[int, str], id_of: Mapping[str, int]
) -> str | None:
    number, name = category["id"], category["name"]
    if number not in names:
        return (
            f"{path}: category {number} ({name}) is not among the {len(names)} that this dataset "
            "counts"
        )
    if name != names[number] and id_of.get(_spelt(name), number) != number:
        return (
            f"{path}: category {number} is {name!r}, but in this dataset {names[number]!r} has "
            f"that id and {name!r} is {id_of[_spelt(name)]}"
        )
    return None


def _spelt(name: str) -> str:
    """A name without what releases spell differently; where nothing is left, as it is."""
    return re.sub(r"[\W_]", "", name.lower()) or name
