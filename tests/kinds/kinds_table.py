"""README.md of this folder, the table kind -> test: python tests/kinds/kinds_table.py writes it."""

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent
README = HERE / "README.md"
MODULES = (
    "test_kinds_outlines",
    "test_kinds_entries",
    "test_kinds_panoptic",
    "test_kinds_label_maps",
    "test_kinds_files",
    "test_kinds_definitions",
)


def table() -> str:
    """The README's text."""
    from kinds_cases import OUTCOMES

    modules = [importlib.import_module(name) for name in MODULES]
    kinds = sum(len({case.kind for case in module.cases.cases}) for module in modules)
    lines = [
        "# Kinds of datasets, and what is right for each",
        "",
        f"{kinds} kinds, on sound datasets of `kinds_made.py` that a function of the kind's name "
        "spoils. Each is",
        "registered, checked, loaded, mapped for training and evaluated with the truth as "
        "prediction; nothing but a",
        "UserError of one line, which names a file, may end any of that, and where the check "
        "finds nothing, nothing may.",
        "Written by `python tests/kinds/kinds_table.py`.",
        "",
        *(f"- **{name}**: {meaning}" for name, meaning in OUTCOMES.items()),
    ]
    for module in modules:
        lines += ["", f"## {module.__name__}.py", "", module.__doc__.splitlines()[0], ""]
        lines += ["| kind | right | on |", "|---|---|---|"]
        bases: dict[tuple[str, str], list[str]] = {}
        for case in module.cases.cases:
            bases.setdefault((case.kind, case.outcome), []).append(case.base.__name__)
        lines += [f"| {k} | {outcome} | {', '.join(on)} |" for (k, outcome), on in bases.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parents[1])]
    README.write_text(table(), encoding="utf-8")
