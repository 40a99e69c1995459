"""The evidence of docs/EVIDENCE.md, from runs to the document.

    python research/evidence.py collect output/scenes_150 [output/scenes_150_head ...]
    python research/evidence.py render [--check]

`collect` takes finished runs of research/run_seeds.py over into docs/evidence/EXPERIMENT.json, and
compares them by the bootstrap of tools/compare_runs.py; it may be repeated as runs are added.
`render` writes docs/EVIDENCE.md and the pictures from those files, docs/evidence/EVIDENCE.in.md
and docs/evidence/tables.yaml alone; --check says whether they are as it would write them.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Comparing and drawing are scripts of these folders.
sys.path += [str(ROOT / folder) for folder in ("tools", "benchmarks")]

from evidence_document import Document
from evidence_results import Plan, collect

from rankseg_m2f.files import replacing


def main(argv: list[str] | None = None) -> str | None:
    """Collect or render; returns what went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="from runs to docs/evidence/*.json")
    collecting.add_argument("folders", nargs="+", type=Path, metavar="RUNS_FOLDER")
    collecting.add_argument("--resamples", type=int, default=1000)
    rendering = commands.add_parser("render", help="from docs/evidence to docs/EVIDENCE.md")
    rendering.add_argument("--check", action="store_true", help="write nothing, compare")
    arguments = parser.parse_args(argv)
    try:
        plan = Plan.read()
        if arguments.command == "collect":
            for folder in arguments.folders:
                print(collect(folder, plan, arguments.resamples))
            return None
        return render(Document(plan), arguments.check)
    except (OSError, ValueError) as error:
        return f"evidence: {error}"


def render(document: Document, check: bool = False) -> str | None:
    """Write the document and its pictures, or say which of them is not up to date."""
    folder = document.plan.evidence
    path = folder.parent / "EVIDENCE.md"
    text = document.text()
    stale = [p for p in document.pictures() if not p.up_to_date(folder)]
    if check:
        written = path.is_file() and path.read_text(encoding="utf-8") == text
        wrong = [f"{picture.name}.png" for picture in stale] + [path.name] * (not written)
        if wrong:
            return f"{', '.join(wrong)} not up to date: run python research/evidence.py render"
        return None
    for picture in stale:
        picture.draw(folder / f"{picture.name}.png", picture.fields)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main())
