"""What a user can mend ends a program in one sentence, not in a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

# Of files and configs, ours as Detectron2's; what else is raised is a fault of the program.
USER_ERRORS = (ValueError, KeyError, AssertionError, OSError)


def sentence(error: Exception) -> str:
    """What an error says; Python would put the text of a KeyError in quotes."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turn a user's errors in the block into the end of `program`.

    Raises:
        SystemExit: with the program's name and the error's sentence; the error is its cause.
    """
    try:
        yield
    except USER_ERRORS as error:
        raise SystemExit(f"{program}: {sentence(error)}") from error
