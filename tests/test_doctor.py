"""The doctor and the check at start-up: what they say of missing and broken libraries."""

import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from rankseg_m2f import doctor
from rankseg_m2f.engine import requirements
from rankseg_m2f.engine.requirements import REQUIREMENTS, Requirement, check_requirements, load

BY_NAME = {r.name: r for r in REQUIREMENTS}


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def broken(tmp_path, monkeypatch, line: str) -> str:
    """What is said of a library whose import runs `line`."""
    (tmp_path / "shaky.py").write_text(line + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shaky", raising=False)
    with pytest.raises(ImportError) as caught:
        load(Requirement("shaky", "shaky", ("install", "shaky>=2")))
    assert caught.value.__cause__ is not None
    return str(caught.value)


def test_all_is_well_here(monkeypatch, tmp_path):
    check_requirements()
    coco = tmp_path / "coco"
    for folder in ("annotations", "val2017"):
        (coco / folder).mkdir(parents=True)
    (coco / "annotations" / "instances_val2017.json").touch()
    # Nothing registers the last one.
    for name in ("scenes_9", "video_scenes_9", "old_scenes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scenes.json").touch()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    report = doctor.diagnose()
    text = report.text()
    assert not report.problems
    for name in (*BY_NAME, "cv2", "python", "CPU", "used here"):
        assert re.search(rf"^  {name} +\S", text, re.MULTILINE), name
    rows = (
        rf"torch +{re.escape(torch.__version__)}",
        "coco_2017 +there: val",
        r"coco_2017_panoptic +unfinished, run python datasets/prepare_coco\.py",
        "scenes_9 +there",
        "video_scenes_9 +there",
    )
    for row in rows:
        assert re.search(rf"^  {row}$", text, re.MULTILINE), row
    assert "ade20k" not in text and "old_scenes" not in text
    assert text.endswith("All that is needed works.\n")


def test_doctor_names_the_missing_library_and_its_fix():
    # torch and torchvision are hidden too, which makes this quick.
    code = (
        "import sys; hidden = ('detectron2', 'torch', 'torchvision')\n"
        "sys.modules.update(dict.fromkeys(hidden))\n"
        "import rankseg_m2f.doctor as doctor; sys.exit(doctor.main())"
    )
    result = python(code)
    assert result.returncode == 1, result.stderr
    assert "detectron2 is missing: in the repository run `make setup`, or `" in result.stdout
    assert "sal-detectron2==" in result.stdout
    assert "torch is missing" in result.stdout
    assert re.search(r"CUDA +unknown without torch", result.stdout)
    assert "Traceback" not in result.stderr


def test_doctor_on_a_bare_python(tmp_path, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS")
    # Isolated and without site-packages: the standard library and the repository, nothing else.
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += "from rankseg_m2f import doctor; sys.exit(doctor.main())"
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    for name in (*BY_NAME, "cv2"):
        assert f"{name} is missing: " in result.stdout
    assert f"the dataset folder {tmp_path / 'datasets'} does not exist" in result.stdout


def test_start_up_stops_with_one_sentence():
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "from rankseg_m2f.engine import requirements as r\n"
        "r.REQUIREMENTS = r.REQUIREMENTS[-1:]\n"
        "try: r.check_requirements()\n"
        "except ImportError as error: sys.exit(str(error))"
    )
    result = python(code)
    assert result.returncode == 1
    assert result.stderr.startswith("detectron2 is missing: in the repository run `make setup`")
    assert result.stderr.count("\n") == 1


def test_start_up_imports_nothing_by_itself():
    code = "import sys, rankseg_m2f.engine.requirements\n"
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'detectron2')))"
    assert python(code).returncode == 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "operator torchvision::nms does not exist",
        ),
        ("import sys; sys.no_such_name", "module 'sys' has no attribute 'no_such_name'"),
        ("raise OSError('libcudart.so.13: not found.\\nmore')", "libcudart.so.13: not found"),
        ("raise ImportError", "ImportError"),
    ],
)
def test_broken_library(tmp_path, monkeypatch, line, reason):
    sentence = broken(tmp_path, monkeypatch, line)
    assert sentence.startswith(f"shaky is broken ({reason}): in the repository run `make setup`")
    assert sentence.endswith("-m pip install --upgrade --force-reinstall 'shaky>=2'`")


def test_library_that_lacks_another(tmp_path, monkeypatch):
    sentence = broken(tmp_path, monkeypatch, "import no_such_library.part")
    assert sentence.startswith("shaky is broken (No module named 'no_such_library')")
    assert sentence.endswith("-m pip install -e .`")


def test_library_that_lacks_one_of_ours(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    sentence = broken(tmp_path, monkeypatch, "import scipy")
    assert sentence.startswith("shaky needs scipy, which is missing: ")
    assert sentence.endswith("-m pip install scipy`")


def test_setuptools_without_pkg_resources(tmp_path, monkeypatch):
    line = "raise ModuleNotFoundError('No module', name='pkg_resources')"
    sentence = broken(tmp_path, monkeypatch, line)
    assert sentence.startswith("shaky needs pkg_resources, which setuptools 82 removed: ")
    assert sentence.endswith("-m pip install 'setuptools<81'`")


def test_detectron2_is_the_one_make_installs():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    wheel = re.search(r"^DETECTRON2 := (\S+)$", makefile, re.MULTILINE)[1]
    options = re.search(r"^DETECTRON2_PIP := (.+)$", makefile, re.MULTILINE)[1].split()
    pip = list(BY_NAME["detectron2"].pip)
    assert pip[0] == "install" and pip[-1] == wheel
    assert pip[1 : 1 + len(options)] == options


def test_problems_end_in_exit_code_1(monkeypatch, capsys):
    def missing(requirement: Requirement):
        raise ImportError(f"{requirement.name} is gone")

    monkeypatch.setattr(doctor, "load", missing)
    assert doctor.main() == 1
    out = capsys.readouterr().out
    assert all(f"{r.name} is gone" in out for r in requirements.REQUIREMENTS)
    assert "All that is needed works." not in out


def test_no_backend_is_a_problem(monkeypatch):
    from rankseg_m2f.ops import dispatch

    asked = []

    def none(device):
        asked.append(device)
        return {"fast": (False, "no compiler")}

    monkeypatch.setattr(dispatch, "available_backends", none)
    for on_gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda on_gpu=on_gpu: on_gpu)
        report = doctor.Report()
        doctor._backends(report)
        assert any("not usable: no compiler" in line for line in report.lines)
        assert len(report.problems) == 1
    assert asked == ["cpu", "cuda"]


def test_the_backend_of_the_environment_is_told(monkeypatch):
    """It decides for all models of the process: the first that works is not what they would use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("RANKSEG_M2F_MS_DEFORM_ATTN", "torch")
    report = doctor.Report()
    doctor._backends(report)
    assert report.lines[-1].split(maxsplit=2)[2] == "torch, on cpu" and not report.problems
    for name, reason in (
        ("foo", "must be one of native"),
        ("triton", "cannot serve torch.float32"),
    ):
        monkeypatch.setenv("RANKSEG_M2F_MS_DEFORM_ATTN", name)
        report = doctor.Report()
        doctor._backends(report)
        (problem,) = report.problems
        assert problem.startswith(f"$RANKSEG_M2F_MS_DEFORM_ATTN: backend {name!r} {reason}")
        assert not any("used here" in line for line in report.lines)


def test_gpus_are_named(monkeypatch):
    class Properties:
        name = "A GPU"
        total_memory = 24 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: Properties)
    report = doctor.Report()
    doctor._devices(report)
    assert [line.split(maxsplit=1) for line in report.lines[-2:]] == [
        ["cuda:0", "A GPU, 24.0 GiB"],
        ["cuda:1", "A GPU, 24.0 GiB"],
    ]
