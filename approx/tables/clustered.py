"""A store's job on the workers of a cluster, or piece by piece here."""

from __future__ import annotations

import ctypes
import os
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


_CHUNKS = 4  # of "auto" for each worker at least


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
        _keep_freed_memory()
        device = gpu(rank)
        around = self.options.neighbourhood
        if around is not None and isinstance(around[0], Tensor):
            around = (around[0].to(device), around[1])
        # what was sent is the worker's own, and may be moved in place
        decoder = moved(opened(self.decoder), device)
        encode = None if self.encode is None else moved(opened(self.encode), device)
        options = replace(self.options, neighbourhood=around, progress=False)
        return Site(decoder, encode, options, device, threads, memory)


def _keep_freed_memory() -> None:
    """Set glibc's thresholds as they would be without Dask's.

    Dask starts workers with MALLOC_TRIM_THRESHOLD_, so that glibc gives every tensor that is freed
    back to the system, and clears its pages again for the next one: 1.2 to 1.4 times the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None and "MALLOC_TRIM_THRESHOLD_" in os.environ:
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: where it ends by itself once large blocks are freed
        mallopt(-1, 2**26)  # M_TRIM_THRESHOLD


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

    def begin(self, first: Any, chunk: int | Literal["auto"], rows: int) -> dict[str, Any]:
        """Return the header of a new store; `rows` of a chunk of "auto" at the most."""
        z, key = self._latents(first), _told(first, 1)
        header, self.plan = jobs.begin(
            self.decoder, z, self.options, key=key, chunk=chunk, rows=rows, free=self._free
        )
        return header

    def asked(self, first: Any, header: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a header must have, of a decoder that is the header's."""
        z, key = self._latents(first), _told(first, 1)
        return jobs.compared(self.decoder, z, self.options, header, key)

    def work(
        self, header: Mapping[str, Any], first: Any, start: int, rows: int, known: int, part: Any
    ) -> Work:
        """Do a chunk, of which some rows or all may be known."""
        before = _told(part, known) if known else None
        if before is not None and known == rows:
            return Work(rows, before, before)
        z = self._latents(part)
        if known and before is None:
            before = jobs.latents_digest(z[:known], self.decoder, start)
        key = _told(part, rows) or jobs.latents_digest(z, self.decoder, start)
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
    workers: int
    one: Callable[[Any], Any]
    each: Callable[[Iterable[tuple[int, Any]], Callable[[int, Work], object]], None]

    def begin(self, chunk: int | Literal["auto"]) -> dict[str, Any]:
        rows = jobs.ROWS
        if not isinstance(self.source, Batches):  # so that all have something to do until the end
            rows = min(rows, max(1, self.source.length // (_CHUNKS * self.workers)))
        return self.one(("begin", self._first(self.options), chunk, rows))

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
        workers: Any = client.nthreads()
        yield _There(
            source,
            options,
            max(1, len(workers)),
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

    yield _There(source, options, 1, lambda payload: site(0, payload), each)


def _told(part: Any, rows: int) -> str | None:
    """Return the digest of the first rows of a part that has one of its own, such as of files."""
    return part.digest(rows) if hasattr(part, "digest") else None


def _doubt(found: Work) -> str:
    """Say why a chunk may be its worker's fault: with on_error="nan", all of it failed."""
    if not isinstance(found, Work) or found.columns is None or found.details is None:
        return ""
    failed, columns = found.details["failures"], found.columns
    if len(failed) < len(columns["psi"]):
        return ""
    return f"Every latent of a chunk failed, the first with: {failed[0][1]}"
