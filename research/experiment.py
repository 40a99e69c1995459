"""What an experiment is: one config, settings as overrides, seeds; read from a small file.

name: kappa
config: configs/scenes/panoptic/demo-rankseg.yaml
script: train_net.py                # the default; train_net_video.py for videos
common: [SOLVER.MAX_ITER, 500]      # overrides of all settings; optional
settings:
  rankseg: []
  baseline: [MODEL.RANKSEG.FLAG, "False"]
  no-ranks: table1-mt-ls            # overrides of that row of configs/ablations.json
seeds: [1, 2, 3]
evaluate:                           # finished runs judged again, with more overrides; optional
  baseline:
    gt-eval: [MODEL.RANKSEG.USE_GT_EVAL, "True"]
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from rankseg_m2f.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
_ABLATIONS = ROOT / "configs" / "ablations.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# The runner's own.
_RESERVED = ("OUTPUT_DIR", "SEED")


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        setting: its name.
        config, script: files.
        overrides: KEY, value, ..., without the seed and the folder.
        folder: OUTPUT_DIR.
        weights: what is evaluated; None: it trains.
    """

    setting: str
    seed: int
    config: Path
    script: Path
    overrides: tuple[str, ...]
    folder: Path
    weights: Path | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.setting}, seed {self.seed}"

    def description(self) -> dict:
        """What makes its result; two runs with the same one need not both be done."""
        return {
            "config": _shown(self.config),
            "script": _shown(self.script),
            "setting": self.setting,
            "seed": self.seed,
            "overrides": list(self.overrides),
        }


@dataclass
class Experiment:
    """An experiment's file; see the module."""

    name: str
    config: Path
    script: Path
    common: list[str]
    settings: dict[str, list[str]]
    seeds: list[int]
    evaluate: dict[str, dict[str, list[str]]]

    @classmethod
    def read(cls, path: Path) -> "Experiment":
        """From YAML or JSON; `config` and `script` are relative to the project.

        Raises:
            UserError: it is none, or something is missing, unknown or of a wrong kind.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            # YAML's messages run over several lines.
            raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} must be a table of {', '.join(_READ)}")
        content = {"common": [], "script": "train_net.py", "evaluate": {}, **content}
        if wrong := content.keys() ^ _READ.keys():
            raise UserError(
                f"{path}: {min(wrong, key=str)!r} is unknown or missing; it needs "
                f"{', '.join(_READ)}"
            )
        try:
            experiment = cls(**{key: read(content[key], key) for key, read in _READ.items()})
            if unknown := experiment.evaluate.keys() - experiment.settings.keys():
                raise UserError(f"evaluate.{min(unknown)} is not one of the settings")
            return experiment
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def jobs(self, output: Path) -> Iterator[Job]:
        """All runs, seed by seed, so that every setting has a first result early."""
        for seed in self.seeds:
            for setting, overrides in self.settings.items():
                folder = output / self.name / setting / f"seed{seed}"
                both = (*self.common, *overrides)
                yield Job(setting, seed, self.config, self.script, both, folder)

    def evaluations(self, output: Path) -> Iterator[Job]:
        """Runs that judge what `jobs` trained, as settings of the name SETTING/EVALUATION."""
        for job in self.jobs(output):
            for name, overrides in self.evaluate.get(job.setting, {}).items():
                yield replace(
                    job,
                    setting=f"{job.setting}/{name}",
                    overrides=(*job.overrides, *overrides),
                    folder=job.folder / "evaluate" / name,
                    weights=job.folder / "model_final.pth",
                )


def check_overrides(experiment: Experiment) -> None:
    """Raise UserError, with the setting, where the config does not take the overrides."""
    # With it comes Detectron2, which reading alone does not need.
    from rankseg_m2f.config.lookup import read_config

    once = replace(experiment, seeds=experiment.seeds[:1])
    for job in (*once.jobs(Path()), *once.evaluations(Path())):
        try:
            read_config(job.config, job.overrides)
        except UserError as error:
            raise UserError(f"setting {job.setting!r}: {error}") from error


def _shown(path: Path) -> str:
    """Relative to the project where it is a part of it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _name(value: object, key: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise UserError(f"{key} {value!r} must be letters, digits, '.', '_', '-': a folder's name")
    return value


def _file(value: object, key: str) -> Path:
    path = ROOT / str(value)
    if not isinstance(value, str) or not path.is_file():
        raise UserError(f"{key} {value!r} is not a file of the project")
    return path


def _overrides(value: object, key: str) -> list[str]:
    if not isinstance(value, list) or len(value) % 2:
        raise UserError(f"{key} must be a list of KEY, value, KEY, value, ...; got {value!r}")
    for name in value[::2]:
        if name in _RESERVED:
            raise UserError(f"{key} sets {name}, which the runner sets for each run")
        if not isinstance(name, str):
            raise UserError(f"{key}: {name!r} is not a config key")
    return [str(word) for word in value]


def _settings(value: object, key: str) -> dict[str, list[str]]:
    if not isinstance(value, dict) or not value:
        raise UserError(f"{key} must be a table of name: [KEY, value, ...]; got {value!r}")
    return {_name(name, key): _setting(o, f"{key}.{name}") for name, o in value.items()}


def _setting(value: object, key: str) -> list[str]:
    """Overrides as a list, or as the name of a row of the ablations."""
    if not isinstance(value, str):
        return _overrides(value, key)
    parts = json.loads(_ABLATIONS.read_text(encoding="utf-8"))
    rows = {name: overrides for part in parts.values() for name, overrides in part.items()}
    if value not in rows:
        raise UserError(f"{key}: configs/ablations.json has no row {value!r}: {', '.join(rows)}")
    return rows[value]


def _evaluate(value: object, key: str) -> dict[str, dict[str, list[str]]]:
    if not isinstance(value, dict):
        raise UserError(f"{key} must be a table of setting: {{name: [KEY, ...]}}; got {value!r}")
    return {str(setting): _settings(table, f"{key}.{setting}") for setting, table in value.items()}


def _seeds(value: object, key: str) -> list[int]:
    good = isinstance(value, list) and value and all(type(s) is int and s >= 0 for s in value)
    if not good or len(set(value)) < len(value):
        raise UserError(f"{key} must be different numbers from 0 on; got {value!r}")
    return value


_READ: dict[str, Callable] = {
    "name": _name,
    "config": _file,
    "script": _file,
    "common": _overrides,
    "settings": _settings,
    "seeds": _seeds,
    "evaluate": _evaluate,
}
