"""What all preparation scripts share: options, what a download must hold, what to run next."""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol

from rankseg_m2f.annotations.folders import files_below, missing_files
from rankseg_m2f.files import datasets_root, read_lines, replacing

# Names in a message about many files.
_SHOWN = 5


class Prepare(Protocol):
    """What each script's function does."""

    def __call__(self, root: Path, *, jobs: int | None = None, any_size: bool = False) -> list[str]:
        """Prepare what has been downloaded; files that are there and sound are left alone.

        Args:
            root: folder of all datasets.
            jobs: processes; None means one per CPU. It does not change the files.
            any_size: accept other numbers of files than the release has.

        Returns:
            The names under which the datasets are registered that can be used now.

        Raises:
            FileNotFoundError: the download is missing or incomplete: says which files.
            ValueError: a broken file, an id out of range, or another number of files.
        """


def run_script(prepare: Prepare, doc: str, config: str, train: str = "train_net.py") -> None:
    """Call `prepare` with the options of the command line and say what to run next.

    Errors that the user can mend end in one line and exit code 1.

    Args:
        doc: of the script.
        config: below configs/, to train with.
        train: the script to train with.
    """
    default = datasets_root()
    options = _parser(doc, default).parse_args()
    program = Path(sys.argv[0]).stem
    try:
        names = prepare(**vars(options))
    except (ValueError, OSError) as error:
        sys.exit(f"{program}: {error}")
    except BrokenProcessPool:
        sys.exit(f"{program}: a process was killed, maybe for memory; try fewer with --jobs")
    except KeyboardInterrupt:
        sys.exit(f"{program}: stopped; the same command goes on from here")
    root = shlex.quote(str(options.root))
    prefix = "" if options.root == default else f"DETECTRON2_DATASETS={root} "
    print(f"Ready: {', '.join(names)}")
    print(f"Check: {prefix}python tools/check_dataset.py {' '.join(names)}")
    print(f"Train: {prefix}python {train} --config-file configs/{config}.yaml")


def _parser(doc: str, root: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", type=_folder, default=root, help=f"of all datasets (default {root})"
    )
    parser.add_argument("--jobs", type=_positive, help="processes (default: one per CPU)")
    parser.add_argument(
        "--any-size",
        action="store_true",
        help="accept other numbers of files than the release has: a part of it, or a copy of yours",
    )
    return parser


def _folder(text: str) -> Path:
    """Shells leave the ~ of --root=~/data as it is."""
    return Path(text).expanduser()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes")
    return int(text)


def need(base: Path, names: Iterable[str], source: str) -> None:
    """Raise FileNotFoundError unless all files and folders `names` are below `base`.

    Args:
        source: what to get, and where.
    """
    if missing := missing_files(str(base / name) for name in names):
        raise FileNotFoundError(f"{some(missing)}. Needed: {source}")


def check_count(found: int, official: int, what: str, any_size: bool) -> None:
    """Raise ValueError where the release has another number of files; only say so if `any_size`.

    Args:
        what: things and where they are, such as "images in images/training".
    """
    if found == official:
        return
    message = f"{found:,} {what}, the release has {official:,}"
    if not any_size:
        raise ValueError(f"{message}: unpack it again, or go on with --any-size")
    print(f"Note: {message}")


def files(folder: Path, ending: str) -> dict[str, Path]:
    """Files at any depth below a folder, by their names without `ending`, sorted.

    Raises:
        FileNotFoundError: no such folder, or no such file in it.
    """
    # Names with a dot in front are of file managers, or were never finished.
    found = {
        path.name.removesuffix(ending): path
        for path in (files_below(folder) if folder.is_dir() else ())
        if path.name.endswith(ending) and not path.name.startswith(".")
    }
    if not found:
        raise FileNotFoundError(f"{folder} has no files *{ending}; unpack the download there")
    return found


def paired(
    pictures: dict[str, Path], labels: dict[str, Path], folder: Path
) -> list[tuple[Path, Path]]:
    """Image and annotation of each name.

    Args:
        folder: of the annotations, for the message.

    Raises:
        FileNotFoundError: an image without annotation, or the other way round.
    """
    if alone := [str(pictures[name]) for name in pictures if name not in labels]:
        raise FileNotFoundError(f"{folder} has no annotations of {some(alone)}")
    if alone := [str(labels[name]) for name in labels if name not in pictures]:
        raise FileNotFoundError(f"no images of {some(alone)}")
    return [(pictures[name], labels[name]) for name in pictures]


def read_names(path: Path) -> list[str]:
    """The lines of a list of files or folders.

    Raises:
        ValueError: a name that leads out of its folder, naming the list.
    """
    return [inside(name, path) for name in read_lines(path)]


def inside(name: str, path: Path) -> str:
    """`name`, or a ValueError if it leads out of its folder, naming the file `path` it is from."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{path}: {name!r} leads out of its folder")
    return name


def some(names: list[str]) -> str:
    """The first names of a long list."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")


def link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy only where the file system cannot do that."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with replacing(target) as unfinished:
            shutil.copyfile(source, unfinished)
