"""What the two scripts that make scenes share: settings, the state of a folder.

A folder is finished when it holds scenes.json, which is written last. While scenes are being made
it holds a marker, so that a broken run starts again but a folder of others is never touched.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from preparing.coco import write_json

from rankseg_m2f.errors import ExistingFileError, UserError, one_line_errors

FINISHED, MARKER, SHEET = "scenes.json", ".making_scenes", "contact_sheet.png"
LIMITS = {
    "train": (1, 999_999),
    "val": (1, 999_999),
    "frames": (1, 99_999),
    "num_labels": (8, 1000),
    "size": (32, 2048),
    "seed": (0, 2**31),
    "ambiguity": (0, 1),
    "jobs": (1, 1024),
}


def run_script(make: Callable[..., Path], parser: argparse.ArgumentParser, kind: str) -> None:
    """Call `make` with the arguments of the command line; errors of the user's end in one line."""
    with one_line_errors(parser.prog.removesuffix(".py")):
        root = make(**vars(parser.parse_args()))
    print(f"{kind} are in {root}; see {root / SHEET}")


def scene_parser(
    doc: str, *, root: Path, train: int, val: int, size: int, unit: str
) -> argparse.ArgumentParser:
    """The options both scripts have, with their defaults; `unit` is what they count."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=root, help="folder to write")
    parser.add_argument("--train", type=int, default=train, help=f"training {unit}")
    parser.add_argument("--val", type=int, default=val, help=f"validation {unit}")
    parser.add_argument("--num-labels", type=int, default=40, help="K, 8 to 1000")
    parser.add_argument("--size", type=int, default=size, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, help="processes (default: one per CPU)")
    parser.add_argument(
        "--ambiguity", type=float, default=0.5, help="share of labels that look alike, 0 to 1"
    )
    parser.add_argument("--force", action="store_true", help="replace other scenes")
    return parser


def prepare(
    root: Path, settings: dict, jobs: int | None, folders: Iterable[str], force: bool
) -> bool:
    """Check the settings and make the folder ready for new scenes.

    Args:
        jobs: number of processes; None means one per CPU.
        folders: subfolders that belong to the scenes; they are emptied.
        force: replace scenes of other settings.

    Returns:
        False when the scenes are there already with these settings.

    Raises:
        UserError: a setting out of its range.
        ExistingFileError: the root holds scenes of other settings, or files that are not scenes.
    """
    for name, value in {**settings, "jobs": 1 if jobs is None else jobs}.items():
        low, high = LIMITS.get(name, (value, value))
        if not low <= value <= high:
            raise UserError(f"{name}={value} is outside {low} to {high}")
    if _is_finished(root, settings, force):
        return False
    _clear(root, folders)
    return True


def finish(root: Path, content: dict) -> None:
    """Write scenes.json and take the marker away."""
    write_json(root / FINISHED, content)
    (root / MARKER).unlink()


def _is_finished(root: Path, settings: dict, force: bool) -> bool:
    """Whether there is nothing to do; an error where something of value would be lost."""
    path = root / FINISHED
    if not path.is_file():
        if root.exists() and any(root.iterdir()) and not (root / MARKER).is_file():
            raise ExistingFileError(
                f"{root} is not empty and holds no scenes; choose another root or empty it"
            )
        return False
    if force:
        return False
    try:
        there = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ExistingFileError(
            f"{path} cannot be read; make the scenes again with --force"
        ) from error
    if there != settings:
        changed = [
            f"{key} {there.get(key)} instead of {value}"
            for key, value in settings.items()
            if there.get(key) != value
        ]
        raise ExistingFileError(
            f"{root} holds scenes of other settings ({', '.join(changed)}); "
            "use --force to replace them or choose another root"
        )
    return True


def _clear(root: Path, folders: Iterable[str]) -> None:
    """Empty folders, marked as unfinished. Files that are not ours stay."""
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).touch()
    # scenes.json first: without it nobody takes the rest for complete.
    for name in (FINISHED, SHEET):
        (root / name).unlink(missing_ok=True)
    for name in folders:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
