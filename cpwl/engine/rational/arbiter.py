"""Exact signs of units at vertices, in rational arithmetic, from how each vertex was made.

A vertex of the partition is a corner of the domain or the place on the segment between two earlier
vertices where one unit passes one of its breakpoints. This defines its coordinates, and the
network's values there, as rational numbers. They are computed only where they are asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from flint import fmpq
from numpy.typing import NDArray

from cpwl.arrays import Floats, Ints
from cpwl.domain import Domain
from cpwl.engine.rational.evaluator import Evaluator, Line, Point, located
from cpwl.engine.rational.numbers import Vector, exact
from cpwl.network import Network

# Values are kept for the vertices used last, up to about this many integers: a few hundred MB.
_KEPT_INTEGERS_AT_MOST = 2**21


class Vertices(NamedTuple):
    """Vertices of a complex: coordinates, bounds on their errors, and numbers at the arbiter's."""

    points: Floats  # (V, P)
    error: Floats  # (V,)
    names: Ints  # (V,)


class Arbiter:
    """The judge of signs that float64 leaves open; it keeps the definition of every vertex.

    Parameters
    ----------
    network : Network
    domain : Domain
        Its corners are vertices 0, 1, ...

    Attributes
    ----------
    exact : bool
        Whether the network is small enough for rational arithmetic; `signs` and `points` may only
        be called then.
    decided : int
        Signs decided so far, here or, in bulk, by `cpwl.engine.plane.meetings`.
    """

    def __init__(self, network: Network, domain: Domain) -> None:
        self.exact = network.matrices.complete
        self.decided = 0
        self._slice = domain.slice
        self._points: dict[int, Point] = {
            i: tuple(fmpq(x.numerator, x.denominator) for x in corner)
            for i, corner in enumerate(domain.exact_corners)
        }
        self._count = len(self._points)
        self._first = [self._count]  # of each group of vertices that were registered together
        self._groups: list[tuple[NDArray, int, NDArray, NDArray]] = []
        self._seen: OrderedDict[int, _Seen] = OrderedDict()  # the last used last
        self._kept = 0
        self._evaluator = Evaluator(network.program, network.matrices, domain.slice)

    def corners(self) -> Vertices:
        """Return the domain's corners, vertices 0, 1, ..."""
        names = np.arange(self._first[0])
        points = self.points(names)
        off = [
            [
                abs(float(Fraction(int(x.p), int(x.q)) - Fraction(y)))
                for x, y in zip(*pair, strict=True)
            ]
            for pair in zip(map(self.point, names.tolist()), points.tolist(), strict=True)
        ]
        return Vertices(points, 2 * np.array(off).sum(axis=1), names)

    def add(
        self,
        parents: NDArray[np.integer],
        stage: int,
        unit: NDArray[np.integer],
        value: Floats,
    ) -> int:
        """Register the points between two vertices where a unit of a stage equals a value.

        Parameters
        ----------
        parents : (n, 2)
            Vertices; the unit minus the value has opposite signs there.
        stage : int
            What cuts; -1 - k means coordinate k of the slice itself.
        unit, value : (n,)
            Counted within the stage; a value at a wave's breakpoint stands for the rational number.

        Returns
        -------
        int
            Number of the first; the others follow.
        """
        first = self._count
        self._groups.append((np.asarray(parents), stage, np.asarray(unit), np.asarray(value)))
        self._count += len(parents)
        self._first.append(self._count)
        return first

    def signs(
        self,
        vertices: NDArray[np.integer],
        stage: int,
        unit: NDArray[np.integer],
        value: Floats,
    ) -> NDArray[np.int8]:
        """Sign of (unit - value) at each vertex, exactly."""
        out = np.empty(len(vertices), np.int8)
        order = np.argsort(vertices, kind="stable")
        cuts = np.flatnonzero(np.diff(vertices[order])) + 1
        for rows in np.split(order, cuts) if len(order) else ():
            vertex = int(vertices[rows[0]])
            here = self._at(vertex, stage)
            knots = self._evaluator.knots(stage, unit[rows], value[rows])
            for row, knot in zip(rows, knots, strict=True):
                out[row] = here.compare(int(unit[row]), knot)
        self.decided += len(vertices)
        return out

    def places(
        self,
        a: int,
        b: int,
        stage: int,
        unit: NDArray[np.integer],
        value: Floats,
    ) -> list[fmpq]:
        """Where units equal values on the segment from a to b, as fractions of it, exactly."""
        self.decided += len(unit)
        at_a, at_b = self._at(a, stage), self._at(b, stage)
        knots = self._evaluator.knots(stage, unit, value)
        pairs = list(zip(unit.tolist(), knots, strict=True))
        return [_crossing(at_a.minus(u, v), at_b.minus(u, v)) for u, v in pairs]

    def points(self, vertices: Sequence[int] | NDArray[np.integer]) -> Floats:
        """Coordinates (n, P), correctly rounded."""
        places = [self.point(int(v)) for v in vertices]
        rounded = [[int(x.p) / int(x.q) for x in point] for point in places]
        return np.array(rounded, np.float64).reshape(len(places), self._slice.dim)

    def point(self, vertex: int) -> Point:
        """Exact coordinates of a vertex; of its ancestors first, without recursion."""
        waiting = [vertex]
        while waiting:
            v = waiting[-1]
            if v in self._points:
                waiting.pop()
                continue
            made = self._definition(v)
            missing = [p for p in (made.a, made.b) if p not in self._points]
            if missing:
                waiting.extend(missing)
                continue
            self._points[v] = self._between(made)
            waiting.pop()
        return self._points[vertex]

    def _definition(self, vertex: int) -> _Definition:
        group = bisect_right(self._first, vertex) - 1
        parents, stage, unit, value = self._groups[group]
        row = vertex - self._first[group]
        a, b = parents[row].tolist()
        return _Definition(a, b, stage, int(unit[row]), float(value[row]))

    def _between(self, made: _Definition) -> Point:
        """Where the unit equals the value on the segment from a to b."""
        start, end = self._points[made.a], self._points[made.b]
        if made.stage < 0:
            knot = exact(made.value)
            at_a, at_b = start[-1 - made.stage] - knot, end[-1 - made.stage] - knot
        else:
            here = np.array([made.unit]), np.array([made.value])
            (knot,) = self._evaluator.knots(made.stage, *here)
            at_a = self._at(made.a, made.stage).minus(made.unit, knot)
            at_b = self._at(made.b, made.stage).minus(made.unit, knot)
        t = _crossing(at_a, at_b)
        return tuple(x + t * (y - x) for x, y in zip(start, end, strict=True))

    def _at(self, vertex: int, stage: int) -> Vector:
        """Values of a stage's units at a vertex."""
        seen = self._seen.get(vertex)
        if seen is not None:
            self._seen.move_to_end(vertex)
            if stage in seen.stages:
                return seen.stages[stage]
        else:
            seen = self._seen[vertex] = _Seen(located(self.point(vertex)), {})
        before = len(seen.steps)
        found = self._evaluator.stage(stage, seen.steps, self._line(vertex))
        seen.stages[stage] = found
        added = [*list(seen.steps.values())[before:], found]
        self._kept += sum(len(vector.numbers) for vector in added)
        while self._kept > _KEPT_INTEGERS_AT_MOST and len(self._seen) > 1:
            _, gone = self._seen.popitem(last=False)
            vectors = [*gone.steps.values(), *gone.stages.values()]
            self._kept -= sum(len(vector.numbers) for vector in vectors)
        return found

    def _line(self, vertex: int) -> Line | None:
        """Place a vertex between the two that define it, as far as values there are kept."""
        if vertex < self._first[0]:
            return None
        made = self._definition(vertex)
        start, end = self._seen.get(made.a), self._seen.get(made.b)
        if start is None or end is None:
            return None
        ends = zip(*(self._points[v] for v in (made.a, made.b, vertex)), strict=True)
        t = next((x - a) / (b - a) for a, b, x in ends if a != b)
        return Line(start.steps, end.steps, t, made.stage)


class _Definition(NamedTuple):
    """A vertex is where a unit of a stage equals a value on the segment from a to b."""

    a: int
    b: int
    stage: int
    unit: int
    value: float


class _Seen(NamedTuple):
    """What has been computed at a vertex: values of steps, and of the units of stages."""

    steps: dict[int, Vector]
    stages: dict[int, Vector]


def _crossing(at_a: fmpq, at_b: fmpq) -> fmpq:
    """Where a function with these values at 0 and 1 is zero."""
    if not (at_a < 0 < at_b or at_b < 0 < at_a):
        raise ArithmeticError(
            f"Expected a unit to change sign between two vertices, got {at_a} and {at_b}: a sign "
            "was taken wrongly before. Please report this network."
        )
    return at_a / (at_a - at_b)
