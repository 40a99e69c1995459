"""Train every setting of an experiment with every seed, on all devices there are.

    python research/run_seeds.py experiment.yaml [--output output] [--jobs 2]

What the file holds is at the top of tools/experiment.py. Each run is a process of train_net.py in
OUTPUT/NAME/SETTING/seedN, with its log in run.log; one at a time on each GPU, or --jobs at a time
on the CPU. Started again, finished runs are skipped and half-done ones go on. A run that fails
does not stop the others. Then finished runs are judged again, where the file says `evaluate`, in
OUTPUT/NAME/SETTING/seedN/evaluate/EVALUATION. results.json in a run's folder says that it is
finished: metrics, seed, config, overrides, time, device and revision. results.csv of the experiment
has means and standard deviations over seeds; tools/compare_runs.py says which differences mean
something.
"""

import argparse
import csv
import fcntl
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from experiment import ROOT, Experiment, Job, check_overrides
from tabulate import tabulate

from rankseg_m2f.doctor import cpu_name
from rankseg_m2f.engine.outputs import check_folder
from rankseg_m2f.errors import UserError, add_debug_flag, one_line_errors
from rankseg_m2f.files import replacing
from rankseg_m2f.revision import revision

_RESULT, _STARTED, _LOG, _LOCK = "results.json", "run.json", "run.log", ".lock"
_POLL = 0.1  # seconds


def main(argv: list[str] | None = None) -> str | None:
    """Run all; returns how many failed, if any did."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", type=Path, help="YAML or JSON")
    parser.add_argument("--output", type=Path, default=Path("output"), metavar="FOLDER")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time on the CPU")
    parser.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    with one_line_errors("run_seeds"):
        check_folder(arguments.output, "--output")
        experiment = Experiment.read(arguments.experiment)
        check_overrides(experiment)
        slots = devices(arguments.jobs, arguments.cpu)
        output = arguments.output.resolve()
        jobs = [*experiment.jobs(output), *experiment.evaluations(output)]
        failures = run_jobs(jobs, slots)
        done = [job for job in jobs if finished(job)]
        if done:
            collect(done, arguments.output / experiment.name / "results.csv")
    for job, reason in failures.items():
        print(f"FAILED: {job.name}: {reason}")
    return f"run_seeds: {len(failures)} of {len(jobs)} runs failed" if failures else None


def run_jobs(jobs: Sequence[Job], slots: Sequence[str]) -> dict[Job, str]:
    """Run those that are not finished, evaluations last; the reasons of those that failed."""
    waiting = [job for job in jobs if not finished(job)]
    print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished; devices: {slots}")
    failures = Queue([job for job in waiting if not job.weights], slots).run()
    untrained = {job.folder for job in failures}
    ready = [job for job in waiting if job.weights and job.weights.parent not in untrained]
    return failures | Queue(ready, slots).run()


def devices(jobs: int, cpu: bool = False) -> list[str]:
    """A slot for each run at a time: CUDA_VISIBLE_DEVICES of the run, "" for the CPU.

    Raises:
        UserError: fewer than 1 job.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs} must be 1 or more")
    import torch

    count = 0 if cpu else torch.cuda.device_count()
    # A scheduler may have given us some of the GPUs only.
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(i) for i in range(count)]
    return names[:count] or [""] * jobs


def finished(job: Job) -> bool:
    """Whether the run's result is there.

    Raises:
        UserError: that of another run is, or was begun.
    """
    for name in (_RESULT, _STARTED):
        path = job.folder / name
        if path.is_file():
            there = read_json(path)
            changed = [k for k, v in job.description().items() if there.get(k) != v]
            if changed:
                raise UserError(
                    f"{path} is of another run ({', '.join(changed)} changed): choose another name "
                    f"for the experiment or setting, or remove {job.folder}"
                )
            if name == _RESULT:
                return True
    return False


def read_json(path: Path) -> dict:
    """
    Raises:
        UserError: broken, as on a disk that was full.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): remove it to repeat the run") from error


@dataclass
class Run:
    """A job in progress."""

    job: Job
    process: subprocess.Popen
    started: float
    resumed: bool
    lock: IO


class Queue:
    """Runs jobs, as many at a time as there are slots."""

    def __init__(self, jobs: Sequence[Job], slots: Sequence[str]):
        """See `devices` for slots."""
        self.waiting = list(jobs)
        self.total = len(jobs)
        self.slots = list(slots)
        self.running: dict[int, Run] = {}
        self.seconds: list[float] = []
        self.failures: dict[Job, str] = {}

    def run(self) -> dict[Job, str]:
        """Run all; the reasons of those that failed."""
        try:
            while self.waiting or self.running:
                for slot in set(range(len(self.slots))) - set(self.running):
                    if self.waiting:
                        self._start(slot, self.waiting.pop(0))
                for slot, run in list(self.running.items()):
                    if run.process.poll() is not None:
                        del self.running[slot]
                        self._end(slot, run)
                time.sleep(_POLL)
        finally:
            for run in self.running.values():
                run.process.terminate()
            for run in self.running.values():
                run.process.wait()
        return self.failures

    def _start(self, slot: int, job: Job) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        lock = (job.folder / _LOCK).open("w", encoding="utf-8")
        try:
            # The run inherits it: one that outlives a killed runner is not started twice.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            self._fail(job, f"another process works in {job.folder}")
            return
        with replacing(job.folder / _STARTED) as path:
            path.write_text(json.dumps(job.description(), indent=1), encoding="utf-8")
        device = self.slots[slot]
        resumed = (job.folder / "last_checkpoint").is_file()
        with (job.folder / _LOG).open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command(job, device),
                cwd=ROOT,
                env=environment(device, len(self.slots)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
            )
        self.running[slot] = Run(job, process, time.monotonic(), resumed, lock)
        self._say(f"{'resumed' if resumed else 'started'}: {job.name}{_on(device)}")

    def _end(self, slot: int, run: Run) -> None:
        seconds = time.monotonic() - run.started
        run.lock.close()
        job, code = run.job, run.process.returncode
        metrics = {} if code else read_metrics(job.folder)
        if not metrics:
            why = f"exit code {code}" if code else "no metrics, is DATASETS.TEST empty?"
            self._fail(job, f"{why}; see {job.folder / _LOG}")
            return
        self.seconds.append(seconds)
        result = {
            **job.description(),
            "metrics": metrics,
            # Of a resumed run, those since then.
            "wall_seconds": round(seconds, 1),
            "resumed": run.resumed,
            "device": device_name(self.slots[slot]),
            "revision": revision(),
        }
        with replacing(job.folder / _RESULT) as path:
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        self._say(f"finished: {job.name} in {seconds / 60:.1f} min")

    def _fail(self, job: Job, reason: str) -> None:
        self.failures[job] = reason
        self._say(f"failed: {job.name}: {reason}")

    def _say(self, text: str) -> None:
        left = len(self.waiting) + len(self.running)
        eta = ""
        if self.seconds and left:
            minutes = statistics.mean(self.seconds) * left / len(self.slots) / 60
            eta = f", about {minutes:.0f} min left"
        print(f"[{self.total - left}/{self.total}{eta}] {text}", flush=True)


def command(job: Job, device: str) -> list[str]:
    """The run's command line; --resume starts anew where no checkpoint at."""
    words = [sys.executable, str(job.script), "--config-file", str(job.config)]
    words += ["--eval-only" if job.weights else "--resume", *job.overrides]
    words += ["SEED", str(job.seed), "OUTPUT_DIR", str(job.folder)]
    words += ["MODEL.WEIGHTS", str(job.weights)] if job.weights else []
    return words if device else [*words, "MODEL.DEVICE", "cpu"]


def environment(device: str, slots: int) -> dict[str, str]:
    """The run's environment: one GPU, or its share of the cores unless the caller chose."""
    own = {"CUDA_VISIBLE_DEVICES": device}
    if not device and "OMP_NUM_THREADS" not in os.environ:
        own["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // slots))
    return {**os.environ, **own}


def read_metrics(folder: Path) -> dict[str, dict]:
    """{dataset: {task: {metric: value}}} of the final evaluation."""
    paths = sorted(folder.glob("inference/*/results.json"))
    return {path.parent.name: read_json(path) for path in paths}


def device_name(device: str) -> str:
    """Of the GPU or CPU; asked without a CUDA context of our own, which would take its memory."""
    if not device:
        return cpu_name()
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", f"--id={device}"]
    try:
        done = subprocess.run(words, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"GPU {device}"
    return done.stdout.strip() or f"GPU {device}"


def collect(jobs: Sequence[Job], path: Path) -> None:
    """Write mean and deviation over seeds of each setting's metrics, and print some of them."""
    values: dict[tuple[str, str], list[float]] = {}
    for job in jobs:
        result = read_json(job.folder / _RESULT)
        for dataset, tasks in result["metrics"].items():
            for task, metrics in tasks.items():
                for metric, value in metrics.items():
                    if "-" not in metric and value is not None:
                        key = f"{dataset}/{task}/{metric}"
                        values.setdefault((job.setting, key), []).append(value)
    header = ("setting", "metric", "mean", "std", "runs")
    rows = [
        (setting, key, statistics.mean(found), _deviation(found), len(found))
        for (setting, key), found in values.items()
    ]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    main_metrics = ("PQ", "mIoU", "AP", "VC8", "mAP", "recall")
    shown = [row for row in rows if row[1].split("/")[-1] in main_metrics]
    print(tabulate(shown, header, floatfmt=".2f"), f"all metrics: {path}", sep="\n")


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _on(device: str) -> str:
    return f" on GPU {device}" if device else ""


if __name__ == "__main__":
    # As an interrupt: the runs in progress must end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("run_seeds: terminated"))
    sys.exit(main())
