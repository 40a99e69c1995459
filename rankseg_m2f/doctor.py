"""What works on this machine and what does not: ``python -m rankseg_m2f.doctor``.

Exit code 1 when something needed is missing or broken. No library is imported before it is known
to be there, so that the answer comes on a bare Python too.
"""

import importlib.metadata
import os
import platform
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from rankseg_m2f import __version__
from rankseg_m2f.engine.requirements import REQUIREMENTS, Requirement, load
from rankseg_m2f.files import datasets_root

# Not asked at start-up: only some of Detectron2's augmentations and its drawing need it.
OPENCV = Requirement("cv2", "cv2", ("install", "opencv-python-headless"))


@dataclass
class Report:
    """Lines to show, and problems: those of needed things, and hints that stop nothing."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def title(self, text: str) -> None:
        """Start a section."""
        self.lines += ["", text]

    def row(self, name: str, text: str) -> None:
        """Add a line to the section."""
        self.lines.append(f"  {name:<32}{text}")

    def text(self) -> str:
        """The whole report, problems last."""
        lines = list(self.lines)
        for title, found in (("Problems", self.problems), ("Hints", self.hints)):
            if found:
                lines += ["", title, *(f"  {i}. {x}" for i, x in enumerate(found, start=1))]
        if not self.problems:
            lines += ["", "All that is needed works."]
        return "\n".join(lines) + "\n"


def diagnose() -> Report:
    """Look at libraries, devices, backends and datasets."""
    report = Report([f"rankseg_m2f {__version__}"])
    report.row("python", f"{platform.python_version()} ({sys.executable})")
    report.row("system", platform.platform())
    # Libraries warn of old drivers and deprecations as they are imported; drivers are a hint here.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        _libraries(report)
        _devices(report)
        _backends(report)
    report.hints += sorted({_first_line(w.message) for w in caught if "CUDA" in str(w.message)})
    _datasets(report)
    return report


def cpu_name() -> str:
    """The processor's name, as far as the system knows it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _libraries(report: Report) -> None:
    report.title("Libraries")
    for requirement in (*REQUIREMENTS, OPENCV):
        try:
            module = load(requirement)
        except ImportError as error:
            report.row(requirement.name, "does not work, see the problems below")
            report.problems.append(str(error))
            continue
        report.row(requirement.name, _version(module))


def _version(module) -> str:
    version = getattr(module, "__version__", None)
    if version is None:
        try:
            version = importlib.metadata.version(module.__name__)
        except importlib.metadata.PackageNotFoundError:
            version = "of unknown version"
    return str(version)


def _devices(report: Report) -> None:
    report.title("Devices")
    report.row("CPU", f"{os.cpu_count()} cores")
    torch = sys.modules.get("torch")
    # A torch that failed half-way through its import is there without most of its names.
    if torch is None or not hasattr(torch, "cuda"):
        report.row("CUDA", "unknown without torch")
        return
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = f"no device (torch is built for CUDA {built})" if built else "torch has none"
        report.row("CUDA", reason)
        return
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        report.row(f"cuda:{i}", f"{device.name}, {device.total_memory / 2**30:.1f} GiB")


def _backends(report: Report) -> None:
    report.title("Multi-scale deformable attention")
    try:
        import torch

        from rankseg_m2f.ops.backends import BACKENDS, choose
        from rankseg_m2f.ops.dispatch import available_backends
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        report.row("unknown", _first_line(error))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backends = available_backends(device)
    for name, (usable, reason) in backends.items():
        report.row(name, f"{'works' if usable else 'not usable'}: {reason}")
    if not any(usable for usable, _ in backends.values()):
        report.problems.append("no backend of deformable attention works here, see its reasons")
        return
    try:
        chosen = choose("", device, torch.float32).__name__
    except ValueError as error:
        report.problems.append(str(error))
        return
    used = next(name for name, module in BACKENDS.items() if module == chosen)
    report.row("used here", f"{used}, on {device}")


def _datasets(report: Report) -> None:
    root, given = datasets_root(), os.environ.get("DETECTRON2_DATASETS")
    origin = "$DETECTRON2_DATASETS" if given else "the default; set $DETECTRON2_DATASETS"
    report.title(f"Datasets in {root.absolute()} ({origin})")
    if not root.is_dir():
        report.hints.append(
            f"the dataset folder {root.absolute()} does not exist: create it, or set "
            "DETECTRON2_DATASETS to where yours are"
        )
        return
    try:
        from rankseg_m2f.data.datasets.official import readiness
        from rankseg_m2f.data.datasets.scenes import SCENES
        from rankseg_m2f.data.datasets.video_scenes import VIDEO_SCENES
    except (ImportError, AttributeError, OSError) as error:
        report.row("unknown", _first_line(error))
        return
    # Written last, so its presence says that all the rest is there.
    for folders in (SCENES, VIDEO_SCENES):
        for path in sorted(root.glob(f"{folders}/scenes.json")):
            report.row(path.parent.name, "there")
    for names, (ready, script) in readiness(root).items():
        advice = f"unfinished, run python datasets/{script}"
        report.row(names.replace("_{split}", ""), f"there: {', '.join(ready)}" if ready else advice)


def _first_line(message: object) -> str:
    return next(iter(str(message).strip().splitlines()), type(message).__name__)


def main() -> int:
    """Write the report to stdout; 1 if something needed does not work, else 0."""
    report = diagnose()
    sys.stdout.write(report.text())
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
