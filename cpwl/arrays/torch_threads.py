"""Torch's own threads, kept for large work.

Torch's threads spin for some 10 ms behind each operation that they share, on cores that other
threads of the process then lack. An operation of less than that is done sooner by the caller alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from threading import Thread

import torch

from cpwl.arrays.small_numbers import threads_flush

_LEAST_MULTIPLICATIONS = 2**28  # some 15 ms of one core


class TorchThreads:
    """Who computes with torch's threads, as many as the caller has.

    Torch's number of threads belongs to a thread, but a new thread starts with the number that was
    set last, in whatever thread: one more thread therefore sets the caller's number again.
    """

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self._setting: list[Thread] = []

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have torch use the calling thread alone, then restore its number of threads."""
        with self._turned(1):
            yield

    @contextmanager
    def large(self, multiplications: float) -> Iterator[None]:
        """Have torch use its threads for work of so many multiplications if that is large.

        That is, if none of them takes numbers below 2^-1022 for zero.
        """
        threads = torch.get_num_threads()
        if multiplications >= _LEAST_MULTIPLICATIONS and self._usable:
            threads = self._threads
        with self._turned(threads):
            yield

    def leave(self) -> None:
        """Have torch use the calling thread alone from now on; for a new thread of a pool."""
        if torch.get_num_threads() > 1:  # asked first, or torch takes the number that is set last
            self._turn(1)

    @contextmanager
    def _turned(self, threads: int) -> Iterator[None]:
        before = torch.get_num_threads()
        if threads == before:
            yield
            return
        self._turn(threads)
        try:
            yield
        finally:
            self._turn(before)

    def _turn(self, threads: int) -> None:
        if threads == self._threads:  # what others have yet to set is the same number
            while self._setting:
                self._setting.pop().join()
        torch.set_num_threads(threads)
        if threads != self._threads:
            setting = Thread(target=torch.set_num_threads, args=(self._threads,))
            setting.start()
            self._setting.append(setting)

    @cached_property
    def _usable(self) -> bool:
        with self._turned(self._threads):
            return not threads_flush(self._threads)
