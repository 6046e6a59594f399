"""Values of one stage after the other at the vertices of a complex, every step once at each.

Behind a stage the tensors that later stages read are kept, so that the next stage goes on from
there; the vertices that a cut has made meanwhile are evaluated from the input. Every vertex thus
costs one forward pass in all, however many stages there are. It is always the network that is
evaluated, in float64, at the float64 coordinates of the vertex, and the bounds on the errors of the
values are those of one pass. (Interpolated between the ends of its edge, a vertex would cost half
of that on average, but errors would add up from edge to edge.)
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cpwl.arrays import Floats, Ints
from cpwl.engine.rational import Vertices
from cpwl.engine.work import TooLargeError, Work, evaluate
from cpwl.network.program import Plan, cost, passes

# Tensors are kept where each of their bytes has taken so many multiplications. Below that keeping
# them gains nothing: 2-256-256-256-3 takes the same time at 64, and up to a tenth more at 1.
_MULTIPLICATIONS_A_BYTE = 16
# Part of the memory that they may take. Where they need more, vertices are evaluated from the input
# in every stage if that takes at most so many forward passes more, and else the domain is cut into
# strips, whose tensors fit: that costs one pass more or so, for what was begun in vain.
_PART_OF_MEMORY = 0.5
_PASSES_AT_MOST = 3.0


class _Batch(NamedTuple):
    """Tensors of some steps at vertices that were evaluated together."""

    names: Ints  # (n,) the vertices
    points: Floats  # (n, P)
    values: dict[int, Tensor]  # n rows each

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values.values())


class Live:
    """Evaluation of the stages in turn, each at the vertices then present.

    Parameters
    ----------
    work : Work
    strips : bool
        Whether to ask for strips where tensors that were worth keeping do not fit.
    """

    def __init__(self, work: Work, *, strips: bool) -> None:
        self._work = work
        self._program = work.network.program
        self._segments = work.network.segments
        self._strips = strips
        self._room = int(work.memory * _PART_OF_MEMORY)
        self.drop()

    @property
    def nbytes(self) -> int:
        """Bytes that are held between two stages."""
        return sum(batch.nbytes for batch in self._kept)

    def drop(self) -> None:
        """Let go of what is held; all vertices are evaluated from the input again."""
        self._kept: list[_Batch] = []

    def begin(self, stage: int, vertices: Vertices) -> None:
        """Turn to the next stage, at these vertices.

        Raises
        ------
        TooLargeError
            The tensors behind the stage do not fit, and strips are the better way.
        """
        n = len(vertices.points)
        self._stage, self._vertices = stage, vertices
        self._old: list[_Batch | None] = [*self._kept]
        self._batch, self._row = _places(self._kept, vertices)
        self._waiting = np.bincount(self._batch[self._batch >= 0], minlength=len(self._kept))
        self._kept = []
        self._taken = sum(batch.nbytes for batch in self._old if batch is not None)
        size = self._bytes_worth_keeping(stage)
        self._keep = size > 0
        if n * size > self._room and self._strips and self._passes_left(stage) > _PASSES_AT_MOST:
            raise TooLargeError(n * size, stage, wanted=True)

    def units(self, rows: Ints, *, last: bool = True) -> Floats:
        """Units (n, n_stage) of the stage at n of its vertices; ``last`` if not asked again."""
        segment = self._segments[self._stage]
        known = self._batch[rows] >= 0
        parts = [(plan, np.flatnonzero(mine)) for plan, mine in
                 ((segment.rest, known), (segment.whole, ~known)) if mine.any()]  # fmt: skip
        if len(parts) == 1:
            return self._part(parts[0][0], rows, last)
        offsets = self._work.network.stage_offsets
        out = np.empty((len(rows), int(offsets[self._stage + 1] - offsets[self._stage])))
        for plan, mine in parts:
            out[mine] = self._part(plan, rows[mine], last)
        return out

    def _part(self, plan: Plan, rows: Ints, last: bool) -> Floats:
        """Run a plan at vertices, and keep what is needed behind the stage."""
        segment, network, n = self._segments[self._stage], self._work.network, len(rows)
        begun = plan is segment.rest
        points = self._vertices.points[rows]
        first, end = network.stage_offsets[[self._stage, self._stage + 1]].tolist()
        out = np.empty((n, end - first))
        values = self._empty(segment.behind, n) if last and self._keep else {}

        def some(part: slice) -> None:
            known = self._start(rows[part]) if begun else {}
            inputs = self._inputs(plan, points[part])
            units, env = passes.stage_units(self._program, plan, inputs, known, self._stage)
            out[part] = units.numpy()
            for i, value in values.items():
                value[part] = env[i]

        each = network.bytes_per_sample(self._stage), cost(self._program, plan)
        evaluate(self._work, n, *each, some)
        if begun and last:
            self._release(rows)
        batch = _Batch(self._vertices.names[rows], points, values)
        if values and self._taken + batch.nbytes <= self._room:
            self._taken += batch.nbytes
            self._kept.append(batch)
        return out

    def _inputs(self, plan: Plan, points: Floats) -> Tensor:
        """Embed points of the slice; where a plan reads no more than how many, zeros do."""
        steps = self._program.steps
        read = [*plan.order, *(head.step for head in self._program.heads[self._stage])]
        if any(0 in steps[i].inputs for i in read if steps[i].kind not in ("size", "fixed")):
            return torch.from_numpy(np.ascontiguousarray(self._work.slice.embed(points)))
        shape = self._work.network.input_shape
        return torch.zeros((), dtype=torch.float64).expand(len(points), *shape)

    def _empty(self, steps: Iterable[int], rows: int) -> dict[int, Tensor]:
        """Tensors of some steps, for so many samples."""
        shapes = {i: self._program.steps[i].single[1:] for i in steps}
        return {i: torch.empty((rows, *s), dtype=torch.float64) for i, s in shapes.items()}

    def _start(self, rows: Ints) -> dict[int, Tensor]:
        """Gather the tensors of the stage before at vertices."""
        out = self._empty(self._segments[self._stage].start, len(rows))
        owner = self._batch[rows]
        for number in np.unique(owner).tolist():
            batch, mine = self._old[number], np.flatnonzero(owner == number)
            assert batch is not None
            target, source = torch.from_numpy(mine), torch.from_numpy(self._row[rows[mine]])
            for i, value in out.items():
                value[target] = batch.values[i][source]
        return out

    def _release(self, rows: Ints) -> None:
        """Let go of tensors that were held for these vertices alone."""
        for number, count in enumerate(np.bincount(self._batch[rows]).tolist()):
            batch = self._old[number]
            self._waiting[number] -= count
            if batch is not None and self._waiting[number] == 0:
                self._taken -= batch.nbytes
                self._old[number] = None

    def _bytes_worth_keeping(self, stage: int) -> int:
        """Bytes a vertex of the tensors behind a stage; 0 if they are not to be kept."""
        steps, segment = self._program.steps, self._segments[stage]
        size = 8 * sum(prod(steps[i].single) for i in segment.behind)
        leading = all(steps[i].leading for i in segment.behind)
        return size if leading and segment.saved >= _MULTIPLICATIONS_A_BYTE * size else 0

    def _passes_left(self, stage: int) -> float:
        """Forward passes a vertex of the later stages, each from the input."""
        each = [cost(self._program, segment.whole) for segment in self._segments]
        return sum(each[stage + 1 :]) / each[-1]


def _places(kept: list[_Batch], vertices: Vertices) -> tuple[Ints, Ints]:
    """Batch and row in which each vertex is kept, -1 where it is not, or has been moved since."""
    batch, row = np.full((2, len(vertices.names)), -1)
    if not kept:
        return batch, row
    names = np.concatenate([part.names for part in kept])
    points = np.concatenate([part.points for part in kept])
    owner = np.repeat(np.arange(len(kept)), [len(part.names) for part in kept])
    within = np.concatenate([np.arange(len(part.names)) for part in kept])
    order = np.argsort(names)
    place = np.searchsorted(names, vertices.names, sorter=order)
    place = order[np.minimum(place, len(order) - 1)]
    same = (names[place] == vertices.names) & (points[place] == vertices.points).all(axis=1)
    batch[same], row[same] = owner[place[same]], within[place[same]]
    return batch, row
