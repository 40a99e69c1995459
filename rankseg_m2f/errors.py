"""Whose mistake an error is: the user's ends a program in one sentence, ours in a traceback."""

import argparse
import atexit
import io
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# Set, it shows the traceback of a user's mistake too; processes we start inherit it.
DEBUG = "RANKSEG_M2F_DEBUG"
BUG = (
    "This is a bug of rankseg_m2f, not a mistake of yours: please report it with the lines above "
    "and the output of `python -m rankseg_m2f.doctor` (or `make doctor`)."
)
# PyTorch writes the traceback of a loader's process into the text of the error it raises here.
_WORKER = re.compile(r"Caught (?P<kind>\w+) in .+? process \d+\.\n")
# Text of an OSError that names a file; of another process no more than the text arrives.
_OF_A_FILE = re.compile(r"\[Errno -?\d+\] (?P<reason>[^\n]+?): (?P<file>'[^\n]+'|\"[^\n]+\")")
# What PyTorch's allocator of the CPU raises is a plain RuntimeError.
_NO_MEMORY = re.compile(r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)")
_LOST_WORKER = re.compile(r"DataLoader worker \(pid[^)]*\) .+", re.DOTALL)


class UserError(ValueError):
    """Something the user can fix: a file, a config key, a flag.

    Its sentence names the file, the record or key, and the remedy. Raised only where we check.
    """


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that must exist and does not."""


class ExistingFileError(UserError, FileExistsError):
    """A file or folder that would be replaced, and never is."""


class MissingPackageError(UserError, ImportError):
    """An optional library that is needed and not installed."""


class ProcessEndedError(Exception):
    """Carries the sentence of a user's mistake from a process to the one that started it."""


def require_one_of(key: str, value: object, choices: Iterable[object]) -> None:
    """Check a setting against all there are.

    Raises:
        UserError: `value` is not among `choices`; names `key`.
    """
    choices = list(choices)
    if value not in choices:
        known = ", ".join(map(str, choices))
        raise UserError(f"{key}={value!r} must be one of {known}")


def user_sentence(error: BaseException) -> str | None:
    """What to tell a user on one line; None where the error is a bug.

    The user's are `UserError`, errors of the system that name a file, and a machine without
    memory; those of a DataLoader's processes and of processes we started, too.
    """
    text, kind = _original(error)
    if isinstance(error, UserError):
        return _one_line(text)
    if isinstance(error, OSError):
        if error.filename is not None:
            return _one_line(f"{error.filename}: {error.strerror or error}")
        if kind and (match := _OF_A_FILE.fullmatch(text)):
            return _one_line(f"{match['file'][1:-1]}: {match['reason']}")
    if _is_no_memory(error, kind or type(error).__name__):
        return _one_line(
            f"out of memory ({text.splitlines()[0] if text else 'no memory left'}): lower "
            "SOLVER.IMS_PER_BATCH (with SOLVER.ACCUMULATION_STEPS the effective batch stays) or "
            "the sizes under INPUT"
        )
    if match := _LOST_WORKER.match(text):
        return _one_line(
            f"{match[0].splitlines()[0]}: most often memory or /dev/shm is full; lower "
            "DATALOADER.NUM_WORKERS"
        )
    # The last line of the traceback that torch.multiprocessing shows of a process.
    name = f"{__name__}.{ProcessEndedError.__name__}: "
    return text.rpartition(name)[2].strip() if name in text else None


def print_any_text() -> None:
    """From now on escape what standard output and error cannot encode, such as κ in some locales.

    Names of files and labels are the user's; no character of theirs should end a program.
    """
    for stream in (sys.stdout, sys.stderr):
        # Notebooks have streams of other kinds.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turn a user's mistake in the block into the end of `program`.

    A bug keeps its traceback, and `BUG` is said below it.

    Raises:
        SystemExit: with the program's name and the error's sentence; the error is its cause.
    """
    print_any_text()
    try:
        yield
    except Exception as error:
        said = user_sentence(error)
        if said is None:
            _say_below(error, BUG)
            raise
        _show_if_debugging(error)
        raise SystemExit(f"{program}: {said}") from error


@contextmanager
def errors_for_parent() -> Iterator[None]:
    """As `one_line_errors`, in a process whose parent says the sentence.

    Raises:
        ProcessEndedError: with the sentence.
    """
    try:
        yield
    except Exception as error:
        said = user_sentence(error)
        if said is None:
            raise
        _show_if_debugging(error)
        raise ProcessEndedError(said) from None


def debugging() -> bool:
    """Whether --debug or its environment variable is set."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def add_debug_flag(parser: argparse.ArgumentParser) -> None:
    """Give a program --debug, which takes effect as it is parsed."""
    parser.add_argument(
        "--debug",
        action=_SetDebug,
        nargs=0,
        default=False,
        help=f"show the traceback of a mistake in files or settings too (as {DEBUG}=1)",
    )


class _SetDebug(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        os.environ[DEBUG] = "1"
        setattr(namespace, self.dest, True)


def _original(error: BaseException) -> tuple[str, str]:
    """The text of an error, and the name of its class if it was raised in a loader's process."""
    # Python would put the text of a KeyError in quotes.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    caught = _WORKER.match(text)
    if caught is None:
        return text, ""
    # Behind the last frame of the traceback stands "module.Class: text", perhaps of many lines.
    last = re.compile(rf"^(?:[\w.<>]+\.)?{caught['kind']}: ", re.MULTILINE)
    found = list(last.finditer(text, text.rfind("Traceback (most recent call last):")))
    return (text[found[0].end() :].strip() if found else text), caught["kind"]


def _is_no_memory(error: BaseException, kind: str) -> bool:
    # torch.OutOfMemoryError by name: nothing here needs torch.
    named = kind in ("OutOfMemoryError", "MemoryError", "_ArrayMemoryError")
    return named or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text.strip())


def _show_if_debugging(error: Exception) -> None:
    if debugging():
        traceback.print_exception(error)


def _say_below(error: Exception, text: str) -> None:
    """Have `text` follow the traceback, once."""
    if text in getattr(error, "__notes__", ()):
        return
    if sys.version_info >= (3, 11):
        error.add_note(text)
    else:
        error.__notes__ = [text]
        atexit.register(sys.stderr.write, f"{text}\n")
