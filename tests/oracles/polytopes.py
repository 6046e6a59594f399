"""Bounded polytopes of any dimension in integers: cut by a form, volume, common facets.

A polytope is its vertices, its facets' forms, and which vertices lie on which facets. Nothing else
is kept: edges, faces and triangulations are read off these incidences, so that vertices on any
number of facets are ordinary. Two vertices span an edge exactly when no third one lies on all the
facets that they share.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from oracles.homogeneous import (
    Row,
    determinant,
    dot,
    homogeneous,
    integers,
    lowest,
    normal,
    primitive,
    rational,
    sign,
)

Rational = int | float | Fraction


@dataclass(frozen=True)
class Polytope:
    """A full-dimensional bounded polytope.

    Parameters
    ----------
    corners : tuple of points
        The vertices, each once, in lowest terms.
    walls : tuple of forms
        One form for each facet, >= 0 inside.
    on : tuple of int
        Bit i of entry v: vertex v lies on facet i.
    """

    corners: tuple[Row, ...]
    walls: tuple[Row, ...]
    on: tuple[int, ...]

    @classmethod
    def of(cls, corners: Sequence[Row], walls: Sequence[Row]) -> Polytope:
        """Find the incidences; walls may include some that are not facets."""
        on = [
            sum(1 << i for i, wall in enumerate(walls) if dot(wall, corner) == 0)
            for corner in corners
        ]
        return _tidy(corners, walls, on)

    @property
    def dim(self) -> int:
        """The dimension."""
        return len(self.corners[0]) - 1

    @cached_property
    def facets(self) -> tuple[int, ...]:
        """The vertices of each facet, as bits."""
        return _transposed(self.on, len(self.walls))

    def cut(self, form: Row) -> tuple[Polytope | None, Polytope | None]:
        """Return the parts where the form is <= 0 and > 0, None where that has no interior."""
        values = [dot(form, corner) for corner in self.corners]
        if max(values) <= 0:
            return self, None
        if min(values) >= 0:
            return None, self
        bit = 1 << len(self.walls)
        fresh = []
        for u, v in self.edges():
            if sign(values[u]) * sign(values[v]) < 0:
                fu, fv = abs(values[u]), abs(values[v])
                ends = zip(self.corners[u], self.corners[v], strict=True)
                middle = normal(tuple(fv * x + fu * y for x, y in ends))
                fresh.append((middle, self.on[u] & self.on[v] | bit))
        halves = []
        for side in (-1, 1):
            kept = [
                (corner, on | bit if value == 0 else on)
                for corner, on, value in zip(self.corners, self.on, values, strict=True)
                if sign(value) * side >= 0
            ]
            corners, on = zip(*kept, *fresh, strict=True)
            wall = lowest(tuple(side * x for x in form))
            halves.append(_tidy(corners, (*self.walls, wall), on))
        return halves[0], halves[1]

    def edges(self) -> Iterator[tuple[int, int]]:
        """Yield the pairs of vertices that span an edge."""
        for u, v in itertools.combinations(range(len(self.corners)), 2):
            common = self.on[u] & self.on[v]
            if common.bit_count() < self.dim - 1:
                continue
            if sum(other & common == common for other in self.on) == 2:
                yield u, v

    def faces(self, dim: int) -> set[frozenset[Row]]:
        """Return the faces of a dimension, each as its vertices."""
        faces = {(1 << len(self.corners)) - 1}
        for _ in range(self.dim - dim):
            faces = {side for face in faces for side in _sides(face, self.facets)}
        return {frozenset(p for v, p in enumerate(self.corners) if face >> v & 1) for face in faces}

    def simplices(self) -> Iterator[tuple[int, ...]]:
        """Yield a triangulation, each simplex by its dim + 1 vertices."""
        yield from _fans((1 << len(self.corners)) - 1, self.facets, self.dim)

    @cached_property
    def volume(self) -> Fraction:
        """The sum of the simplices' volumes."""
        total = Fraction(0)
        for simplex in self.simplices():
            rows = [self.corners[i] for i in simplex]
            total += Fraction(abs(determinant(rows)), math.prod(row[-1] for row in rows))
        return total / math.factorial(self.dim)

    def rounded_volume(self) -> float:
        """Return the volume by float64 determinants: in 6-D exact ones take a second a cell."""
        corners = np.array([[float(x) for x in rational(corner)] for corner in self.corners])
        simplices = corners[list(self.simplices())]
        edges = simplices[:, 1:] - simplices[:, :1]
        return float(np.abs(np.linalg.det(edges)).sum() / math.factorial(self.dim))

    def holds(self, point: Row) -> bool:
        """Whether a point lies inside or on the boundary."""
        return all(dot(wall, point) >= 0 for wall in self.walls)


def _transposed(rows: Sequence[int], columns: int) -> tuple[int, ...]:
    """Transpose a table of bits."""
    return tuple(
        sum(1 << i for i, row in enumerate(rows) if row >> column & 1) for column in range(columns)
    )


def _maximal(sets: Sequence[int]) -> list[int]:
    """Positions of the sets that are in no other; of equal ones the first."""
    return [
        i
        for i, one in enumerate(sets)
        if not any(
            one & other == one and (one != other or j < i) for j, other in enumerate(sets) if i != j
        )
    ]


def _tidy(corners: Sequence[Row], walls: Sequence[Row], on: Sequence[int]) -> Polytope:
    """Leave out the walls that are not facets: their vertices all lie on one that is."""
    kept = _maximal(_transposed(on, len(walls)))
    renumbered = [sum(1 << new for new, old in enumerate(kept) if x >> old & 1) for x in on]
    return Polytope(tuple(corners), tuple(walls[i] for i in kept), tuple(renumbered))


def _fans(face: int, facets: Sequence[int], dim: int) -> Iterator[tuple[int, ...]]:
    """Cone the first vertex of a face, given as bits, with the sides that do not hold it."""
    apex = (face & -face).bit_length() - 1
    if dim == 0:
        yield (apex,)
        return
    for side in _sides(face, facets):
        if not side >> apex & 1:
            for simplex in _fans(side, facets, dim - 1):
                yield (apex, *simplex)


def _sides(face: int, facets: Sequence[int]) -> list[int]:
    """Return the facets of a face: the largest sets in which facets of the body meet it."""
    meets = sorted({face & facet for facet in facets if face & facet != face})
    return [meets[i] for i in _maximal(meets)]


def box(low: Sequence[Rational], high: Sequence[Rational]) -> Polytope:
    """Return the box low <= x <= high."""
    corners = [homogeneous(x) for x in itertools.product(*zip(low, high, strict=True))]
    rows = [[side * (i == j) for j in range(len(low))] for i in range(len(low)) for side in (-1, 1)]
    bounds = [x for pair in zip((-Fraction(x) for x in low), high, strict=True) for x in pair]
    return Polytope.of(corners, _walls(rows, bounds))


def simplex(corners: Sequence[Sequence[Rational]]) -> Polytope:
    """Return the simplex with these dim + 1 corners."""
    points = [homogeneous(corner) for corner in corners]
    walls = []
    for i, apex in enumerate(points):
        rest = points[:i] + points[i + 1 :]
        # the generalised cross product: the form that vanishes in all the other corners
        form = tuple(
            (-1) ** k * determinant([row[:k] + row[k + 1 :] for row in rest])
            for k in range(len(apex))
        )
        side = sign(dot(form, apex))
        walls.append(lowest(tuple(side * x for x in form)))
    return Polytope.of(points, walls)


def cross_polytope(radius: Rational, dim: int) -> Polytope:
    """Return {x : |x_0| + ... + |x_(dim - 1)| <= radius}."""
    ends = [
        homogeneous([side * radius * (axis == i) for i in range(dim)])
        for axis in range(dim)
        for side in (-1, 1)
    ]
    signs = list(itertools.product((-1, 1), repeat=dim))
    return Polytope.of(ends, _walls(signs, [radius] * len(signs)))


def half_spaces(
    A: Sequence[Sequence[Rational]], b: Sequence[Rational], reach: int = 1 << 10
) -> Polytope:
    """Return {x : A x <= b}, which has to lie inside the cube of half-width `reach`."""
    dim = len(A[0])
    body: Polytope | None = box([-reach] * dim, [reach] * dim)
    outer = set(body.walls)
    for wall in _walls(A, b):
        assert body is not None
        body = body.cut(wall)[1]
    assert body is not None
    assert outer.isdisjoint(body.walls)
    return body


def _walls(A: Sequence[Sequence[Rational]], b: Sequence[Rational]) -> list[Row]:
    """Forms that are >= 0 where A x <= b."""
    return [
        lowest(integers([*(-Fraction(x) for x in row), Fraction(bound)])[0])
        for row, bound in zip(A, b, strict=True)
    ]


def common_facets(cells: Sequence[Polytope]) -> set[tuple[int, int]]:
    """Return the pairs (i < j) of cells of a tiling that share a (dim - 1)-dimensional set."""
    lower: dict[Row, list[tuple[int, frozenset[Row]]]] = defaultdict(list)
    upper: dict[Row, list[tuple[int, frozenset[Row]]]] = defaultdict(list)
    for i, cell in enumerate(cells):
        for wall, facet in zip(cell.walls, cell.facets, strict=True):
            name = primitive(wall)
            corners = frozenset(p for v, p in enumerate(cell.corners) if facet >> v & 1)
            (upper if name == wall else lower)[name].append((i, corners))
    pairs = set()
    for name in lower.keys() & upper.keys():
        # in a tiling one facet has one cell on either side: equal facets need no further look
        above = {corners: i for i, corners in upper[name]}
        left = []
        for i, corners in lower[name]:
            if corners in above:
                j = above.pop(corners)
                pairs.add((min(i, j), max(i, j)))
            else:
                left.append(i)
        for i, j in itertools.product(left, above.values()):
            if _touch(cells[i], cells[j], name):
                pairs.add((min(i, j), max(i, j)))
    return pairs


def _touch(below: Polytope, above: Polytope, name: Row) -> bool:
    """Whether cells on two sides of a hyperplane have facets on it that overlap."""
    # cut the lower cell by the upper one's other walls: the hyperplane must stay a facet
    rest: Polytope | None = below
    for wall in above.walls:
        if rest is not None and wall != name:
            rest = rest.cut(wall)[1]
    return rest is not None and tuple(-x for x in name) in rest.walls
