"""Where knots meet, many meetings at a time: signs, order and coordinates, as float64 leaves them.

Where the complex is right, a vertex is where two affine functions of one of its cells vanish: those
of the knots along the cell's two edges there, or of the domain's sides. Whether a third one
vanishes there too is a determinant of integers over a power of two: it is zero if it is small and
zero modulo enough primes (`Residues`). Where it is not, about 106 bits with a rigorous bound tell
the sign (`cpwl.engine.precise`). What stays open is left to rational arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import EPS, Floats, Ints, prefix
from cpwl.engine import precise
from cpwl.engine.bounds import Bounds
from cpwl.engine.plane.complex import Refined
from cpwl.engine.plane.faces import Faces, Knots, knots_at
from cpwl.engine.plane.proving import knots_of
from cpwl.engine.plane.sides import Sides
from cpwl.engine.precise import Affine, Evaluator, Held, OutOfReachError, Roots
from cpwl.engine.rational import Residues
from cpwl.engine.work import Work
from cpwl.network.program import Extremum, Pointwise

# Fewer questions than this are left to rational arithmetic.
FEWEST = 32
# A prime takes about as long as the rational numbers at so many vertices.
_VERTICES_A_PRIME = 8
# Cells that are evaluated at once, and functions at them.
_CELLS = 512
_FUNCTIONS = 2**17

_unproven = np.errstate(all="ignore")  # inf and NaN prove nothing


class Tools:
    """What the meetings of all stages share, prepared when it is first needed."""

    def __init__(self, work: Work) -> None:
        self.work = work

    @cached_property
    def evaluator(self) -> Evaluator | None:
        """The network in about 106 bits; None where it is out of reach."""
        try:
            return Evaluator(self.work.network, self.work.slice)
        except OutOfReachError:
            return None

    @cached_property
    def residues(self) -> Residues:
        """The network modulo primes."""
        return Residues(self.work.network, self.work.slice)

    @cached_property
    def breaks(self) -> Floats:
        """Ends of the pieces of all units."""
        return knots_of(self.work.network)

    @cached_property
    def cells(self) -> int:
        """Cells that are evaluated at once: the more, the less each of them costs."""
        fit = self.work.memory // 4 // (self.evaluator.bytes_per_cell if self.evaluator else 1)
        return int(np.clip(fit, 1, _CELLS))


def tools_for(work: Work) -> Tools | None:
    """Make the tools; None if the network has other units than theirs, or no rational ones."""
    steps = work.network.program.steps
    bends = [step.nonlinearity for step in steps if step.nonlinearity is not None]
    usable = all(isinstance(bend, (Pointwise, Extremum)) for bend in bends)
    return Tools(work) if usable and work.arbiter.exact else None


class Ordered(NamedTuple):
    """Crossings of an edge in order; entries as in `StageSigns`."""

    order: Ints
    where: Floats
    fresh: NDArray[np.bool_]


class Meetings:
    """Answers questions about the units of the first stages on the cells of a complex.

    Parameters
    ----------
    made : Refined
        A complex that is right, with the meaning of its bits.
    stages : int
        All of them or all but the last have cut the complex; units are those of the last one.
    bounds : Bounds
        Knows the stages.
    """

    def __init__(self, tools: Tools, made: Refined, stages: int, bounds: Bounds) -> None:
        self._tools, self._made, self._stages = tools, made, stages
        self._complex = made.complex
        self._dim = made.complex.points.shape[1]
        self._arbiter = tools.work.arbiter
        self._offsets = tools.work.network.stage_offsets
        self._first = int(self._offsets[stages - 1])
        self._slopes = bounds.unit_lipschitz

    @cached_property
    def _faces(self) -> Faces:
        return Faces(self._made, self._tools.breaks)

    def signs(
        self, names: Ints, units: Ints, knots: Floats, sizes: Floats
    ) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
        """Sign of units - knots (n,) at vertices, and whether it is proven.

        ``sizes`` bound the differences.
        """
        vertex, which = np.unique(self._faces.vertices(names), return_inverse=True)
        if len(vertex) < FEWEST:
            return np.zeros(len(names), np.int8), np.zeros(len(names), np.bool_)
        cell, at = self._faces.corners(vertex)
        what, near = knots_at(self._first + units, knots), self._complex.points[vertex][which]
        return self._decided(cell[which], at.take(which), what, near, sizes)

    def sides(
        self, cells: Ints, units: Ints, knots: Floats
    ) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
        """Sign of the third of units - knots (n, 3) where the others vanish; all do so in a cell.

        Likewise with whether it is proven.
        """
        three = knots_at(self._first + units, knots)
        two, third = three.take(np.s_[:, :2]), three.take(np.s_[:, 2])
        start = self._complex.cell_corners[self._complex.cell_offsets[cells]]
        near = self._complex.points[start]
        return self._decided(cells, two, third, near, self._sizes(third))

    def vertices(self, which: Ints) -> tuple[Floats, NDArray[np.bool_]]:
        """Coordinates (n, P) of vertices, correctly rounded where that is proven."""
        return self._points(*self._faces.corners(which), self._complex.points[which])

    def crossings(
        self, edges: Ints, units: Ints, knots: Floats, near: Floats
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Coordinates (n, P) of where units equal knots on edges, likewise."""
        cell = self._faces.cell_along(edges)
        crossed = knots_at(self._first + units, knots)
        at = self._faces.crossing(cell, edges, np.arange(len(edges)), crossed)
        return self._points(cell, at, near)

    @_unproven
    def order(self, edges: Ints, count: Ints, units: Ints, knots: Floats) -> list[Ordered | None]:
        """Order what crosses edges, ``count`` on each; None where it stays open."""
        if len(edges) < FEWEST:
            return [None] * len(edges)
        owner = np.repeat(np.arange(len(edges)), count)
        cell, crossed = self._faces.cell_along(edges), knots_at(self._first + units, knots)
        at = self._faces.crossing(cell, edges, owner, crossed)
        hi, lo, off = self._places(cell, edges, owner, at)
        order = np.lexsort([lo, hi, owner])
        gap = np.diff(hi[order]) + np.diff(lo[order])
        apart = gap > (off[order][1:] + off[order][:-1]) * (1 + 1e-9)
        close = np.flatnonzero((np.diff(owner[order]) == 0) & ~apart)
        first, second = at.take(order[close]), crossed.take(order[close + 1])
        level = np.zeros(len(apart), np.bool_)
        level[close], _ = self._concurrent(
            cell[owner[order[close]]], first, second, self._sizes(second)
        )
        sure, offsets = _rounded(hi, lo, off), prefix(count)
        found: list[Ordered | None] = []
        for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            if not (sure[start:stop].all() and (apart | level)[start : stop - 1].all()):
                found.append(None)
                continue
            fresh = np.append(True, apart[start : stop - 1])
            mine = order[start:stop]
            mine = mine[np.lexsort([mine, np.cumsum(fresh)])]
            found.append(Ordered(mine - start, hi[mine], fresh))
            self._arbiter.decided += stop - start
        return found

    def _places(self, cell: Ints, edges: Ints, owner: Ints, at: Knots) -> Floats:
        """Where functions vanish on edges, as fractions hi + lo of the way, and errors; (3, n)."""
        out = np.full((3, len(owner)), np.nan)
        ends = self._faces.ends(cell, edges)
        near = self._complex.points[self._complex.edge_points[edges]]
        for row, held, case in self._evaluated(cell[owner]):
            edge, of = np.unique(owner[row], return_inverse=True)
            case_of_edge = np.empty(len(edge), np.int64)
            case_of_edge[of] = case
            start, stop = (
                self._roots(held, case_of_edge, end.take(edge), near[edge, k])
                for k, end in enumerate(ends)
            )
            start, stop = (Roots(*(part[of] for part in end)) for end in (start, stop))
            roots = self._roots(held, case, at.take(row), start.hi)
            out[:, row] = precise.between(roots, start, stop)
        return out

    @_unproven
    def _points(self, cell: Ints, at: Knots, near: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Where functions (n, P) vanish, near points."""
        out, proven = near.copy(), np.zeros(len(near), np.bool_)
        if len(cell) < FEWEST:
            return out, proven
        for row, held, case in self._evaluated(cell):
            roots = self._roots(held, case, at.take(row), near[row])
            out[row] = roots.hi
            proven[row] = _rounded(roots.hi, roots.lo, roots.radius[:, None]).all(axis=1)
        return out, proven

    @_unproven
    def _decided(
        self, cell: Ints, at: Knots, what: Knots, near: Floats, sizes: Floats
    ) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
        """Sign of functions (n,) of cells where others (n, P) vanish, and whether it is proven."""
        sign = np.zeros(len(cell), np.int8)
        proven, maybe = self._concurrent(cell, at, what, sizes)
        rest = np.flatnonzero(~maybe)
        for part, held, case in self._evaluated(cell[rest]):
            row = rest[part]
            roots = self._roots(held, case, at.take(row), near[row])
            functions = self._functions(held, case, what.take(row))
            value, off = precise.values_at(
                functions, np.zeros(len(row)), roots, np.arange(len(row))
            )
            proven[row] = np.abs(value) > off
            sign[row] = np.where(proven[row], np.sign(value), 0)
        self._arbiter.decided += int(proven.sum())
        return sign, proven

    def _sizes(self, what: Knots) -> Floats:
        """Bound functions within the cells on which they vanish somewhere."""
        extent = float(np.ptp(self._complex.corners, axis=0).max())
        return 2 * extent * self._slopes[what.unit]

    @_unproven
    def _concurrent(
        self, cell: Ints, at: Knots, what: Knots, sizes: Floats
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether functions (n,) are zero where others (n, P) vanish, and whether they may be.

        ``sizes`` bound them there.
        """
        # The determinant is the value times that of the slopes: at most two to so many bits, over
        # two to the power of the functions' shifts.
        bits = self._bits(at).sum(axis=1) + self._shift(what) + np.log2(sizes) + 2
        maybe = at.known.all(axis=1) & what.known & np.isfinite(bits)
        zero, rows, k = np.zeros(len(cell), np.bool_), np.flatnonzero(maybe), 0
        while len(rows):
            vanish = np.zeros(len(rows), np.bool_)
            for part, cells, case in self._batches(cell[rows]):
                held = self._tools.residues.held(k, self._faces.pieces(cells), self._stages)
                functions = (
                    self._remainders(k, held, case, one.take(rows[part])) for one in (at, what)
                )
                vanish[part] = self._vanish(k, *functions)
            maybe[rows[~vanish]] = False
            rows, k = rows[vanish], k + 1
            left = bits[rows] - k * self._tools.residues.bits
            zero[rows[left < 0]] = True
            worth = len(np.unique(cell[rows])) // _VERTICES_A_PRIME * self._tools.residues.bits
            rows = rows[(left >= 0) & (left < worth)]
        return zero, maybe

    def _vanish(self, k: int, at: Floats, what: Floats) -> NDArray[np.bool_]:
        """Whether functions (n, P + 1) are zero where others (n, P, P + 1) are, modulo a prime.

        False where these are not independent.
        """
        less = self._tools.residues.reduced
        if self._dim == 1:
            (a0, a1), (f0, f1) = at[:, 0].T, what.T
            return (a1 != 0) & (less(k, f0 * a1 - f1 * a0) == 0)
        (a0, a1, a2), (b0, b1, b2), (f0, f1, f2) = at[:, 0].T, at[:, 1].T, what.T
        over = less(k, a1 * b2 - a2 * b1)
        x, y = less(k, a2 * b0 - a0 * b2), less(k, a0 * b1 - a1 * b0)
        value = less(k, less(k, f0 * over + f1 * x) + f2 * y)
        return (over != 0) & (value == 0)

    def _remainders(self, k: int, held: Floats, case: Ints, knots: Knots) -> Floats:
        """Functions (..., P + 1) modulo a prime."""
        residues, outside = self._tools.residues, knots.unit < 0
        out = held[_across(case, knots), :, np.maximum(knots.unit, 0)]
        out[..., 0] = residues.reduced(k, out[..., 0] - residues.of(k, knots.knot))
        if outside.any():
            sides = self._sides.remainders(residues.prime(k))
            out[outside] = sides[-1 - knots.unit[outside]]
        return out

    def _shift(self, knots: Knots) -> Floats:
        stage = np.searchsorted(self._offsets, np.maximum(knots.unit, 0), side="right") - 1
        return np.where(knots.unit < 0, 0.0, self._tools.residues.shifts[stage])

    def _bits(self, knots: Knots) -> Floats:
        """Bits that the slopes have at most, over the functions' denominators."""
        bits = self._shift(knots) + np.log2(self._slopes[np.maximum(knots.unit, 0)]) + 1
        outside = knots.unit < 0
        if outside.any():
            bits[outside] = self._sides.bits[-1 - knots.unit[outside]]
        return bits

    def _evaluated(self, cell: Ints) -> Iterator[tuple[Ints, Held, Ints]]:
        """Evaluate the units on cells (n,) in about 106 bits: rows, units, and the rows' cases."""
        evaluator = self._tools.evaluator
        if evaluator is None:
            return
        for rows, cells, case in self._batches(cell):
            origin = np.zeros((len(cells), self._dim))
            yield rows, evaluator.held(origin, self._faces.pieces(cells), self._stages), case

    def _batches(self, cell: Ints) -> Iterator[tuple[Ints, Ints, Ints]]:
        """Split rows into batches: rows, their different cells, and which of these each has."""
        order = np.argsort(cell, kind="stable")
        for start in range(0, len(order), _FUNCTIONS):
            rows = order[start : start + _FUNCTIONS]
            cells, case = np.unique(cell[rows], return_inverse=True)
            for first in range(0, len(cells), self._tools.cells):
                last = min(first + self._tools.cells, len(cells))
                part = slice(*np.searchsorted(case, [first, last]))
                yield rows[part], cells[first:last], case[part] - first

    def _functions(self, held: Held, case: Ints, knots: Knots) -> Affine:
        """Functions (..., P + 1) in about 106 bits."""
        place = _across(case, knots), slice(None), np.maximum(knots.unit, 0)
        parts = precise.minus(Affine(*(part[place] for part in held[:3])), knots.knot)
        outside = knots.unit < 0
        if outside.any():
            for part, sides in zip(parts, self._sides.precise, strict=True):
                part[outside] = sides[-1 - knots.unit[outside]]
        return parts

    def _roots(self, held: Held, case: Ints, at: Knots, start: Floats) -> Roots:
        roots = precise.solve(self._functions(held, case, at), start)
        return roots._replace(radius=np.where(at.known.all(axis=1), roots.radius, np.inf))

    @cached_property
    def _sides(self) -> Sides:
        names = self._complex.corner_names.tolist()
        return Sides([self._arbiter.point(name) for name in names])


def _across(case: Ints, knots: Knots) -> Ints:
    """Shape cases (n,) as functions (n, ...) are."""
    return case.reshape(-1, *[1] * (knots.unit.ndim - 1))


def _rounded(hi: Floats, lo: Floats, radius: Floats) -> NDArray[np.bool_]:
    """Whether every number within a radius of hi + lo is nearest to hi."""
    up, down = np.nextafter(hi, np.inf) - hi, hi - np.nextafter(hi, -np.inf)
    reach = radius * (1 + 4 * EPS)
    return (lo + reach < up / 2 * (1 - 4 * EPS)) & (reach - lo < down / 2 * (1 - 4 * EPS))
