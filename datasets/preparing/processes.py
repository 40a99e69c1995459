"""Work spread over processes, with a progress bar."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tqdm import tqdm

# Items handed out at once: few, so that the bar moves and Ctrl-C need not wait long.
_CHUNK = 4


def in_processes(
    function: Callable[[Any], Any], items: Sequence, jobs: int | None, desc: str, unit: str
) -> Iterator[Any]:
    """Results of `function` for each item, in this order.

    Args:
        function: must be picklable if `jobs` is not 1.
        jobs: processes; None means one per CPU.
        desc, unit: of the progress bar.
    """
    jobs = jobs or os.cpu_count() or 1
    if jobs == 1:
        yield from tqdm(map(function, items), total=len(items), desc=desc, unit=unit)
        return
    # Ctrl-C is for the process that hands out the work; the others end what they are at.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(jobs, initializer=signal.signal, initargs=ignore) as pool:
        found = pool.map(function, items, chunksize=_CHUNK)
        yield from tqdm(found, total=len(items), desc=desc, unit=unit)
