"""Numbers below 2^-1022, which a processor can be told to take for zero.

`torch.set_flush_denormal(True)` does so, and so does a library built with -ffast-math when it is
loaded. Signs and bounds on rounding errors are wrong then. The setting belongs to a thread; a new
thread starts with that of the one that makes it, so that torch's own threads may keep it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SMALLEST_NORMAL = 2.0**-1022
_PARALLEL_AT_LEAST = 2**16  # numbers for each thread, for torch to start all of them


@contextmanager
def denormals(*, all_threads: bool = False) -> Iterator[None]:
    """Compute with numbers below 2^-1022 for the duration, then restore the caller's setting.

    Use it in `with`, or as a decorator.

    Torch's threads cannot be set: where they flush, torch uses the calling thread alone. With
    ``all_threads`` they are looked at even if the calling thread does not flush.

    Raises
    ------
    RuntimeError
        The processor goes on flushing.
    """
    flushes = _flushes()
    if not (flushes or all_threads):
        yield
        return
    if flushes:
        torch.set_flush_denormal(False)
    threads = torch.get_num_threads()
    try:
        if _flushes():
            raise RuntimeError(
                "Expected a processor that computes with numbers below 2^-1022, got one that takes "
                "them for zero. Call torch.set_flush_denormal(False), or do not load the library "
                "that set this (built with -ffast-math)."
            )
        if threads_flush(threads):
            torch.set_num_threads(1)
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if flushes:
            torch.set_flush_denormal(True)


def _flushes() -> bool:
    """Whether the calling thread takes small results, or small operands, for zero."""
    half = _SMALLEST_NORMAL * 0.5
    return half * 2.0 != _SMALLEST_NORMAL


def threads_flush(threads: int) -> bool:
    """Whether any of torch's threads does."""
    if threads == 1:
        return False
    numbers = torch.full((threads * _PARALLEL_AT_LEAST,), _SMALLEST_NORMAL, dtype=torch.float64)
    return bool((numbers * 0.5 * 2.0 != _SMALLEST_NORMAL).any())
