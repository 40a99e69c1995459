"""Which version of this project's checkout is running."""

import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_COMMAND = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def revision() -> str | None:
    """The git commit, with "-dirty" behind it if files differ from it.

    None without git, or where the package is installed and no checkout.
    """
    # An environment may lie in a checkout of something else.
    if not (_ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            _COMMAND, cwd=_ROOT, capture_output=True, encoding="utf-8", check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
