"""Running a kernel that releases the GIL on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


# Ranges of fewer items cost more to hand out than to work off.
_FEWEST = 64


def available_cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(
    pool: ThreadPoolExecutor, work: Callable[[int, int], T], weight: int | NDArray[np.integer]
) -> list[T]:
    """Call ``work(start, stop)`` on disjoint ranges that together cover all items.

    Parameters
    ----------
    pool : ThreadPoolExecutor
        With a thread for every core. Each gets four ranges or so, that uneven work may even out.
    work : callable
        Must write to places that depend on the items alone.
    weight : int or (n,) array
        The number of items, or the work expected of each.
    """
    n = weight if isinstance(weight, int) else len(weight)
    ranges = min(-(-n // _FEWEST), 4 * available_cores())
    if isinstance(weight, int):
        cuts = np.linspace(0, n, ranges + 1).astype(np.int64)
    else:
        total = np.cumsum(weight)
        cuts = np.searchsorted(total, np.linspace(0, total[-1] if n else 0, ranges + 1)[1:-1])
        cuts = np.concatenate([[0], cuts, [n]])
    jobs = [pool.submit(work, int(a), int(b)) for a, b in pairwise(cuts) if b > a]
    return [job.result() for job in jobs]
