"""What all stages of an enumeration share, and the refusal of a stage that is too large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from cpwl.arrays import Floats
from cpwl.domain import Slice
from cpwl.engine.precise import Evaluator
from cpwl.engine.rational import Arbiter
from cpwl.network import Network
from cpwl.network.program import cost, stage_plan


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
    # with this around torch calls of so many multiplications, see `torch_alone`
    large: Callable[[int], AbstractContextManager[object]] = nullcontext
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


def units_at(work: Work, stage: int, points: Floats) -> Floats:
    """Evaluate the units (n, n_stage) of a stage at points (n, P) of the slice."""
    program = work.network.program
    latents = torch.from_numpy(np.ascontiguousarray(work.slice.embed(points)))
    with work.large(len(points) * cost(program, stage_plan(program, stage))):
        return work.network.preactivations(latents, stage).numpy()
