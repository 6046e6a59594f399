"""What all stages of an enumeration share, and the refusal of a stage that is too large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from cpwl.arrays import Floats, TorchThreads, in_parallel
from cpwl.domain import Slice
from cpwl.engine.precise import Evaluator
from cpwl.engine.rational import Arbiter
from cpwl.network import Network
from cpwl.network.program import cost, stage_plan

# Of what is evaluated at once, on a core; fewer rows than that read a layer's weights too often.
_BLOCK_BYTES, _BLOCK_ROWS_AT_LEAST = 2**22, 4
_A_NANOSECOND = 10  # multiplications


@dataclass(frozen=True, eq=False)
class Work:
    """What all stages and strips of one enumeration share."""

    network: Network
    arbiter: Arbiter
    slice: Slice
    memory: int  # bytes
    pool: ThreadPoolExecutor
    report: Callable[[float, int], None]  # share of the domain's work done, cells found
    evaluator: Evaluator | None = None  # where signs are proven in about 106 bits
    threads: TorchThreads = field(default_factory=TorchThreads)
    most: Sequence[float] | None = None  # cells after each stage; with more, the work is left


class TooLargeError(Exception):
    """The refined complex would take more memory than there is room for.

    Where less is only ``wanted``, to save time, it can be refined all the same.
    """

    def __init__(self, needed: int, stage: int = 0, *, wanted: bool = False) -> None:
        super().__init__(needed, stage)
        self.needed = needed
        self.stage = stage
        self.wanted = wanted


class TooManyError(Exception):
    """There are more cells than were wanted."""


def require_few(work: Work, stage: int, cells: int) -> None:
    """Raise TooManyError where there are more cells after a stage than are wanted."""
    if work.most is not None and cells > work.most[stage]:
        raise TooManyError


def evaluate(
    work: Work, rows: int, bytes_each: int, multiplications: int, some: Callable[[slice], None]
) -> None:
    """Call ``some(rows)`` on blocks of rows that stay in the caches, on all cores.

    Each core has its own blocks, whose tensors lie where those of the last one did: large tensors
    are given back to the system when they are freed, and all their pages mapped anew. Of a network
    of 64 units a layer that takes half of the time, and of convolutions as much.

    Parameters
    ----------
    bytes_each, multiplications : int
        What a row takes.
    some : callable
        Evaluates these rows by torch, and writes to places that are theirs alone.
    """
    size = max(_BLOCK_ROWS_AT_LEAST, _BLOCK_BYTES // bytes_each)

    def blocks(start: int, stop: int) -> None:
        for first in range(start, stop, size):
            some(slice(first, min(first + size, stop)))

    with work.threads.alone():
        in_parallel(work.pool, blocks, rows, nanoseconds=multiplications / _A_NANOSECOND)


def units_at(work: Work, stage: int, points: Floats) -> Floats:
    """Evaluate the units (n, n_stage) of a stage at points (n, P) of the slice."""
    network, program = work.network, work.network.program
    offsets = network.stage_offsets
    out = np.empty((len(points), int(offsets[stage + 1] - offsets[stage])))

    def some(rows: slice) -> None:
        latents = torch.from_numpy(np.ascontiguousarray(work.slice.embed(points[rows])))
        out[rows] = network.preactivations(latents, stage).numpy()

    each = cost(program, stage_plan(program, stage))
    evaluate(work, len(points), network.bytes_per_sample(stage), each, some)
    return out
