"""The house rules, enforced: one-way imports, short functions, no prints."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "rankseg_m2f"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [
    path
    for folder in ("rankseg_m2f", "datasets", "demo", "tools", "benchmarks", "research")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
SOURCES += sorted(ROOT.glob("*.py"))

# A room, a folder or module of the package's top level, imports only the rooms listed.
MAY_IMPORT = {
    "rankseg": set(),
    "ops": set(),
    "layers": {"ops"},
    "structures": set(),
    "modeling": {"rankseg", "layers", "structures", "errors"},
    "images": {"errors"},
    "files": {"errors"},
    "annotations": {"errors", "files", "images"},
    "label_scores": {"errors"},
    "errors": set(),
    "revision": set(),
    "data": {"annotations", "errors", "files", "images", "label_scores"},
    "evaluation": {
        "rankseg",
        "annotations",
        "errors",
        "images",
        "files",
        "label_scores",
    },
    "config": {"errors"},
    "doctor": {"ops", "data", "engine", "files", "__version__"},
    "weights": {"data", "files", "layers", "revision", "errors", "__version__"},
    "registration": {"modeling"},
    "engine": {
        "annotations",
        "registration",
        "weights",
        "modeling",
        "rankseg",
        "data",
        "evaluation",
        "config",
        "images",
        "ops",
        "structures",
        "files",
        "errors",
    },
}
# Outside libraries a room must not touch, and the only rooms that may touch some.
WITHOUT = {
    "rankseg": {"detectron2", "numpy", "scipy", "cv2"},
    "ops": {"detectron2", "numpy", "scipy"},
    "layers": {"detectron2", "numpy", "scipy"},
}
ONLY_IN = {
    "scipy": {"modeling", "weights"},
    "pycocotools": {"annotations", "data", "evaluation"},
}
# Slow to import, or missing on some machines: never at the top of a module.
LAZY = {"cv2", "matplotlib", "timm", "transformers", "torchvision"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """Dotted names of modules imported anywhere under `tree`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room they reach"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    here = room(path)
    if path == PACKAGE / "__init__.py":
        assert imported(parse(path)) == {"warnings", "rankseg_m2f.config.keys.add_rankseg_config"}
        return
    for name in imported(parse(path)):
        parts = name.split(".")
        if parts[0] == "rankseg_m2f":
            there = parts[1]
            assert there == here or there in MAY_IMPORT[here], f"{here} must not import {name}"
        assert parts[0] not in WITHOUT.get(here, ()), f"{here} must not import {name}"
        assert here in ONLY_IN.get(parts[0], {here}), f"{here} must not import {name}"


def test_no_import_is_allowed_in_vain():
    used = {here: set() for here in MAY_IMPORT}
    for path in MODULES:
        if path != PACKAGE / "__init__.py":
            parts = (name.split(".") for name in imported(parse(path)))
            used[room(path)] |= {p[1] for p in parts if p[0] == "rankseg_m2f"}
    assert {here: rooms - {here} for here, rooms in used.items()} == MAY_IMPORT


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_are_imported_where_used(path):
    top = [node for node in parse(path).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    found = {name.split(".")[0] for node in top for name in imported(node)}
    assert not found & LAZY


def test_evaluation_takes_metrics_alone_from_rankseg():
    for path in sorted((PACKAGE / "evaluation").glob("*.py")):
        for name in imported(parse(path)):
            if name.startswith("rankseg_m2f.rankseg"):
                assert name.startswith("rankseg_m2f.rankseg.metrics")


def test_no_import_circle():
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in MODULES}
    graph = {}
    for name, path in modules.items():
        reached = imported(parse(path))
        graph[name] = {m for m in modules if any(r == m or r.startswith(m + ".") for r in reached)}
    done, doing = set(), set()

    def visit(name):
        assert name not in doing, f"import circle through {name}"
        if name in done:
            return
        doing.add(name)
        for other in graph[name] - {name}:
            visit(other)
        doing.remove(name)
        done.add(name)

    for name in graph:
        visit(name)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_fit_a_screen(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path.name}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_prints_and_no_bare_excepts(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            assert getattr(node.func, "id", "") != "print", f"{path}:{node.lineno} prints"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno} catches everything"


def constants(node: ast.AST) -> list[str]:
    """Texts anywhere in `node`."""
    found = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
    return [value for value in found if isinstance(value, str)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_text_has_an_encoding(path):
    """The locale's may be any."""
    for node in ast.walk(parse(path)):
        if not isinstance(node, ast.Call):
            continue
        function, given = node.func, {keyword.arg for keyword in node.keywords}
        name = getattr(function, "attr", getattr(function, "id", ""))
        if name == "open":
            owner = getattr(getattr(function, "value", None), "id", "")
            modes = [text for text in map(constants, [*node.args, *node.keywords]) if text]
            of_text = owner not in ("Image", "av") and not any("b" in m[0] for m in modes)
        else:
            of_text = name in ("read_text", "write_text") or {"text", "universal_newlines"} & given
        assert not of_text or "encoding" in given, f"{path}:{node.lineno} {name} has no encoding"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_help_can_be_printed_anywhere(path):
    """`--help` is shown before a program has prepared its output for characters beyond ASCII."""
    tree = parse(path)
    for node in ast.walk(tree):
        name = getattr(node.func, "attr", "") if isinstance(node, ast.Call) else ""
        if name in ("add_argument", "ArgumentParser"):
            texts = constants(node)
            if "__doc__" in ast.unparse(node):
                doc = ast.get_docstring(tree)
                texts.append(doc.splitlines()[0] if "splitlines()[0]" in ast.unparse(node) else doc)
            assert all(map(str.isascii, texts)), f"{path}:{node.lineno}"


def test_the_idea_needs_torch_alone():
    code = (
        "import sys, pkgutil, importlib, rankseg_m2f.rankseg as r;"
        "[importlib.import_module(f'rankseg_m2f.rankseg.{m.name}')"
        " for m in pkgutil.iter_modules(r.__path__)];"
        "sys.exit('detectron2' in sys.modules or 'fvcore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
