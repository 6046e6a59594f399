"""The loop of `describe`: batch after batch, until the source is empty or something stops it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from approx.complexity import knots
from approx.decoder import (
    SHARE,
    DecoderError,
    check_latents,
    first_line,
    free_bytes,
    out_of_memory,
)
from approx.operator import JacobianOperator
from approx.spectra import METHODS, Spectrum, spectrum
from approx.tables.batches import Batches
from approx.tables.plan import Plan
from approx.tables.rows import Done, Failed, join
from approx.tables.table import Descriptors

__all__ = ["DescribeError", "run"]

_MOST_LATENTS = 4096  # at a time: beyond, overhead is spread thin enough
# memory measured over memory added up: TAEF2 takes 107 to 126 MiB a latent where its tensors come
# to 54 (layouts that convolutions copy to, an allocator that does not give back)
_OVERHEAD = 2.5


class DescribeError(RuntimeError):
    """Something stopped `describe` after some latents were done.

    Attributes
    ----------
    partial : Descriptors
        The rows of the batches before it. The exception that stopped it is `__cause__`.

    Examples
    --------
    >>> import torch
    >>> from approx import DescribeError, describe
    >>> latents = [torch.ones(2), torch.tensor([1.0, torch.nan])]
    >>> try:
    ...     describe(torch.nn.Linear(2, 3), latents, neighbourhood=None, batch=1, progress=False)
    ... except DescribeError as error:
    ...     print(len(error.partial))
    1
    """

    partial: Descriptors

    def __init__(self, cause: BaseException, partial: Descriptors, store: str = "") -> None:
        n = len(partial)
        unit = "chunk" if store else "batch"
        place = f"{store} and " if store else ""
        super().__init__(
            f"{cause} [stopped in the {unit} that begins with latent {n}; the {n} before it are in "
            f'{place}the exception\'s .partial; on_error="nan" goes on past latents that fail]'
        )
        self.partial = partial


@dataclass(frozen=True, eq=False)
class _Cost:
    """What one batch took, by which the next one's size is chosen."""

    bytes_each: float
    most: int


def run(
    plan: Plan,
    source: Batches,
    total: int | None,
    *,
    free: Callable[[torch.device], int | None] = free_bytes,
    seconds: float = 5.0,
) -> Descriptors:
    """Describe batch after batch until the source is empty, or something stops it.

    `free` tells how much memory a device has left. A batch of "auto" should take `seconds`: an
    interruption loses at most these.
    """
    parts: list[Done | Failed] = []
    count = 0
    hidden = not plan.options.progress
    with tqdm(total=total, disable=hidden, unit="latent", dynamic_ncols=True) as bar:
        try:
            for found, rows in batch_by_batch(plan, source, free=free, seconds=seconds):
                parts += found
                count += rows
                bar.update(rows)
            plan.decoder.check_rows(count)
        except KeyboardInterrupt:
            if not any(isinstance(part, Done) for part in parts):
                raise
            partial = join(plan, parts, complete=False)
            warnings.warn(
                f"Interrupted after {len(partial)} latents: the table holds these and its "
                "`complete` is False; describe the others with seed=table.seed and join both "
                "with approx.concatenate.",
                RuntimeWarning,
                stacklevel=3,
            )
            return partial
        except Exception as error:
            if not any(isinstance(part, Done) for part in parts):
                raise
            raise DescribeError(error, join(plan, parts, complete=False)) from error
    return join(plan, parts, complete=True)


def batch_by_batch(
    plan: Plan,
    source: Batches,
    start: int = 0,
    *,
    free: Callable[[torch.device], int | None] = free_bytes,
    seconds: float = 5.0,
) -> Iterator[tuple[list[Done | Failed], int]]:
    """Yield the results of each batch and its number of latents; the first latent is `start`."""
    batch = plan.options.batch
    size = 1 if batch == "auto" else batch
    most = _MOST_LATENTS
    while (z := source.take(size)) is not None:
        begun = time.perf_counter()
        try:
            found = _each(plan, z, start)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or len(z) == 1:
                raise
            source.put_back(z)
            size = most = batch = (len(z) + 1) // 2
            continue
        spent = (time.perf_counter() - begun) / len(z)
        start += len(z)
        yield [part for part, _ in found], len(z)
        costs = [cost for _, cost in found if cost is not None]
        if batch == "auto" and costs:
            size = _size(costs[-1], spent, free(z.device), most, seconds)


class Trial(NamedTuple):
    """The batch that was found by trying, and what a latent of it takes."""

    batch: int
    seconds_each: float


def trial(
    plan: Plan,
    first: Tensor,
    *,
    free: Callable[[torch.device], int | None] = free_bytes,
) -> Trial:
    """Describe some of the first latents, until a good batch and its time are known.

    It takes one latent, and then about a second.
    """
    batch = plan.options.batch
    size = 1 if batch == "auto" else min(batch, len(first))
    begun = time.perf_counter()
    while True:
        z, now = first[:size], time.perf_counter()
        try:
            found = _each(plan, z, 0)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or size == 1:
                raise
            batch = size = (size + 1) // 2
            continue
        each = (time.perf_counter() - now) / len(z)
        if batch != "auto":
            return Trial(batch, each)
        costs = [cost for _, cost in found if cost is not None]
        fits = _size(costs[-1], each, free(z.device), _MOST_LATENTS, 5.0) if costs else 1
        tried = min(fits, len(first), max(2, int(1 / each)))
        if tried < 2 * size or time.perf_counter() - begun > 2:
            return Trial(fits, each)
        size = tried


def _size(cost: _Cost, spent: float, free: int | None, most: int, seconds: float) -> int:
    """Return how many latents the next batch should have."""
    return max(1, min(_fitting(cost, free), most, int(seconds / spent)))


def _each(plan: Plan, z: Tensor, start: int) -> list[tuple[Done | Failed, _Cost | None]]:
    """Describe one batch; with on_error="nan" in halves, until the latents that fail are alone."""
    try:
        return [_one(plan, z, start)]
    except Exception as error:
        if out_of_memory(error):
            raise
        own = error.counted_from(start) if isinstance(error, DecoderError) else error
        if plan.options.on_error == "raise":
            raise own from error.__cause__
        if len(z) == 1:
            return [(Failed(start, " ".join(str(own).split())), None)]
    half = len(z) // 2
    return [*_each(plan, z[:half], start), *_each(plan, z[half:], start + half)]


def _one(plan: Plan, z: Tensor, start: int) -> tuple[Done, _Cost]:
    """Describe one batch, whose first latent is number `start` of the job."""
    counted, uncounted, options = None, "", plan.options
    check_latents(z)
    some = slice(start, start + len(z))
    if plan.basis is not None:
        # A pass of its own, and before there is a graph: one that recorded a graph for the products
        # as well would save one of the 1 + P, and keep the tangents in it, 1 + P times the memory.
        try:
            counted = knots(
                plan.knots_decoder.at(some).call,
                z,
                radius=plan.radius,
                directions=plan.basis,
                method=options.knots_method,
                output=options.output,
                dtype=options.knots_dtype,
                batch=len(z),
            )
        except NotImplementedError as error:  # psi and nu are there all the same
            uncounted = f"Knots were not counted ({first_line(error)})."
    with JacobianOperator(
        plan.decoder.at(some).call,
        z,
        output=options.output,
        dtype=options.dtype,
        straight_through=options.straight_through,
        check=False,
    ) as op:
        op.roundings = plan.roundings
        found = spectrum(
            op,
            method=options.method,
            k=options.k,
            generator=plan.probes,
            products=options.products,
            max_bytes=options.max_bytes,
        )
        # rows need no singular values, k numbers for each latent
        kept = replace(found, singular_values=None)
        done = Done(kept, counted, op.products, op.latent_shape, op.output_shape, uncounted)
        return done, _Cost(_bytes_each(op, found, plan), _most(op, found, plan))


def _bytes_each(op: JacobianOperator, found: Spectrum, plan: Plan) -> float:
    """About what one latent of a batch takes at the most."""
    layer = op.product_bytes / op.batch
    graph = op.graph_bytes / op.batch + layer
    tangents = 0 if plan.basis is None else (1 + len(plan.basis)) * layer
    held = METHODS[found.method].held(op, found.products)
    return _OVERHEAD * max(graph + held, tangents)


def _most(op: JacobianOperator, found: Spectrum, plan: Plan) -> int:
    """Return how many latents an option allows at a time."""
    if not found.used.startswith("exact"):
        return _MOST_LATENTS
    return min(_MOST_LATENTS, max(1, int(plan.options.max_bytes / (8 * op.rows * op.columns))))


def _fitting(cost: _Cost, free: int | None) -> int:
    """Return how many latents fit in the memory that is free, None where that is unknown."""
    return cost.most if free is None else min(cost.most, int(SHARE * free / cost.bytes_each))
