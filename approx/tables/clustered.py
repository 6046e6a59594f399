"""A store's job on the workers of a cluster, or piece by piece here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from approx import cluster
from approx.decoder import as_latents, free_bytes, moved, opened
from approx.tables import jobs
from approx.tables.batches import Batches
from approx.tables.chunks import LOOKED_AT, Job, Work, fitting, peek
from approx.tables.plan import Options, Plan
from approx.tables.sources import Encoder, Source

if TYPE_CHECKING:
    from distributed import Client


def gpu(rank: int, count: int | None = None) -> torch.device:
    """Return the GPU of a worker by its number on its host, the CPU where there is none.

    Parameters
    ----------
    rank : int
        Where dask-cuda has put a worker's own GPU first, 0.
    count : int, optional
        GPUs of CUDA that the worker sees; by default torch's count.

    Examples
    --------
    >>> from approx.tables.clustered import gpu
    >>> gpu(1, 4), gpu(5, 4)
    (device(type='cuda', index=1), device(type='cuda', index=1))
    """
    seen = torch.cuda.device_count() if count is None else count
    if seen:
        return torch.device("cuda", rank % seen)
    return torch.device("mps" if count is None and torch.backends.mps.is_available() else "cpu")


@dataclass(frozen=True, eq=False)
class Setup:
    """What is sent once to every worker, and there returns the function of a piece."""

    decoder: Any
    encode: Any
    options: Options

    def __call__(
        self, *, address: str, threads: int, memory: int | None, rank: int
    ) -> Callable[[int, Any], Any]:
        """Open decoder and encoder on the worker's device."""
        device = gpu(rank)
        around = self.options.neighbourhood
        if around is not None and isinstance(around[0], Tensor):
            around = (around[0].to(device), around[1])
        # what was sent is the worker's own, and may be moved in place
        decoder = moved(opened(self.decoder), device)
        encode = None if self.encode is None else moved(opened(self.encode), device)
        options = replace(self.options, neighbourhood=around, progress=False)
        return Site(decoder, encode, options, device, threads, memory)


class Site:
    """What does the pieces of a job, with a decoder that is there and a plan once it is needed."""

    def __init__(
        self,
        decoder: Callable[[Tensor], Any],
        encode: Encoder | None,
        options: Options,
        device: torch.device | None = None,
        threads: int | None = None,
        memory: int | None = None,
    ) -> None:
        self.decoder, self.encode, self.options, self.device = decoder, encode, options, device
        self.threads, self.memory = threads, memory
        self.plan: Plan | None = None

    def __call__(self, number: int, payload: Any) -> Any:
        """Do one of `begin`, `asked` and `work`."""
        name, *arguments = payload
        before = torch.get_num_threads()
        try:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            return getattr(self, name)(*arguments)
        finally:
            torch.set_num_threads(before)

    def begin(self, first: Any, chunk: int | Literal["auto"]) -> dict[str, Any]:
        """Return the header of a new store."""
        z = self._latents(first)
        header, self.plan = jobs.begin(self.decoder, z, self.options, chunk=chunk, free=self._free)
        return header

    def asked(self, first: Any, header: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a header must have, of a decoder that is the header's."""
        return jobs.compared(self.decoder, self._latents(first), self.options, header)

    def work(
        self, header: Mapping[str, Any], first: Any, start: int, rows: int, known: int, part: Any
    ) -> Work:
        """Do a chunk, of which some rows or all may be known."""
        told = getattr(part, "digest", lambda rows: None)
        before = told(known) if known else None
        if before is not None and known == rows:
            return Work(rows, before, before)
        z = self._latents(part)
        if known and before is None:
            before = jobs.latents_digest(z[:known], self.decoder, start)
        key = told(rows) or jobs.latents_digest(z, self.decoder, start)
        if known == rows:
            return Work(rows, before, key)
        if self.plan is None:
            at_first = self._latents(first)
            jobs.verify(self.decoder, at_first, self.options, header)  # compared on another worker
            self.plan = jobs.planned(self.decoder, at_first, self.options, header)
        return Work(rows, before, key, *jobs.work(self.plan, z, start))

    def _latents(self, part: Any) -> Tensor:
        z = part.read(self.encode) if hasattr(part, "read") else part
        # as NumPy's are taken where there is no cluster: in the decoder's dtype
        z = z if isinstance(z, Tensor) else as_latents(np.asarray(z), self.decoder)
        return z if self.device is None else z.to(self.device)

    def _free(self, device: torch.device) -> int | None:
        """Return what is free on a device: on the CPU no more than is the worker's."""
        free = free_bytes(device)
        if device.type != "cpu" or self.memory is None:
            return free
        import psutil

        own = max(0, self.memory - psutil.Process().memory_info().rss)
        return own if free is None else min(free, own)


class _There(NamedTuple):
    """A job whose pieces are done by `one` and `each`."""

    source: Source | Batches
    options: Options
    one: Callable[[Any], Any]
    each: Callable[[Iterable[tuple[int, Any]], Callable[[int, Work], object]], None]

    def begin(self, chunk: int | Literal["auto"]) -> dict[str, Any]:
        return self.one(("begin", self._first(self.options), chunk))

    def asked(self, header: Mapping[str, Any]) -> dict[str, Any]:
        return self.one(("asked", self._first(), header))

    def work(
        self,
        header: Mapping[str, Any],
        known: Mapping[int, int],
        write: Callable[[int, Work], object],
        told: Callable[[int], object],
    ) -> int:
        first, size, count = self._first(), int(header["chunk"]), 0

        def pieces() -> Iterator[tuple[int, Any]]:
            nonlocal count
            for number, (rows, part) in enumerate(self._parts(size)):
                count += rows
                have = min(known.get(number, 0), rows)
                yield number, ("work", dict(header), first, number * size, rows, have, part)

        def done(number: int, found: Work) -> None:
            write(number, found)
            told(found.rows)

        self.each(pieces(), done)
        return count

    def _parts(self, size: int) -> Iterator[tuple[int, Any]]:
        """Yield the number of latents of each chunk, and what is sent of it."""
        if isinstance(self.source, Batches):
            while (z := self.source.take(size)) is not None:
                yield len(z), z.cpu()
            return
        count = self.source.length
        for start in range(0, count, size):
            stop = min(start + size, count)
            yield stop - start, self.source.part(start, stop)

    def _first(self, options: Options | None = None) -> Any:
        """Return the first latents, with options as many as a trial may need."""
        if isinstance(self.source, Batches):
            return peek(self.source, options).cpu()
        first = self.source.first(LOOKED_AT)
        if options is not None and isinstance(first, Tensor | np.ndarray):
            return self.source.first(fitting(first, options))
        return first


@contextmanager
def on_workers(
    client: Client, decoder: Any, source: Source | Batches, encode: Any, options: Options
) -> Iterator[Job]:
    """Do a job on the workers of a client."""
    with cluster.crew(client, Setup(decoder, encode, options), label="describe") as team:
        yield _There(
            source,
            options,
            lambda payload: cluster.one(team, payload),
            lambda pieces, write: cluster.each(team, pieces, write, doubt=_doubt),
        )


@contextmanager
def by_parts(
    decoder: Callable[[Tensor], Any], source: Source, encode: Encoder, options: Options
) -> Iterator[Job]:
    """Do a job in this process, with latents that are read part by part."""
    site = Site(decoder, encode, options)

    def each(pieces: Iterable[tuple[int, Any]], write: Callable[[int, Work], object]) -> None:
        for number, payload in pieces:
            write(number, site(number, payload))

    yield _There(source, options, lambda payload: site(0, payload), each)


def _doubt(found: Work) -> str:
    """Say why a chunk may be its worker's fault: with on_error="nan", all of it failed."""
    if not isinstance(found, Work) or found.columns is None or found.details is None:
        return ""
    failed, columns = found.details["failures"], found.columns
    if len(failed) < len(columns["psi"]):
        return ""
    return f"Every latent of a chunk failed, the first with: {failed[0][1]}"
