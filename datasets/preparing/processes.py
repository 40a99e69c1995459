"""Work spread over processes, with a progress bar."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tqdm import tqdm


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
    with ProcessPoolExecutor(jobs) as pool:
        found = pool.map(function, items, chunksize=max(1, min(32, len(items) // jobs)))
        yield from tqdm(found, total=len(items), desc=desc, unit=unit)
