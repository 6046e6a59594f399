"""The network in rational arithmetic at one point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from flint import fmpq, fmpz
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cpwl.arrays import Floats
from cpwl.domain import Slice
from cpwl.engine.rational.numbers import Number, Vector, aligned, exact
from cpwl.engine.rational.steps import POINT, Affine, Bend, bend_of
from cpwl.network.program import Matrices, Program, Triangle

Point = tuple[fmpq, ...]


class Line(NamedTuple):
    """A point start + t (end - start) on a segment where the network up to a stage is affine.

    ``start`` and ``end`` are what is known at the ends of the segment.
    """

    start: Mapping[int, Vector]
    end: Mapping[int, Vector]
    t: fmpq
    stage: int

    def value(self, step: int, q: fmpz) -> Vector | None:
        """Interpolate a step's value as integers over q 2^shift; None if an end lacks it."""
        a, b = self.start.get(step), self.end.get(step)
        if a is None or b is None:
            return None
        of_a, of_b = q * (1 - self.t) / a.q, q * self.t / b.q
        over = of_a.q.lcm(of_b.q)
        k, m = of_a.p * (over // of_a.q), of_b.p * (over // of_b.q)
        # Nothing remains: an affine function with coefficients over 2^shift has such values.
        numbers = [(k * x + m * y) // over for x, y in zip(a.numbers, b.numbers, strict=True)]
        return Vector(numbers, q, a.shift)


class Evaluator:
    """Evaluates a network at rational points; prepares every step once."""

    def __init__(self, program: Program, matrices: Matrices, slice_: Slice) -> None:
        self._program = program
        self._matrices = matrices
        self._slice = slice_
        self._affine: dict[int, Affine] = {}
        self._bends: dict[int, Bend] = {}
        self._inputs: list[tuple[int, ...]] = [(POINT,), *(s.data for s in program.steps[1:])]
        self._stages = _stages_behind(program)

    def stage(self, stage: int, known: dict[int, Vector], line: Line | None) -> Vector:
        """All switching functions of a stage, and add what they are computed from to ``known``.

        Parameters
        ----------
        known : dict
            Values of steps at one point; of its coordinates (see `located`) at least.
        line : Line or None
            Where the point lies, to save work.
        """
        heads = self._program.heads[stage]
        wanted = {source for head in heads for source in self._inputs[head.step]}
        missing = []
        for index in range(max(wanted), -1, -1):
            if index not in wanted or index in known:
                continue
            if line is not None and self._stages[index] <= line.stage:
                found = line.value(index, known[POINT].q)
                if found is not None:
                    known[index] = found
                    continue
            missing.append(index)
            wanted.update(self._inputs[index])
        for index in reversed(missing):
            known[index] = self._step(index).value(known)
        found = [self._bend(head.step).switching(known, head.round) for head in heads]
        if len(found) == 1:
            return found[0]
        parts = aligned(found)
        return parts[0]._replace(numbers=[n for part in parts for n in part.numbers])

    def knots(self, stage: int, unit: NDArray[np.integer], value: Floats) -> list[Number]:
        """Breakpoints that float64 numbers stand for: of a wave, the knots nearest to them."""
        out: list[Number] = value.tolist()
        first = 0
        for head in self._program.heads[stage]:
            wave = self._program.steps[head.step].nonlinearity
            if isinstance(wave, Triangle):
                half, phase = exact(wave.period) / 2, exact(wave.phase)
                mine = (unit >= first) & (unit < first + head.units)
                for i in np.flatnonzero(mine).tolist():
                    k = ((exact(out[i]) + phase) / half + fmpq(1, 2)).floor()
                    out[i] = k * half - phase
            first += head.units
        return out

    def _step(self, index: int) -> Affine | Bend:
        if self._program.steps[index].kind == "cpwl":
            return self._bend(index)
        if index not in self._affine:
            self._affine[index] = self._prepared(index)
        return self._affine[index]

    def _bend(self, index: int) -> Bend:
        if index not in self._bends:
            self._bends[index] = bend_of(self._program, index)
        return self._bends[index]

    def _prepared(self, index: int) -> Affine:
        """Prepare an affine step; the first one embeds the slice."""
        if index == 0:
            basis = self._slice.basis.reshape(self._slice.dim, -1)
            return Affine([(POINT, csr_array(basis.T))], self._slice.origin.reshape(-1))
        step = self._matrices.steps[index]
        return Affine([(part.source, part.matrix) for part in step.parts], step.offset)


def located(point: Point) -> dict[int, Vector]:
    """Return what is known where nothing has been evaluated yet."""
    q = fmpz(1)
    for x in point:
        q = q.lcm(x.q)
    return {POINT: Vector([x.p * (q // x.q) for x in point], q, 0)}


def _stages_behind(program: Program) -> list[int]:
    """Count the stages whose knots a step's value may bend at: 0, ..., that number - 1."""
    last = np.zeros(len(program.steps), np.int64)
    for stage, heads in enumerate(program.heads):
        for head in heads:
            last[head.step] = stage + 1
    for index, step in enumerate(program.steps):
        last[index] = max([last[index], *(last[i] for i in step.data)])
    return last.tolist()
