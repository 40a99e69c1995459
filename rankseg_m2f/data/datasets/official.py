"""Known datasets in their official places under their official names: the table official.yaml.

Registering looks at no annotations: labels come from `data/categories`, and whether the files agree
is seen when a dataset is loaded. A name is registered whatever is there, so that loading it can say
what is missing and which script of datasets/ makes it.
"""

import logging
from functools import cache
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin

from rankseg_m2f.data.datasets.catalog import (
    DatasetSource,
    Origin,
    forget,
    origin_of,
    registering,
)
from rankseg_m2f.data.datasets.definitions import (
    KINDS,
    Definition,
    is_path,
    parse_definition,
    paths_of,
    read_definitions,
)
from rankseg_m2f.errors import MissingFileError

logger = logging.getLogger(__name__)
_TABLE = Path(__file__).with_name("official.yaml")


@cache
def official_definitions() -> tuple[tuple[Definition, str], ...]:
    """All entries of the table, and the script of datasets/ that prepares each."""
    entries = read_definitions(_TABLE)
    scripts = [entry.pop("script") for entry in entries.values()]
    definitions = [parse_definition(name, entry) for name, entry in entries.items()]
    return tuple(zip(definitions, scripts, strict=True))


def register_official(root: Path) -> list[str]:
    """Register all official datasets below `root`, whether or not they are there.

    Detectron2's own entries are replaced, a user's entry of the same name stays.

    Returns:
        The names registered.
    """
    names = []
    for definition, script in official_definitions():
        for name, arguments in definition.datasets(root):
            if not _is_free(name):
                logger.debug("%s is registered by the user: left as it is", name)
                continue
            _register(name, definition.kind, arguments, root, script)
            names.append(name)
    return names


def check_prepared(name: str) -> None:
    """Raise a MissingFileError if `name` is an official dataset that is not there; fast."""
    source = DatasetCatalog.data.get(name)
    if isinstance(source, DatasetSource):
        source.check()


def readiness(root: Path) -> dict[str, tuple[list[str], str]]:
    """Which official datasets below `root` can be used, of those that have a folder there.

    Returns:
        Names with {split} in them -> splits that are there, script of datasets/ for the others.
    """
    register_official(root)
    datasets = {}
    for definition, script in official_definitions():
        named_splits = zip(definition.names, definition.splits, strict=True)
        ready = [split for name, split in named_splits if _is_there(name)]
        has_folder = definition.folder != "." and (root / definition.folder).is_dir()
        if ready or has_folder:
            datasets[definition.name] = ready, script
    return datasets


def _is_there(name: str) -> bool:
    try:
        check_prepared(name)
    except MissingFileError:
        return False
    return True


def _register(name: str, kind: str, arguments: dict, root: Path, script: str) -> None:
    origin = Origin(
        by=register_official.__name__,
        root=root,
        gives_way=True,
        needs=tuple(p for key, v in arguments.items() if is_path(key) for p in paths_of(v)),
        advice=f"put the release below $DETECTRON2_DATASETS ({root}) as datasets/README.md says "
        f"and run python datasets/{script}",
    )
    if name in DatasetCatalog.list() and origin_of(name) is None:
        logger.debug("%s replaces Detectron2's entry", name)
        forget(name)
    with registering(origin):
        KINDS[kind](name, **arguments)
    DatasetCatalog.data[name].title = f"dataset {name!r} is incomplete: "


def _is_free(name: str) -> bool:
    """Whether nothing has this name but an entry of ours or of Detectron2's own."""
    load, origin = DatasetCatalog.data.get(name), origin_of(name)
    if load is None or (origin is not None and origin.by == register_official.__name__):
        return True
    metadata = MetadataCatalog.get(name)
    images = metadata.get("image_root") or metadata.get("image_dir") or ""
    # A user may have called Detectron2's functions too, but for other folders.
    by_detectron2 = load.__module__.startswith(builtin.__package__)
    return by_detectron2 and Path(images).is_relative_to(builtin._root)
