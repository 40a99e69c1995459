"""docs/EVIDENCE.md and its pictures from the committed results."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compare_runs import draw_differences, spread
from evidence_results import Plan, Results
from evidence_tables import first_attempt, label_recall, large_vocabulary, markdown, read_json
from experiment import ROOT
from figures import INK, new_figure, save_figure
from plot_temperatures import Temperatures, plot_temperatures
from vocabulary_costs import draw_vocabulary_costs

from rankseg_m2f.errors import UserError
from rankseg_m2f.evaluation.bootstrap import Comparison

TEMPLATE = "EVIDENCE.in.md"
VOCABULARY = "benchmarks/results/large_vocabulary_xeon_2_threads.json"
NOT_RUN = "not run yet"
_PLACE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
# Of the PNG: tells which numbers it was drawn from.
_FIELD = "Evidence"


@dataclass
class Picture:
    """One PNG.

    Attributes:
        name: of its file, without suffix.
        numbers: all that it shows.
        draw: from a path and the file's text fields.
    """

    name: str
    numbers: object
    draw: Callable[[Path, dict[str, str]], None]

    @property
    def fields(self) -> dict[str, str]:
        """The file's text fields; others when the numbers are others."""
        text = json.dumps(self.numbers, sort_keys=True)
        return {_FIELD: hashlib.sha256(text.encode()).hexdigest()}

    def up_to_date(self, folder: Path) -> bool:
        """Whether the file shows these numbers."""
        from PIL import Image

        path = folder / f"{self.name}.png"
        if not path.is_file():
            return False
        with Image.open(path) as image:
            return image.text.get(_FIELD) == self.fields[_FIELD]


class Document:
    """Fills the template: each {{word argument ...}} is what the method of that name returns."""

    def __init__(self, plan: Plan):
        """All committed results are read."""
        self.plan = plan
        self.results = {name: Results.read(plan, name) for name in plan.experiments}

    def text(self) -> str:
        """The document.

        Raises:
            UserError: the template has an unknown word, or one with wrong arguments.
        """
        path = self.plan.evidence / TEMPLATE
        words = {
            "claims": self.claims,
            "difference": self.difference,
            "file": file_header,
            "first_attempt": lambda path: first_attempt(read_json(path)),
            "label_recall": lambda path: label_recall(read_json(path)),
            "large_vocabulary": lambda: large_vocabulary(read_json(VOCABULARY)),
            "picture": self.picture,
            "runs": self.runs,
            "table": self.table,
            "temperature": self.temperature,
            "value": self.value,
        }

        def filled(place: re.Match) -> str:
            word, *arguments = place[1].split()
            try:
                return words[word](*arguments)
            except (KeyError, TypeError) as error:
                raise UserError(f"{path}: {place[0]} cannot be filled: {error}") from error

        return _PLACE.sub(filled, path.read_text(encoding="utf-8"))

    def pictures(self) -> Iterator[Picture]:
        """Those that there is something to show on."""
        for name, shown in self.plan.experiments.items():
            panels = {m: self._differences(name, m) for m in shown["metrics"]}
            if any(panels.values()):
                numbers = {m: {s: vars(c) for s, c in p.items()} for m, p in panels.items()}
                yield Picture(name, numbers, _drawing(panels))
        for setting in self.plan.temperatures:
            if learned := self._temperatures(setting):
                numbers = {name: found.weight.tolist() for name, found in learned.items()}
                yield Picture(
                    f"temperatures-{setting.rpartition('/')[2]}",
                    numbers,
                    lambda path, fields, learned=learned: plot_temperatures(learned, path, fields),
                )

        measured = read_json(VOCABULARY)
        yield Picture(
            "large_vocabulary",
            measured,
            lambda path, fields: draw_vocabulary_costs(measured, path, fields),
        )

    def picture(self, name: str) -> str:
        """A picture, or that there is nothing to show yet."""
        if name in (picture.name for picture in self.pictures()):
            return f"![{name}](evidence/{name}.png)"
        return f"*The picture `{name}` needs runs that have not been made yet.*"

    def value(self, setting: str, metric: str) -> str:
        """Mean and deviation over seeds."""
        runs = self._runs_of(setting)
        values = [run["metrics"][metric] for run in runs if metric in run["metrics"]]
        if not runs:
            return NOT_RUN
        return spread(values).strip() if values else "-"

    def difference(self, a: str, b: str, metric: str) -> str:
        """Of two settings, with its interval; bold where noise does not explain it."""
        comparison = self._comparison(a, b, metric)
        return _difference(comparison) if comparison else NOT_RUN

    def table(self, name: str) -> str:
        """A table of tables.yaml."""
        table = self.plan.tables[name]
        header = ["setting", "seeds"]
        for metric in table["metrics"]:
            header += [_short(metric)] if _of_labels(metric) else [_short(metric), "to baseline"]
        header.append(f"verdict in {_short(table['metrics'][0])}")
        if paper := table.get("paper"):
            header.append(f"the paper's differences: {' / '.join(paper)}")
        return markdown([header, *(self._row(table, *row) for row in table["rows"])])

    def _row(self, table: dict, setting: str, name: str, *paper: float) -> list[str]:
        row = [name, f"{len(self._runs_of(setting))} of {len(self.plan.jobs[setting])}"]
        compared = [self._comparison(setting, table["baseline"], m) for m in table["metrics"]]
        for metric, comparison in zip(table["metrics"], compared, strict=True):
            row.append(self.value(setting, metric))
            # Plain Mask2Former has no scores of labels to compare with.
            if not _of_labels(metric):
                row.append(_difference(comparison) if comparison else "")
        row.append(_verdict(compared[0], name) if compared[0] else "")
        return (
            [*row, " / ".join("" if d is None else f"{d:+g}" for d in paper)]
            if "paper" in table
            else row
        )

    def claims(self) -> str:
        """What the paper and we say, and whether it is so here, in each way to judge it."""
        columns = self.plan.judgements
        rows = [["claim", "source", "seeds", *columns]]
        for claim in self.plan.claims:
            pairs = self.plan.judged(claim)
            found = {name: self._comparison(*pair) for name, pair in pairs.items()}
            seeds = max(len(c.values[0]) if c else 0 for c in found.values())
            outcomes = [outcome(found[name]) if name in found else "" for name in columns]
            rows.append([*claim[:2], str(seeds), *outcomes])
        return markdown(rows)

    def runs(self) -> str:
        """How many runs there are, how long they took and on what."""
        header = ["experiment", "seeds", "runs", "evaluated again", "minutes, mean and most"]
        rows = [[*header, "on", "revision"]]
        for name, results in self.results.items():
            runs = results.runs.values()
            minutes = [r["wall_seconds"] / 60 for r in runs if _trains(r) and not r["resumed"]]
            rows.append(
                [
                    name,
                    *self._counts(name),
                    f"{np.mean(minutes):.1f}, {max(minutes):.1f}" if minutes else "",
                    ", ".join(sorted({run["device"] for run in runs})),
                    ", ".join(sorted({_revision(run["revision"]) for run in runs})),
                ]
            )
        return markdown(rows)

    def _counts(self, experiment: str) -> Iterator[str]:
        """Planned seeds; how many of the planned runs there are, and of their evaluations."""
        own = [s for s in self.plan.jobs if s.partition("/")[0] == experiment]
        yield ", ".join(map(str, sorted({job.seed for s in own for job in self.plan.jobs[s]})))
        for depth in (1, 2):
            settings = [setting for setting in own if setting.count("/") == depth]
            done = sum(len(self._runs_of(setting)) for setting in settings)
            planned = sum(len(self.plan.jobs[setting]) for setting in settings)
            yield f"{done} of {planned}" if planned else ""

    def temperature(self, setting: str) -> str:
        """How 1/τ goes over ranks, in words."""
        learned = self._temperatures(setting)
        if not learned:
            return NOT_RUN
        ranks = np.mean([found.weight[:-1] for found in learned.values()], axis=0)
        order = ranks.argsort().argsort()
        correlation = np.corrcoef(np.arange(len(ranks)), order)[0, 1]
        count = f"{len(learned)} seed{'s' * (len(learned) > 1)}"
        lowest = int(ranks.argmin())
        over = f"over {ranks[lowest]:.2f} at rank {lowest + 1} " * (lowest + 1 < len(ranks))
        return (
            f"from {ranks[0]:.2f} at rank 1 {over}to {ranks[-1]:.2f} at rank {len(ranks)}, rank "
            f"correlation {correlation:+.2f} (mean of {count})"
        )

    def _runs_of(self, setting: str) -> list[dict]:
        results = self.results[setting.partition("/")[0]]
        return [run for (name, _), run in sorted(results.runs.items()) if name == setting]

    def _comparison(self, a: str, b: str, metric: str) -> Comparison | None:
        return self.results[a.partition("/")[0]].comparison(a, b, metric)

    def _differences(self, experiment: str, metric: str) -> dict[str, Comparison]:
        """Differences of the experiment's settings to the baseline."""
        baseline = self.plan.experiments[experiment]["baseline"]
        found = {
            self.plan.names[setting]: self._comparison(setting, baseline, metric)
            for setting, other in self.plan.baselines.items()
            if setting.partition("/")[0] == experiment and other == baseline
        }
        return {name: comparison for name, comparison in found.items() if comparison}

    def _temperatures(self, setting: str) -> dict[str, Temperatures]:
        return {
            f"seed {run['seed']}": Temperatures(
                run["temperature"]["form"], np.array(run["temperature"]["weight"])
            )
            for run in self._runs_of(setting)
            if "temperature" in run
        }


def outcome(found: Comparison | None) -> str:
    """Whether the first side is better, as is claimed; one seed cannot say."""
    if found is None:
        return NOT_RUN
    if len(found.values[0]) == 1:
        word = "one seed"
    elif not found.distinguishable:
        word = "unclear"
    else:
        word = "holds" if found.difference > 0 else "**contradicted**"
    return f"{word}: {_difference(found)}"


def file_header(path: str) -> str:
    """The comment that a file of the project begins with."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])


def _difference(comparison: Comparison) -> str:
    low, high = comparison.interval
    text = f"{comparison.difference:+.2f} [{low:+.2f}, {high:+.2f}]"
    certain = comparison.distinguishable and len(comparison.values[0]) > 1
    return f"**{text}**" if certain else text


def _verdict(comparison: Comparison, name: str) -> str:
    """Without the interval, which stands beside it; seeds can be fewer than either side has."""
    count = len(comparison.values[0])
    if count == 1:
        return "one seed cannot say"
    words = comparison.verdict((name, "the baseline")).partition(", 95 %")[0]
    return f"{words} ({count} seeds)"


def _of_labels(metric: str) -> bool:
    return metric.startswith("labels/")


def _short(metric: str) -> str:
    return f"label {metric.partition('/')[2]}" if _of_labels(metric) else metric.partition("/")[2]


def _trains(run: dict) -> bool:
    return "/" not in run["setting"]


def _revision(name: str | None) -> str:
    return f"{name[:10]}{'-dirty' * name.endswith('-dirty')}" if name else "unknown"


def _drawing(panels: dict[str, dict[str, Comparison]]) -> Callable:
    """Draws a panel for each metric; small dots are seeds, paired with the baseline's."""
    names = list(dict.fromkeys(name for compared in panels.values() for name in compared))

    def draw(path: Path, fields: dict[str, str]) -> None:
        size = 2.4 + 4 * len(panels), 1.6 + 0.4 * len(names)
        figure, axes = new_figure(1, len(panels), size)
        for axis, (metric, compared) in zip(axes, panels.items(), strict=True):
            draw_differences(axis, compared)
            for place, comparison in enumerate(compared.values()):
                seeds = np.subtract(*comparison.values)
                axis.plot(seeds, np.full(len(seeds), place + 0.25), ".", color=INK, markersize=4)
            axis.set(xlabel=f"{_short(metric)}, points above the baseline")
            axis.label_outer()
        figure.suptitle(
            "95 % intervals (grey: not distinguishable from noise); small dots: seeds", fontsize=11
        )
        save_figure(figure, path, fields)

    return draw
