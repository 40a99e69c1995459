"""Whether the libraries this project stands on are there and work; nothing heavy is imported here.

Asked before anything else is imported, so that a missing or broken library ends in one sentence
and not in the middle of another library.
"""

import importlib
import shlex
import sys
import sysconfig
from dataclasses import dataclass
from types import ModuleType

_TORCH = ("install", "torch", "torchvision")


@dataclass(frozen=True)
class Requirement:
    """A library, the module whose import shows that it works, and pip's arguments to get it."""

    name: str
    module: str
    pip: tuple[str, ...]


# In order of dependence: the first that fails is the cause.
REQUIREMENTS = (
    Requirement("numpy", "numpy", ("install", "numpy")),
    Requirement("torch", "torch", _TORCH),
    Requirement("torchvision", "torchvision", _TORCH),
    Requirement("PIL", "PIL.Image", ("install", "Pillow")),
    Requirement("scipy", "scipy.optimize", ("install", "scipy")),
    Requirement("pycocotools", "pycocotools.mask", ("install", "pycocotools")),
    Requirement("fvcore", "fvcore.nn", ("install", "fvcore")),
    Requirement(
        "detectron2",
        "detectron2.modeling",
        # Upstream has no release of its own. The wheel is tagged for CPython 3.10, and runs on
        # others when put into their folder.
        (
            *("install", "--no-deps", "--only-binary=:all:", "--python-version", "3.10"),
            *("--implementation", "cp", "--abi", "none"),
            *("--target", sysconfig.get_paths()["purelib"], "sal-detectron2==0.7.2"),
        ),
    ),
)


def check_requirements() -> None:
    """Import every library this project needs.

    Raises:
        ImportError: one is missing or broken; the message says which, why and what to run.
    """
    for requirement in REQUIREMENTS:
        load(requirement)


def load(requirement: Requirement) -> ModuleType:
    """The library's top module, after its import.

    Raises:
        ImportError: it is missing or broken; the message says why and what to run.
    """
    try:
        importlib.import_module(requirement.module)
    # What broken libraries raise: RuntimeError comes from torchvision beside another torch
    # ("operator torchvision::nms does not exist"), OSError from shared libraries of CUDA,
    # AttributeError and ValueError from modules compiled for another numpy.
    except (ImportError, RuntimeError, AttributeError, OSError, ValueError) as error:
        raise ImportError(_sentence(requirement, error)) from error
    return sys.modules[requirement.name]


def _sentence(requirement: Requirement, error: Exception) -> str:
    absent = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200].rstrip(" .")
    absent = absent.partition(".")[0]
    known = {r.name: r for r in REQUIREMENTS}
    if absent == requirement.name:
        state, pip = "is missing", requirement.pip
    elif absent in known:
        state, pip = f"needs {absent}, which is missing", known[absent].pip
    elif absent == "pkg_resources":
        state = "needs pkg_resources, which setuptools 82 removed"
        pip = ("install", "setuptools<81")
    elif absent:
        # One library missing inside another, as Detectron2's omegaconf; pyproject.toml has all.
        state, pip = f"is broken ({reason})", ("install", "-e", ".")
    else:
        state = f"is broken ({reason})"
        pip = ("install", "--upgrade", "--force-reinstall", *requirement.pip[1:])
    command = shlex.join((sys.executable, "-m", "pip", *pip))
    return f"{requirement.name} {state}: in the repository run `make setup`, or `{command}`"
