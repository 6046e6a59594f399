"""Chunks of a store's job, done in this process or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from approx.tables import jobs
from approx.tables.batches import Batches
from approx.tables.plan import Options, Plan

LOOKED_AT = 8
"""Latents by which a plan is made."""

_TRIAL = 2**24  # bytes of latents that a trial may read


class Work(NamedTuple):
    """What became of a chunk.

    Attributes
    ----------
    rows : int
        Of the chunk.
    before : str or None
        Digest of the rows that were known.
    digest : str
        Of all its latents.
    columns, details : dict or None
        Of all its rows, see `jobs.work`; None if all of them were known.
    """

    rows: int
    before: str | None
    digest: str
    columns: dict[str, NDArray[Any]] | None = None
    details: dict[str, Any] | None = None


class Job(Protocol):
    """Latents and a decoder, wherever they are."""

    def begin(self, chunk: int | Literal["auto"]) -> dict[str, Any]:
        """Return the header of a new store, after a trial."""
        ...

    def asked(self, header: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a header must have; refuse another decoder than the header's."""
        ...

    def work(
        self,
        header: Mapping[str, Any],
        known: Mapping[int, int],
        write: Callable[[int, Work], object],
        told: Callable[[int], object],
    ) -> int:
        """Do all chunks, and return the number of latents.

        `known` are the rows of those that are done, which are looked at. `write` gets a chunk's
        number and what became of it; `told` the number of latents as they are done.
        """
        ...


class _Here:
    """A job of this process, with its plan once there is one."""

    def __init__(self, decoder: Callable[[Tensor], Any], source: Batches, options: Options) -> None:
        self.decoder, self.source, self.options = decoder, source, options
        self.plan: Plan | None = None

    def begin(self, chunk: int | Literal["auto"]) -> dict[str, Any]:
        first = peek(self.source, self.options)
        header, self.plan = jobs.begin(self.decoder, first, self.options, chunk=chunk)
        return header

    def asked(self, header: Mapping[str, Any]) -> dict[str, Any]:
        return jobs.compared(self.decoder, peek(self.source), self.options, header)

    def work(
        self,
        header: Mapping[str, Any],
        known: Mapping[int, int],
        write: Callable[[int, Work], object],
        told: Callable[[int], object],
    ) -> int:
        first, size, count = peek(self.source), int(header["chunk"]), 0
        while (z := self.source.take(size)) is not None:
            number, start = count // size, count
            count += len(z)
            have, before = known.get(number), None
            if have is not None:
                before = jobs.latents_digest(z[:have], self.decoder, start)
            if have == len(z):
                told(len(z))
                write(number, Work(len(z), before, ""))
                continue
            if self.plan is None:
                self.plan = jobs.planned(self.decoder, first, self.options, header)
            found = jobs.work(self.plan, z, start, told)
            key = jobs.latents_digest(z, self.decoder, start)
            write(number, Work(len(z), before, key, *found))
        if self.plan is not None:
            self.plan.decoder.check_rows(count)
        return count


@contextmanager
def here(decoder: Callable[[Tensor], Any], source: Batches, options: Options) -> Iterator[Job]:
    """Do a job in this process."""
    yield _Here(decoder, source, options)


def peek(source: Batches, options: Options | None = None) -> Tensor:
    """Return the first latents without taking them: with options as many as a trial may need."""
    first = source.take(LOOKED_AT)
    if first is None:
        raise ValueError("Expected at least one latent, got an empty iterable: give some.")
    source.put_back(first)
    if options is None:
        return first
    first = source.take(fitting(first, options))
    assert first is not None
    source.put_back(first)
    return first


def fitting(first: Any, options: Options) -> int:
    """Return how many of an array's latents a trial may need."""
    wanted = jobs.TRIED if options.batch == "auto" else options.batch
    each = max(1, int(np.prod(first.shape[1:])) * first.dtype.itemsize)
    return max(LOOKED_AT, min(wanted, _TRIAL // each))
