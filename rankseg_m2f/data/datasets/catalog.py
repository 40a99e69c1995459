"""Datasets in Detectron2's catalogs: where they come from, and which may replace which."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from rankseg_m2f.annotations.findings import AnnotationSource, Findings
from rankseg_m2f.annotations.folders import missing_files
from rankseg_m2f.data.datasets.arguments import check_name
from rankseg_m2f.errors import MissingFileError, UserError

_FILES = ("file_name", "sem_seg_file_name", "pan_seg_file_name")


@dataclass(frozen=True)
class Origin:
    """Where datasets come from that are found in a folder, not registered by the user.

    A dataset replaces an earlier one of its name if both were registered by the same function.

    Attributes:
        by: name of the function that registers them.
        root: the folder of all datasets; None where the dataset's own folder was given.
        gives_way: any other dataset of its name replaces it, too.
        needs: files and folders without which there is nothing to load.
        advice: how to prepare the dataset, said when files are missing or broken.
    """

    by: str
    root: Path | None = None
    gives_way: bool = False
    needs: tuple[Path, ...] = ()
    advice: str = ""


_current_origin: ContextVar[Origin | None] = ContextVar("origin", default=None)


class DatasetSource(AnnotationSource):
    """Loads the records of a registered dataset.

    Attributes:
        origin: None for datasets of the user.
    """

    origin: Origin | None = None

    def check(self) -> None:
        """Raise a MissingFileError unless all that the origin needs is there; fast."""
        if self.origin is None:
            return
        missing = [str(path) for path in self.origin.needs if not path.exists()]
        if missing:
            raise MissingFileError(
                f"dataset {self.name!r} lacks {', '.join(missing)}: {self.origin.advice}"
            )

    def read(self) -> tuple[list[dict], Findings]:
        """As AnnotationSource, but what is prepared by a script must be complete.

        Raises:
            MissingFileError: the dataset is not there or not prepared.
            UserError: annotations that cannot be read at all.
        """
        with self._with_advice():
            self.check()
            records, findings = super().read()
        if self.origin is not None and self.origin.needs:
            listed = [record[key] for record in records for key in _FILES if key in record]
            findings.errors += missing_files(listed)
        return records, findings

    def __call__(self) -> list[dict]:
        with self._with_advice():
            return super().__call__()

    @contextmanager
    def _with_advice(self) -> Iterator[None]:
        advice = "" if self.origin is None else self.origin.advice
        try:
            yield
        except UserError as error:
            if str(error).endswith(advice):
                raise
            raise type(error)(f"{error}; {advice}") from error


@contextmanager
def registering(origin: Origin) -> Iterator[None]:
    """Give datasets that are registered in the block this origin."""
    token = _current_origin.set(origin)
    try:
        yield
    finally:
        _current_origin.reset(token)


def origin_of(name: str) -> Origin | None:
    """The origin of a registered dataset; None for datasets of the user, or no such dataset."""
    return getattr(DatasetCatalog.data.get(name), "origin", None)


def add_dataset(name: str, source: DatasetSource, **metadata) -> None:
    """Put a dataset into the catalogs.

    Raises:
        UserError: a dataset of this name has other metadata, and is not replaced (see Origin).
    """
    check_name(name)
    source.origin = _current_origin.get()
    known, earlier = MetadataCatalog.get(name), origin_of(name)
    same_function = None not in (earlier, source.origin) and earlier.by == source.origin.by
    if earlier is not None and (earlier.gives_way or same_function):
        DatasetCatalog.remove(name)
        # Who holds the metadata of a dataset that is the same as before holds the right one.
        if vars(known) != {"name": name, **metadata}:
            MetadataCatalog.pop(name)
    elif name in DatasetCatalog.list():
        changed = [k for k, v in metadata.items() if known.get(k) != v]
        if not changed:
            return
        raise UserError(
            f"dataset {name!r} is registered already with other {', '.join(changed)}; "
            "choose another name"
        )
    DatasetCatalog.register(name, source)
    MetadataCatalog.get(name).set(name=name, **metadata)


def register_found(root: Path, finders: Mapping[str, Callable[[Path], list[str]]]) -> None:
    """Register what lies below the folder of all datasets, and forget what no longer does.

    Args:
        root: the folder.
        finders: pattern of folders below it -> function that registers one of these under an
            origin of its own name, and returns the names.
    """
    names = [
        name
        for pattern, register in finders.items()
        for folder in sorted(root.glob(pattern))
        for name in register(folder)
    ]
    functions = {register.__name__ for register in finders.values()}
    for name, source in list(DatasetCatalog.data.items()):
        origin = origin_of(name)
        if origin is None or origin.by not in functions:
            continue
        if name in names:
            source.origin = replace(origin, root=root)
        elif origin.root is not None:
            forget(name)


def other_roots(root: Path) -> list[str]:
    """Folders of all datasets, other than `root`, below which registered datasets lie."""
    origins = map(origin_of, DatasetCatalog.list())
    roots = {origin.root for origin in origins if origin is not None}
    return sorted(map(str, roots - {None, root}))


def forget(name: str) -> None:
    """Take a dataset out of the catalogs."""
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)
