"""What our benchmarks share: machine, time, peak memory, a process for each measurement."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from rankseg_m2f.doctor import cpu_name


def machine(device: str) -> str:
    """What the figures were taken on."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def timed(call: Callable[[], None], device: str) -> float:
    """Seconds of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(device: str) -> int:
    """Most memory held so far: the GPU's in tensors, else all of this process (Linux alone)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _process_bytes("VmHWM")


def held_bytes(device: str) -> int:
    """Memory held now, counted as `peak_bytes` does."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return _process_bytes("VmRSS")


def in_process(script: str, *arguments: object) -> dict:
    """What `script` prints as its last line, JSON, when run in a fresh interpreter.

    Raises:
        RuntimeError: it failed; with the last of what it said.
    """
    command = [sys.executable, "-W", "ignore", script, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        # No words at all: the system ended it, most often for want of memory.
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{' '.join(command[3:])}: {said[0]}")
    return json.loads(done.stdout.splitlines()[-1])


def _process_bytes(field: str) -> int:
    # Not getrusage: its maximum counts the process this one was forked from, too.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith(field))
    return 1024 * int(kilobytes)
