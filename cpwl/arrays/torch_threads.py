"""Torch's own threads, kept for large work.

Torch's threads spin for some 10 ms behind each operation that they share, on cores that other
threads of the process then lack. An operation of less than that is done sooner by the caller alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache

import torch

from cpwl.arrays.small_numbers import threads_flush

_LEAST_MULTIPLICATIONS = 2**28  # some 15 ms of one core


@contextmanager
def torch_alone(
    pool: ThreadPoolExecutor, *, wanted: bool = True
) -> Iterator[Callable[[int], AbstractContextManager[object]]]:
    """Have torch use the calling thread alone, then restore the caller's number of threads.

    Unless that is ``wanted``, nothing changes.

    Yields a context manager for work of so many multiplications. Where that is large, torch has its
    threads for the duration, if none of them takes numbers below 2^-1022 for zero.

    Torch's number of threads belongs to a thread, but a new thread starts with the number that was
    set last, in whatever thread: one of the ``pool`` therefore sets the caller's number again.
    """
    threads = torch.get_num_threads() if wanted else 1

    def limit() -> None:
        if threads > 1:
            torch.set_num_threads(1)
            pool.submit(torch.set_num_threads, threads)

    @cache
    def usable() -> bool:
        return not threads_flush(threads)

    @contextmanager
    def large(multiplications: int) -> Iterator[None]:
        if threads == 1 or multiplications < _LEAST_MULTIPLICATIONS:
            yield
            return
        torch.set_num_threads(threads)
        try:
            if not usable():
                limit()
            yield
        finally:
            limit()

    try:
        limit()
        yield large
    finally:
        if threads > 1:
            torch.set_num_threads(threads)
