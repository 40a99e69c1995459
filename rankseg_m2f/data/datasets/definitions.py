"""Datasets described in YAML files: those of ``DATASETS.DEFINITIONS``, and official.yaml here."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from rankseg_m2f.annotations.coco_categories import is_name
from rankseg_m2f.annotations.fields import shortened, shown
from rankseg_m2f.data.datasets.arguments import check_name, check_path
from rankseg_m2f.data.datasets.register import (
    register_coco_instances,
    register_coco_panoptic,
    register_semantic_folder,
)
from rankseg_m2f.data.datasets.video import (
    register_frames_folder,
    register_vspw,
    register_ytvis,
)
from rankseg_m2f.errors import MissingFileError, UserError
from rankseg_m2f.files import read_utf8

KINDS = {
    "coco_panoptic": register_coco_panoptic,
    "semantic_folder": register_semantic_folder,
    "coco_instances": register_coco_instances,
    "ytvis": register_ytvis,
    "vspw": register_vspw,
    "frames_folder": register_frames_folder,
}


@dataclass(frozen=True)
class Definition:
    """One entry of a file: a dataset, or all splits of one.

    Attributes:
        name: as registered; with {split} in it if there are splits.
        kind: of KINDS.
        arguments: of the kind's function. A path is a text, a list where the function takes
            several, or {first_of: paths}, of which the first that exists is taken.
        splits: our name of a split -> the release's, which replace {split} and {released} in the
            name and in arguments; None: the entry is one dataset.
        folder: that paths are relative to, itself relative to the file's.
        optional: paths that are left out where nothing is there.
    """

    name: str
    kind: str
    arguments: Mapping[str, Any]
    splits: Mapping[str, str] | None
    folder: str
    optional: Sequence[str]

    @property
    def names(self) -> list[str]:
        """Of its datasets, one per split."""
        return [_replaced(self.name, words) for words in self._words()]

    def datasets(self, folder: Path) -> Iterator[tuple[str, dict]]:
        """Name and arguments of each dataset, paths below the folder of the file."""
        for words in self._words():
            arguments = {}
            for key, value in self.arguments.items():
                if not is_path(key):
                    arguments[key] = _replaced(value, words)
                    continue
                place = _place(folder / self.folder, value, words)
                if key not in self.optional or any(path.exists() for path in paths_of(place)):
                    arguments[key] = place
            yield _replaced(self.name, words), arguments

    def _words(self) -> list[dict[str, str]]:
        if self.splits is None:
            return [{}]
        return [{"{split}": ours, "{released}": theirs} for ours, theirs in self.splits.items()]


def register_definitions(paths: Sequence[str]) -> list[str]:
    """Register the datasets that YAML files describe (``DATASETS.DEFINITIONS``).

    A file maps names to `kind`, one of KINDS, and arguments of its function, or the keys of
    Definition; paths are relative to the file, and a key without a value counts as not given.

    Returns:
        The names registered.

    Raises:
        MissingFileError: no such file, or a definition names one that does not exist.
        UserError: not YAML, or a bad definition, naming file and dataset.
    """
    names = []
    for path in map(Path, paths):
        for entry_name, entry in read_definitions(path).items():
            try:
                definition = parse_definition(entry_name, entry)
                for name, arguments in definition.datasets(path.parent):
                    KINDS[definition.kind](name, **arguments)
                    names.append(name)
            except UserError as error:
                raise type(error)(f"{path}: {error}") from error
    return names


def read_definitions(path: Path) -> dict:
    """The content of a file: names and what is written below them, not checked yet.

    Raises:
        MissingFileError: no such file.
        UserError: not YAML, or not a mapping.
    """
    if not path.exists():
        raise MissingFileError(f"DATASETS.DEFINITIONS: {path} does not exist")
    text = read_utf8(path)
    try:
        content = yaml.safe_load(text)
    except RecursionError as error:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        # YAML's messages run over several lines.
        raise UserError(
            f"{path} is not valid YAML: {shortened(' '.join(str(error).split()), 400)}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must map dataset names to definitions")
    return content


def parse_definition(name: str, entry: dict) -> Definition:
    """Check one entry of a file, without a look at the paths it names.

    Raises:
        UserError: names the dataset and the key.
    """
    if isinstance(name, str):
        check_name(name)
    if not is_name(name) or not isinstance(entry, dict):
        raise UserError(
            f"dataset {shown(name)}: a definition maps a name to kind and paths, not to "
            f"{shown(entry)}"
        )
    arguments = {key: value for key, value in entry.items() if value is not None}
    kind = arguments.pop("kind", None)
    # A list cannot be looked up in a dict.
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"dataset {name!r}: kind {shown(kind)} must be one of {', '.join(KINDS)}")
    splits = _splits(name, arguments.pop("splits", None))
    folder, optional = arguments.pop("folder", "."), arguments.pop("optional", [])
    signature = inspect.signature(KINDS[kind])
    try:
        # Unknown arguments first: a misspelt one would be called missing.
        signature.bind_partial(name, **arguments)
        signature.bind(name, **arguments)
    except TypeError as error:
        raise UserError(f"dataset {name!r} of kind {kind}: {shortened(str(error))}") from error
    if not isinstance(folder, str):
        raise UserError(f"dataset {name!r}: folder must be a path, not {shown(folder)}")
    may_lack = [
        key for key, p in signature.parameters.items() if is_path(key) and p.default is not p.empty
    ]
    if not isinstance(optional, list) or not all(key in may_lack for key in optional):
        raise UserError(
            f"dataset {name!r}: optional must be a list of paths that {kind} can do without "
            f"({', '.join(may_lack) or 'it has none'}), not {shown(optional)}"
        )
    for key in filter(is_path, arguments):
        takes_several = Sequence[str] in get_args(signature.parameters[key].annotation)
        _check_place(name, key, arguments[key], takes_several)
    return Definition(name, kind, arguments, splits, folder, optional)


def paths_of(value: str | list[str]) -> list[Path]:
    """The paths of an argument that is one, or a list of several."""
    return [Path(value)] if isinstance(value, str) else [*map(Path, value)]


def is_path(key: str) -> bool:
    """Whether an argument of this name is a path."""
    return key == "root" or key.endswith(("_root", "_json", "_file"))


def _splits(name: str, value: Any) -> Mapping[str, str] | None:
    is_list = isinstance(value, list) and all(map(is_name, value))
    splits = {split: split for split in value} if is_list else value
    if splits is not None and not (
        isinstance(splits, dict) and splits and all(map(is_name, [*splits, *splits.values()]))
    ):
        raise UserError(
            f"dataset {name!r}: splits must be a list of names, or map them to those of the "
            f"release, not {shown(value)}"
        )
    if ("{split}" in name) != (splits is not None):
        raise UserError(
            f"dataset {name!r}: splits need {{split}} in the name, and {{split}} in the name needs "
            "splits"
        )
    return splits


def _check_place(name: str, key: str, value: Any, takes_several: bool) -> None:
    is_choice = isinstance(value, dict) and [*value] == ["first_of"]
    places = value["first_of"] if is_choice else value
    if isinstance(places, list) and places and (is_choice or takes_several):
        sound = all(isinstance(place, str) for place in places)
    else:
        sound = isinstance(places, str) and not is_choice
    if not sound:
        several = ", a list of paths" if takes_several else ""
        raise UserError(
            f"dataset {name!r}: {key} must be a path{several} or {{first_of: paths}}, not "
            f"{shown(value)}"
        )
    for place in places if isinstance(places, list) else [places]:
        check_path(key, place, name)


def _place(folder: Path, value: Any, words: Mapping[str, str]) -> str | list[str]:
    """A path below `folder`, or several."""
    if isinstance(value, str):
        return str(folder / _replaced(value, words))
    if isinstance(value, list):
        return [_place(folder, place, words) for place in value]
    places = _place(folder, value["first_of"], words)
    return next((place for place in places if Path(place).exists()), places[0])


def _replaced(value: Any, words: Mapping[str, str]) -> Any:
    """A text with words in braces replaced; other values as they are."""
    if isinstance(value, str):
        for word, replacement in words.items():
            value = value.replace(word, replacement)
    return value
