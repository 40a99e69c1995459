"""Datasets described in YAML files (``DATASETS.DEFINITIONS``)."""

import inspect
from collections.abc import Sequence
from pathlib import Path

import yaml

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


def register_definitions(paths: Sequence[str]) -> list[str]:
    """Register the datasets that YAML files describe (``DATASETS.DEFINITIONS``).

    A file maps names to `kind`, one of KINDS, and arguments of its function; paths are relative to
    the file, and an argument without a value counts as not given.

    Returns:
        The names registered.

    Raises:
        MissingFileError: no such file, or a definition names one that does not exist.
        UserError: not YAML, or a bad definition, naming file and dataset.
    """
    names = []
    for path in map(Path, paths):
        for name, definition in _read_definitions(path).items():
            try:
                _register_definition(path.parent, name, definition)
            except UserError as error:
                raise type(error)(f"{path}: {error}") from error
            names.append(name)
    return names


def _read_definitions(path: Path) -> dict:
    if not path.exists():
        raise MissingFileError(f"DATASETS.DEFINITIONS: {path} does not exist")
    text = read_utf8(path)
    try:
        content = yaml.safe_load(text)
    except RecursionError as error:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        # YAML's messages run over several lines.
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must map dataset names to definitions")
    return content


def _register_definition(folder: Path, name: str, definition: dict) -> None:
    if not isinstance(name, str) or not isinstance(definition, dict):
        raise UserError(
            f"dataset {name!r}: a definition maps a name to kind and paths, not to {definition!r}"
        )
    arguments = {key: value for key, value in definition.items() if value is not None}
    kind = arguments.pop("kind", None)
    # A list cannot be looked up in a dict.
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"dataset {name!r}: kind {kind!r} must be one of {', '.join(KINDS)}")
    try:
        signature = inspect.signature(KINDS[kind])
        # Unknown arguments first: a misspelt one would be called missing.
        signature.bind_partial(name, **arguments)
        signature.bind(name, **arguments)
    except TypeError as error:
        raise UserError(f"dataset {name!r} of kind {kind}: {error}") from error
    for key, value in arguments.items():
        if key == "root" or key.endswith(("_root", "_json", "_file")):
            if not isinstance(value, str):
                raise UserError(f"dataset {name!r}: {key} must be a path, not {value!r}")
            arguments[key] = str(folder / value)
    KINDS[kind](name, **arguments)
