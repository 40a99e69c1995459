"""Runs mutants in processes that may die: `fuzz`, or fuzz_watch.py SEED FIRST COUNT."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
WORKER = HERE / "fuzz_worker.py"
_STARTING = 120  # seconds of imports, on a busy machine


def fuzz(seed: int, count: int, first: int = 0) -> list[dict]:
    """One line on each mutant: index, mutation, outcome (results, refused or wrong) and why."""
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        path, lines, index = Path(folder, "lines"), {}, first
        while index < first + count:
            path.write_text("")
            ended = _run(seed, index, first + count, path)
            for line in map(json.loads, path.read_text().splitlines()):
                lines[line["index"]] = line
                index = line["index"] + 1
            if index == first + count and lines[index - 1]["outcome"] != "begun":
                break
            if not path.read_text():
                raise RuntimeError(f"no mutant was begun from {index} on: {ended}")
            if lines[index - 1]["outcome"] == "begun":
                lines[index - 1] |= {"outcome": "wrong", "why": f"the process was ended: {ended}"}
        return [lines[i] for i in sorted(lines)]


def _run(seed: int, first: int, last: int, path: Path) -> str:
    command = [sys.executable, "-W", "ignore", str(WORKER)]
    folders = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders)}
    with subprocess.Popen(
        [*command, str(seed), str(first), str(last), str(path)],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        try:
            _, said = process.communicate(timeout=_STARTING + 20 * (last - first))
        except subprocess.TimeoutExpired:
            process.kill()
            return "the clock"
    if process.returncode < 0:
        return signal.Signals(-process.returncode).name
    return f"exit {process.returncode}: {said.strip().splitlines()[-1:]}"


def describe(seed: int, lines: list[dict]) -> str:
    """Counts of outcomes, and each mutant that ended wrongly, so that it can be run again."""
    counts = Counter(line["outcome"] for line in lines)
    wrong = [line for line in lines if line["outcome"] == "wrong"]
    seconds = max((line.get("seconds", 0) for line in lines), default=0)
    growth = sum(line.get("growth", 0) for line in lines) >> 20
    shown = [
        f"seed {seed}: {len(lines)} mutants: {dict(counts)}; the longest took {seconds:.1f} s, "
        f"memory grew by {growth} MiB over all"
    ]
    shown += [f"mutant {w['index']} of seed {seed}: {w['mutation']}\n    {w['why']}" for w in wrong]
    return "\n".join(shown)


if __name__ == "__main__":
    SEED, FIRST, COUNT = map(int, sys.argv[1:4])
    sys.stdout.write(describe(SEED, fuzz(SEED, COUNT, FIRST)) + "\n")
