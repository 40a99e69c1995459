"""What a user can mend ends a program in one sentence, not in a traceback."""

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user can fix: a file, a config key, a flag.

    Its sentence names the file, the record or key, and the remedy. Raised only where we check.
    """


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that must exist and does not."""


# Of files and configs, ours as Detectron2's; what else is raised is a fault of the program.
USER_ERRORS = (ValueError, KeyError, AssertionError, OSError)
# PyTorch's loader puts the traceback of its process into the text; "module.Class: text" is last.
_WORKER = re.compile(r"Caught \w+ in DataLoader worker process .*\n[\w.]+: (?P<said>.+)", re.DOTALL)


def sentence(error: Exception) -> str:
    """What an error says; Python would put the text of a KeyError in quotes."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    worker = _WORKER.fullmatch(text)
    return worker["said"].strip() if worker else text


def print_any_text() -> None:
    """From now on escape what standard output and error cannot encode, such as κ in some locales.

    Names of files and labels are the user's; no character of theirs should end a program.
    """
    for stream in (sys.stdout, sys.stderr):
        # Notebooks have streams of other kinds.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def one_line_errors(
    program: str, kinds: tuple[type[Exception], ...] = USER_ERRORS
) -> Iterator[None]:
    """Turn a user's errors in the block into the end of `program`.

    Args:
        kinds: those errors.

    Raises:
        SystemExit: with the program's name and the error's sentence; the error is its cause.
    """
    print_any_text()
    try:
        yield
    except kinds as error:
        raise SystemExit(f"{program}: {sentence(error)}") from error
