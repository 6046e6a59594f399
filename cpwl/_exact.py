"""Exact signs of units at vertices, in rational arithmetic, from how each vertex was made.

A vertex of the partition is a corner of the domain or the place on the segment between two earlier
vertices where one unit passes one of its breakpoints. That defines its coordinates as rational
numbers, and the network's value there as well. All of it is computed only where it is asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from flint import fmpq
from numpy.typing import NDArray

from cpwl import _rational as rational
from cpwl.domain import Domain
from cpwl.network import Network

# Values are kept for as many vertices as hold about this many integers, a few hundred MB at most.
_MOST_KEPT = 2**21
# Networks with fewer coefficients are evaluated whole; of larger ones, what a unit depends on.
_SMALL = 2**18


class Vertices(NamedTuple):
    """Vertices of a complex: coordinates, bounds on their errors, and numbers at the arbiter's."""

    points: NDArray[np.float64]  # (V, P)
    error: NDArray[np.float64]  # (V,)
    names: NDArray[np.int64]  # (V,)


class Arbiter:
    """Decides signs that float64 cannot; remembers the definition of every vertex.

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
        Signs decided so far.
    """

    def __init__(self, network: Network, domain: Domain) -> None:
        self.exact = network.matrices.complete
        self.decided = 0
        self._network = network
        self._slice = domain.slice
        self._points: dict[int, rational.Point] = {
            i: tuple(fmpq(x.numerator, x.denominator) for x in corner)
            for i, corner in enumerate(domain.exact_corners)
        }
        self._count = len(self._points)
        self._first = [self._count]  # of each group of vertices that were registered together
        self._groups: list[tuple[NDArray, int, NDArray, NDArray]] = []
        self._values: OrderedDict[tuple[int, int], rational.Vector] = OrderedDict()
        self._kept = 0
        self._evaluator = rational.Evaluator(network.program, network.matrices, domain.slice)

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
        value: NDArray[np.float64],
    ) -> int:
        """Register the points between two vertices where a unit of a stage equals a value.

        Parameters
        ----------
        parents : (n, 2)
            Vertices; the unit minus the value has opposite signs there.
        stage : int
            What cuts; -1 - k means coordinate k of the slice itself.
        unit, value : (n,)
            Counted within the stage.

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
        value: NDArray[np.float64],
    ) -> NDArray[np.int8]:
        """Sign of (unit - value) at each vertex, exactly."""
        out = np.empty(len(vertices), np.int8)
        order = np.argsort(vertices, kind="stable")
        cuts = np.flatnonzero(np.diff(vertices[order])) + 1
        for rows in np.split(order, cuts) if len(order) else ():
            vertex = int(vertices[rows[0]])
            here = self._at(vertex, stage, unit[rows])
            for row in rows:
                out[row] = here.compare(int(unit[row]), float(value[row]))
        self.decided += len(vertices)
        return out

    def places(
        self,
        a: int,
        b: int,
        stage: int,
        unit: NDArray[np.integer],
        value: NDArray[np.float64],
    ) -> list[fmpq]:
        """Where units equal values on the segment from a to b, as fractions of it, exactly."""
        self.decided += len(unit)
        at_a, at_b = self._at(a, stage, unit), self._at(b, stage, unit)
        pairs = list(zip(unit.tolist(), value.tolist(), strict=True))
        return [_crossing(at_a.minus(u, v), at_b.minus(u, v)) for u, v in pairs]

    def points(self, vertices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float64]:
        """Coordinates (n, P), correctly rounded."""
        exact = [self.point(int(v)) for v in vertices]
        rounded = [[float(Fraction(int(x.p), int(x.q))) for x in point] for point in exact]
        return np.array(rounded, np.float64).reshape(len(exact), self._slice.dim)

    def point(self, vertex: int) -> rational.Point:
        """Exact coordinates of a vertex; of its ancestors first, without recursion."""
        waiting = [vertex]
        while waiting:
            v = waiting[-1]
            if v in self._points:
                waiting.pop()
                continue
            group = int(np.searchsorted(self._first, v, side="right")) - 1
            parents, stage, unit, value = self._groups[group]
            row = v - self._first[group]
            a, b = int(parents[row, 0]), int(parents[row, 1])
            missing = [p for p in (a, b) if p not in self._points]
            if missing:
                waiting.extend(missing)
                continue
            self._points[v] = self._between(a, b, stage, int(unit[row]), float(value[row]))
            waiting.pop()
        return self._points[vertex]

    def _between(self, a: int, b: int, stage: int, unit: int, value: float) -> rational.Point:
        """Where the unit equals the value on the segment from a to b."""
        start, end = self._points[a], self._points[b]
        if stage < 0:
            knot = rational.exact(value)
            at_a, at_b = start[-1 - stage] - knot, end[-1 - stage] - knot
        else:
            only = np.array([unit])
            at_a = self._at(a, stage, only).minus(unit, value)
            at_b = self._at(b, stage, only).minus(unit, value)
        t = _crossing(at_a, at_b)
        return tuple(x + t * (y - x) for x, y in zip(start, end, strict=True))

    def _at(self, vertex: int, stage: int, unit: NDArray[np.integer]) -> rational.Vector:
        """Values of a stage's units (of a large network: at least those asked for) at a vertex."""
        key = vertex, stage
        found = self._values.get(key)
        if found is not None and found.has(unit):
            return found
        point = self.point(vertex)
        if self._network.matrices.entries <= _SMALL:
            values = self._evaluator.stages(stage, point)
        else:
            units = np.unique(unit).astype(np.int64)
            values = {stage: self._evaluator.units(stage, units, point)}
        for s, vector in values.items():
            if (vertex, s) not in self._values:
                self._kept += len(vector.numbers)
            self._values[vertex, s] = vector
        while self._kept > _MOST_KEPT and len(self._values) > len(values):
            self._kept -= len(self._values.popitem(last=False)[1].numbers)
        return values[stage]


def _crossing(at_a: fmpq, at_b: fmpq) -> fmpq:
    """Where a function with these values at 0 and 1 is zero."""
    if at_a * at_b >= 0:
        raise ArithmeticError(
            f"Expected a unit to change sign between two vertices, got {at_a} and {at_b}: a sign "
            "was taken wrongly before. Please report this network."
        )
    return at_a / (at_a - at_b)
