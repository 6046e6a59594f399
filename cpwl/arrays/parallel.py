"""A kernel that releases the GIL, run on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


# Handing a range to a thread costs some 0.1 ms, more on a busy machine.
_LEAST_NANOSECONDS = 500_000


def available_cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(
    pool: ThreadPoolExecutor,
    work: Callable[[int, int], T],
    weight: int | NDArray[np.integer],
    nanoseconds: float,
) -> list[T]:
    """Call ``work(start, stop)`` on disjoint ranges that together cover all items.

    Parameters
    ----------
    pool : ThreadPoolExecutor
        With a thread for every core but the caller's, which works as well: there is one range a
        core of even work, and four of uneven. The caller does what no thread has begun, from the
        last range on, so that it never waits for a thread to wake up.
    work : callable
        Must write to places that depend on the items alone.
    weight : int or (n,) array
        The number of items, or the weight of each if they are uneven.
    nanoseconds : float
        What an item of weight 1 costs, roughly: little work is done at once, by the caller.
    """
    n = weight if isinstance(weight, int) else len(weight)
    total = n if isinstance(weight, int) else int(weight.sum())
    cores = available_cores()
    shares = cores * (1 if isinstance(weight, int) else 4)
    ranges = min(n, int(total * nanoseconds) // _LEAST_NANOSECONDS + 1, shares)
    if ranges <= 1 or cores == 1:
        return [work(0, n)]
    sums = np.arange(1, n + 1) if isinstance(weight, int) else np.cumsum(weight)
    inner = np.searchsorted(sums, np.linspace(0, total, ranges + 1)[1:-1])
    spans = [(a, b) for a, b in pairwise([0, *inner.tolist(), n]) if b > a]
    jobs = [pool.submit(work, *span) for span in spans]
    mine = {
        job: work(*span)
        for job, span in zip(reversed(jobs), reversed(spans), strict=True)
        if job.cancel()
    }
    return [mine[job] if job in mine else job.result() for job in jobs]
