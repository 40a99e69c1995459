"""Files of a dataset on the disk: which count, which photo has which label map."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from rankseg_m2f.annotations.fields import QUOTED, name_fault, shown
from rankseg_m2f.annotations.findings import Findings
from rankseg_m2f.errors import MissingFileError, UserError
from rankseg_m2f.files import read_lines

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
# Of label maps that are no use, so that what is said of them is why.
_LOSSY = (".jpg", ".jpeg")
# What systems leave behind, besides names that begin with a dot.
_LEFT_BEHIND = {"@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information"}


def files_below(folder: str | Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files at any depth, in the order of their paths; unlike `rglob`, through linked folders too.

    Hidden files and folders are passed over, as are those that systems leave behind, such as
    .ipynb_checkpoints, ._name.jpg and @eaDir.

    Args:
        folder: must exist.
        above: real paths of the folders above, which a link may lead back to: it is not followed.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        if not above:
            raise
        return  # Removed since the folder above was listed.
    for entry in ordered:
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            yield from files_below(entry.path, (*above, real))
        else:
            yield Path(entry.path)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the dataset's."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def missing_files(paths: Iterable[str]) -> list[str]:
    """One line per file that does not exist; folders are listed once, which is fast on servers."""
    folders: dict[Path, set[str]] = {}
    problems = []
    for path in map(Path, paths):
        if path.parent not in folders:
            # Unlike Path's, of a name that is too long this one is simply no folder.
            there = os.path.isdir(path.parent)
            folders[path.parent] = {p.name for p in path.parent.iterdir()} if there else set()
        if path.name not in folders[path.parent]:
            problems.append(f"{path} does not exist{backslash_advice(path)}")
    return problems


def backslash_advice(path: str | Path) -> str:
    """What to add to a message about a missing file whose name was written on Windows."""
    return "; its name has backslashes: write / between folders" if "\\" in str(path) else ""


@dataclass
class Pairs:
    """Photos and their label maps.

    Attributes:
        photos, maps: by relative path without ending.
        problems: of files that contradict each other, one line each.
        lossy: JPEG files where a label map is wanted, by relative path without ending.
    """

    photos: dict[Path, Path] = field(default_factory=dict)
    maps: dict[Path, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    lossy: dict[Path, Path] = field(default_factory=dict)

    def unpaired(self, stem: Path, labels: Path, images: str, frame: bool = False) -> str | None:
        """Why there is no image, or frame, with a label map of this name; None where there is."""
        if stem in self.photos and stem in self.maps:
            return None
        if stem not in self.photos:
            return (
                f"{self.maps[stem]} has no frame in {images}"
                if frame
                else f"{stem} has no image in {images}"
            )
        if stem in self.lossy and self.lossy[stem] != self.photos[stem]:
            return (
                f"{self.photos[stem]} has no label map: {self.lossy[stem]} is JPEG, which is lossy "
                "and blurs labels at their edges; save label maps as PNG"
            )
        return f"{self.photos[stem]} has no label map in {labels}"


def paired(
    images: Sequence[Path],
    labels: Path,
    image_ending: str | None = None,
    label_ending: str | None = None,
    *,
    deep: bool = True,
) -> Pairs:
    """Photos below `images` and label maps below `labels`, which may be one folder.

    Args:
        image_ending, label_ending: of names; None: any of IMAGE_SUFFIXES, LABEL_SUFFIXES.
        deep: also in folders below, as of images; folders of frames have none.
    """
    photos = by_stem(images, IMAGE_SUFFIXES if image_ending is None else (image_ending,), deep)
    endings = (*LABEL_SUFFIXES, *_LOSSY) if label_ending is None else (label_ending,)
    maps = by_stem([labels], endings, deep)
    found = Pairs()
    if label_ending is None:
        for stem, paths in list(maps.items()):
            lossy = [path for path in paths if path.suffix.lower() in _LOSSY]
            if lossy:
                found.lossy[stem] = lossy[0]
                maps[stem] = [path for path in paths if path not in lossy]
        maps = {stem: paths for stem, paths in maps.items() if paths}
    if any(folder.is_dir() and folder.samefile(labels) for folder in images if labels.is_dir()):
        _tell_apart(photos, maps)
    for stem, paths in photos.items():
        if paths == maps.get(stem):
            found.problems.append(
                f"{paths[0]} is a photo and a label map at once: put label maps into a folder of "
                "their own, or tell them apart by image_ending and label_ending"
            )
    for kind, files, chosen in (("photo", photos, found.photos), ("label map", maps, found.maps)):
        for stem, paths in files.items():
            chosen[stem] = paths[0]
            if len(paths) > 1:
                option = "image_ending" if kind == "photo" else "label_ending"
                found.problems.append(
                    f"{paths[1]} and {paths[0]} are two {kind}s of one name: remove one of them"
                    + (f", or set {option}" if deep else "")
                )
    return found


def by_stem(
    folders: Sequence[Path], endings: Sequence[str], deep: bool = True
) -> dict[Path, list[Path]]:
    """Files by relative path without ending, in whichever case it is; several may have one."""
    found: dict[Path, list[Path]] = {}
    # Otherwise .tif would be taken of a name that ends in _map.tif.
    endings = sorted((e.lower() for e in endings), key=len, reverse=True)
    for folder in folders:
        for path in files_below(folder) if deep else _files_in(folder):
            name = path.name.lower()
            ending = next((e for e in endings if name.endswith(e) and name != e), None)
            if ending is not None:
                stem = path.relative_to(folder).with_name(path.name[: -len(ending)])
                found.setdefault(stem, []).append(path)
    return found


def listed_names(path: str | Path, findings: Findings) -> list[str]:
    """Names in a list, relative and in one spelling: "v1" of "./v1/".

    Others, and a list of none, are errors.
    """
    lines = read_lines(path)
    if not lines:
        findings.errors.append(f"{path} lists no names")
    names = []
    for line in lines:
        fault = name_fault(line)
        windows = PureWindowsPath(line)
        if fault is None and (windows.root or windows.drive or ".." in windows.parts):
            fault = f"{shown(line, QUOTED)}, which leads out of the folder: names are relative"
        name = str(PurePosixPath(line))
        if fault is None and name == ".":
            fault = f"{shown(line)}, which is not a name"
        if fault is None:
            names.append(name)
        else:
            findings.errors.append(f"{path}: a line is {fault}")
    return names


def listed_once(path: str | Path, names: Sequence, findings: Findings) -> list:
    """Names of a list, each once; that some are there more than once is a remark."""
    once = list(dict.fromkeys(names))
    if len(once) < len(names):
        seen = set()
        # set.add returns None.
        twice = next(name for name in names if name in seen or seen.add(name))
        findings.remarks.append(
            f"{path} lists {len(names) - len(once)} names more than once, first {twice}: each is "
            "taken once"
        )
    return once


def existing_folder(folder: Path, name: str) -> Path:
    """A folder of dataset `name`, which must exist."""
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise UserError(f"dataset {name!r}: {folder} is a file, not a folder")
        raise MissingFileError(f"dataset {name!r}: folder {folder} does not exist")
    return folder


def listed_stem(line: str, known: Iterable[Path]) -> Path:
    """The name that a line of a list of names means: as it is, or without the ending it has."""
    forms = [Path(line)]
    if "\\" in line:
        forms.append(Path(*PureWindowsPath(line).parts))
    forms += [
        form.with_name(form.name[: -len(form.suffix)])
        for form in forms
        if form.suffix.lower() in {*IMAGE_SUFFIXES, *LABEL_SUFFIXES}
    ]
    return next((form for form in forms if form in known), forms[0])


def _files_in(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if not is_hidden(p.name) and not p.is_dir()]


def _tell_apart(photos: dict[Path, list[Path]], maps: dict[Path, list[Path]]) -> None:
    """Of files of one name in one folder, those that cannot be label maps are the photos."""
    for stem, paths in photos.items():
        certain = [path for path in paths if path not in maps.get(stem, [])]
        if certain:
            photos[stem] = certain
