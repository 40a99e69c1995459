"""Results of experiments as docs/evidence keeps them: read from runs, merged, compared.

A setting is named EXPERIMENT/SETTING, or EXPERIMENT/SETTING/EVALUATION.
"""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import plot_temperatures
import yaml
from compare_runs import compare_folders
from experiment import ROOT, Experiment, Job
from run_seeds import finished

from rankseg_m2f.errors import UserError
from rankseg_m2f.evaluation.bootstrap import Comparison, SavedStatistics
from rankseg_m2f.files import replacing

EVIDENCE = ROOT / "docs" / "evidence"
EXPERIMENTS = ROOT / "research" / "experiments"
_DIGITS = 4
# Statistics that settings are compared by.
_SHOWN = ("panoptic", "semantic")


@dataclass
class Plan:
    """What is to be run and shown.

    Attributes:
        evidence: folder of tables.yaml, whose sections the other attributes are, and of results.
        files: folder of the experiments.
    """

    evidence: Path
    files: Path
    experiments: dict[str, dict]
    tables: dict[str, dict]
    judgements: dict[str, list[str]]
    claims: list[list]
    temperatures: list[str]

    @classmethod
    def read(cls, evidence: Path = EVIDENCE, files: Path = EXPERIMENTS) -> "Plan":
        """Of these folders.

        Raises:
            UserError: tables.yaml names a setting that no experiment has.
        """
        path = evidence / "tables.yaml"
        plan = cls(evidence, files, **yaml.safe_load(path.read_text(encoding="utf-8")))
        shown = [*plan.experiments.values(), *plan.tables.values()]
        named = [part["baseline"] for part in shown]
        named += [row[0] for part in shown for row in part.get("rows", [])]
        named += [name for claim in plan.claims for name in claim[2:4]]
        if (
            unknown := {name for *_, names in plan.claims for name in names}
            - plan.judgements.keys()
        ):
            raise UserError(f"{path}: {min(unknown)} must be one of {', '.join(plan.judgements)}")
        named += [
            s for claim in plan.claims for pair in plan.judged(claim).values() for s in pair[:2]
        ]
        if unknown := {*named, *plan.temperatures} - plan.jobs.keys():
            raise UserError(f"{path}: {min(unknown)} is not a setting of any experiment in {files}")
        return plan

    def judged(self, claim: list) -> dict[str, tuple[str, str, str]]:
        """Two settings and the metric to compare them in, for each of the claim's judgements."""
        *_, better, than, names = claim
        found = {}
        for name in names:
            metric, *evaluation = self.judgements[name]
            found[name] = ("/".join([better, *evaluation]), "/".join([than, *evaluation]), metric)
        return found

    @cached_property
    def names(self) -> dict[str, str]:
        """What tables call the settings that are in one."""
        rows = [row for table in self.tables.values() for row in table["rows"]]
        return {setting: name for setting, name, *_ in reversed(rows)}

    @cached_property
    def jobs(self) -> dict[str, list[Job]]:
        """Planned runs of each setting, seed by seed; their folders begin with the experiment."""
        found: dict[str, list[Job]] = {}
        for name in self.experiments:
            experiment = Experiment.read(self.files / f"{name}.yaml")
            for job in (*experiment.jobs(Path()), *experiment.evaluations(Path())):
                found.setdefault(f"{name}/{job.setting}", []).append(job)
        return found

    @cached_property
    def baselines(self) -> dict[str, str]:
        """What the settings of tables are compared with; others have claims alone."""
        return {
            row[0]: table["baseline"] for table in self.tables.values() for row in table["rows"]
        }

    def pairs(self, experiment: str) -> Iterable[tuple[str, str]]:
        """Settings to compare, the first one of the experiment: for tables, and for claims."""
        pairs = [pair for pair in self.baselines.items() if pair[0] != pair[1]]
        pairs += [pair[:2] for claim in self.claims for pair in self.judged(claim).values()]
        return [p for p in dict.fromkeys(pairs) if p[0].partition("/")[0] == experiment]


@dataclass
class Results:
    """Of one experiment.

    Attributes:
        runs: (setting, seed) -> description, metrics ("task/metric" -> value), wall_seconds, ...
        comparisons: two settings -> seeds, resamples and the comparisons' fields.
    """

    runs: dict[tuple[str, int], dict] = field(default_factory=dict)
    comparisons: dict[tuple[str, str], dict] = field(default_factory=dict)

    @classmethod
    def read(cls, plan: Plan, experiment: str) -> "Results":
        """As committed; nothing if there is no file.

        Raises:
            UserError: a run in it is not as the experiment's file describes it.
        """
        path = plan.evidence / f"{experiment}.json"
        if not path.is_file():
            return cls()
        content = json.loads(path.read_text(encoding="utf-8"))
        planned = {(s, job.seed): job for s, jobs in plan.jobs.items() for job in jobs}
        runs = {(f"{experiment}/{run['setting']}", run["seed"]): run for run in content["runs"]}
        for (setting, seed), run in runs.items():
            expected = planned[setting, seed].description() if (setting, seed) in planned else {}
            if not expected or any(run[key] != value for key, value in expected.items()):
                raise UserError(
                    f"{path}: {setting}, seed {seed} is not the run of that name in {plan.files}: "
                    "take it out of one of them"
                )
        return cls(runs, {(c["a"], c["b"]): c for c in content["comparisons"]})

    def write(self, path: Path) -> None:
        """A line for each run and comparison, in their order."""
        parts = {
            "runs": [self.runs[key] for key in sorted(self.runs)],
            "comparisons": [self.comparisons[key] for key in sorted(self.comparisons)],
        }
        lines = [
            f' "{name}": [\n'
            + ",\n".join("  " + json.dumps(_rounded(e), ensure_ascii=False) for e in entries)
            + "\n ]"
            for name, entries in parts.items()
        ]
        with replacing(path) as temporary:
            temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    def comparison(self, a: str, b: str, metric: str) -> Comparison | None:
        """Of two settings in "task/metric", if there is one."""
        metrics = self.comparisons.get((a, b), {"metrics": []})["metrics"]
        return next((Comparison(**m) for m in metrics if m["metric"] == metric), None)


def collect(
    folder: Path, plan: Plan, resamples: int = 10_000, say: Callable[[str], object] = print
) -> Path:
    """Add finished runs to the committed results; returns their file.

    Runs that are no longer in the folder stay, and comparisons that more seeds were in; not those
    that are asked for no more.

    Args:
        folder: OUTPUT/EXPERIMENT of run_seeds.py; other experiments are looked for beside it.
        resamples: of the bootstrap.
        say: is told what happens.

    Raises:
        UserError: no such experiment; a run is of another description, or has no statistics.
    """
    name = folder.resolve().name
    if name not in plan.experiments:
        raise UserError(f"{folder} is not named as one of {', '.join(plan.experiments)}")
    results = Results.read(plan, name)
    before = len(results.runs)
    for setting, jobs in plan.jobs.items():
        if setting.partition("/")[0] == name:
            for job in _done(jobs, folder):
                results.runs[setting, job.seed] = _summary(job, setting in plan.temperatures)
    say(f"{name}: {len(results.runs)} runs, {len(results.runs) - before} of them new")
    read = functools.cache(SavedStatistics.read)
    pairs = plan.pairs(name)
    results.comparisons = {p: found for p, found in results.comparisons.items() if p in pairs}
    for pair in pairs:
        sides = [{job.seed: job.folder for job in _done(plan.jobs[s], folder)} for s in pair]
        seeds = [seed for seed in sides[0] if seed in sides[1]]
        if len(seeds) < max(1, len(results.comparisons.get(pair, {"seeds": []})["seeds"])):
            continue
        say(f"{pair[0]} and {pair[1]}: seeds {seeds}")
        results.comparisons[pair] = _compared(pair, sides, seeds, resamples, read)
    path = plan.evidence / f"{name}.json"
    results.write(path)
    return path


def _done(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """Those with results, in the experiment's `folder` or beside it."""
    root = folder.resolve().parent
    there = [replace(job, folder=root / job.folder) for job in jobs]
    return [job for job in there if finished(job)]


def _compared(
    pair: tuple[str, str],
    sides: list[dict],
    seeds: list[int],
    resamples: int,
    read: Callable[[Path], SavedStatistics],
) -> dict:
    metrics = compare_folders(
        *([side[seed] for seed in seeds] for side in sides),
        resamples=resamples,
        same_models=len({_trained(setting) for setting in pair}) == 1,
        kinds=_SHOWN,
        read=read,
    )
    found = {"a": pair[0], "b": pair[1], "seeds": seeds, "resamples": resamples}
    return {**found, "metrics": [asdict(comparison) for comparison in metrics]}


def _trained(setting: str) -> tuple[str, ...]:
    """The setting whose models it judges."""
    return tuple(setting.split("/")[:2])


def _summary(job: Job, with_temperature: bool) -> dict:
    """What of results.json is kept: no metrics of single labels."""
    result = json.loads((job.folder / "results.json").read_text(encoding="utf-8"))
    if len(result["metrics"]) != 1:
        raise UserError(f"{job.folder}: {len(result['metrics'])} datasets, 1 can be shown")
    ((dataset, tasks),) = result["metrics"].items()
    metrics = {
        f"{task}/{metric}": value
        for task, found in tasks.items()
        for metric, value in found.items()
        if "-" not in metric and value is not None
    }
    summary = {**result, "dataset": dataset, "metrics": metrics}
    weights = job.folder / "model_final.pth"
    if with_temperature and weights.is_file():
        config = yaml.safe_load((job.folder / "config.yaml").read_text(encoding="utf-8"))
        kappa = config["MODEL"]["RANKSEG"]["TOPK"]
        learned = plot_temperatures.read(weights, kappa=kappa)
        summary["temperature"] = {"form": learned.form, "weight": learned.weight.tolist()}
    return summary


def _rounded(value: object) -> object:
    """The same with fewer digits in all floats."""
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (list, tuple)) else value
