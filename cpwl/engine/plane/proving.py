"""Proof in about 106 bits that a finished complex is the network's partition.

A vertex is, by definition, where two affine functions vanish: on one of its cells, those of the
knots along the cell's two edges there, or of the domain's sides. The complex is the partition if,
at every vertex,

1. every unit of that cell, as an affine function, has a value on the cell's piece, ends included;
2. whatever differs between the pieces of two cells at the vertex is level with its knot there.

By 2 the functions of all cells at a vertex take the same values, so that by 1 every cell's pieces
are right at all of its corners, and on their convex hull. The boundaries of the cells add up to the
domain's boundary, hence every point of the domain lies in the hull of a cell: in one alone, since
pieces of different cells hold at the same time only on knots. See architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import EPS, Floats, Ints, next_corner, prefix, unpack
from cpwl.engine import precise
from cpwl.engine.columns import pieces_of
from cpwl.engine.plane.complex import Complex, Refined
from cpwl.engine.plane.corners import Corners, Outline, choose, corners_of, is_closed
from cpwl.engine.precise import Affine, Constants, Field, Held, Identities, Roots
from cpwl.engine.work import Work
from cpwl.network import Network

_ROUNDS = 4
_CASES = 16  # evaluated at once, if they take no more bytes than that: the system gives large
_BYTES = (
    2**27
)  # tensors fresh pages each time, and 16 cells of an SD decoder took 1.6 times as long


class Proof(NamedTuple):
    """What came of a proof.

    Attributes
    ----------
    decided, undecided : int
        Signs of units at vertices that were proven, and those that stay open.
    cells : int
        Cells that were evaluated.
    points : (V, P)
        The vertices, correctly rounded where all of their signs are proven.
    """

    decided: int
    undecided: int
    cells: int
    points: Floats


class _Found(NamedTuple):
    """What is known of vertices."""

    open: Ints  # (V,) signs that are not proven
    hi: Floats  # (V, P) coordinates
    lo: Floats
    radius: Floats  # (V,) bound on their error, in the maximum norm


@np.errstate(all="ignore")  # inf and NaN prove nothing
def prove(
    work: Work, made: Refined, advance: Callable[[int, int], None] = lambda done, total: None
) -> Proof:
    """Prove a finished complex, as far as that goes.

    Raises
    ------
    OutOfReachError
        The network has an operation that cannot be evaluated in this way.
    """
    complex_, evaluator = made.complex, work.evaluator
    assert evaluator is not None
    corners = corners_of(complex_)
    prover = Prover(work, made, corners)
    n_points, units = len(complex_.points), work.network.num_units
    dim = complex_.points.shape[1]
    if not is_closed(complex_):
        return Proof(0, n_points * units, 0, complex_.points)
    best = _Found(
        np.full(n_points, units), complex_.points.copy(), np.zeros((n_points, dim)),
        np.full(n_points, np.inf),
    )  # fmt: skip
    evaluated = 0
    tried = np.zeros(len(corners.cell), np.bool_)
    size = max(1, min(_CASES, min(_BYTES, work.memory // 4) // evaluator.bytes_per_cell))
    for attempt in range(_ROUNDS):
        chosen = choose(complex_, corners, best.open > 0, tried, attempt)
        tried[chosen] = True
        case = np.arange(len(chosen))
        if attempt == 0:  # a cell settles all of its corners
            _, case = np.unique(corners.cell[chosen], return_inverse=True)
        cases = int(case.max(initial=-1)) + 1
        for start in range(0, cases, size):
            mine = (case >= start) & (case < start + size)
            prover.settle(chosen[mine], case[mine] - start, best, meet=attempt > 0)
            evaluated += min(size, cases - start)
            advance(evaluated, evaluated + max(cases - start - size, 0))
    undecided = int(best.open.sum()) + _without_area(complex_, best)
    if len(np.unique(complex_.patterns, axis=0)) != len(complex_.patterns):
        undecided += 1
    points = np.where((best.open == 0)[:, None], best.hi, complex_.points)
    return Proof(n_points * units - int(best.open.sum()), undecided, evaluated, points)


class Prover:
    """Settles vertices from the cells at their corners."""

    def __init__(self, work: Work, made: Refined, corners: Corners) -> None:
        assert work.evaluator is not None
        self._made, self._evaluator, self.corners = made, work.evaluator, corners
        self._complex = made.complex
        self._network = work.network
        self._outline = Outline(work, made.complex)
        self._breaks = knots_of(work.network)
        self._identities = Identities(work.network.program, work.slice)
        order = np.argsort(corners.vertex, kind="stable")
        self._at = order  # corners by vertices
        self._bits = np.argsort(made.bit_unit, kind="stable")
        self._step, self._match = np.full((2, work.network.num_units), -1)
        for index, field in self._evaluator.fields.items():
            self._step[field.unit], self._match[field.unit] = index, np.arange(len(field.unit))
        self._lead = self._step >= 0
        self._first = prefix(np.bincount(corners.vertex, minlength=len(made.complex.points)))

    def settle(self, rows: Ints, case: Ints, best: _Found, *, meet: bool) -> None:
        """Settle the vertices of some corners, and keep what is better than before.

        Parameters
        ----------
        rows, case : (n,)
            Corners, and what they are evaluated on: 0, ..., B - 1.
        meet : bool
            Hold every unit on the lowest of its pieces at the vertex, where what is off is exactly
            zero. This changes no value there.
        """
        last = self._network.num_stages
        at = self.solved(rows, case, last, meet=meet)
        held, points, roots = at.held, at.points, at.roots
        vertex = self.corners.vertex[rows]
        vertices = [
            _Vertex(self, at, *key)
            for key in zip(range(len(rows)), case.tolist(), vertex.tolist(), strict=True)
        ]
        opened = self._settled(at, case, vertices)
        for i in np.flatnonzero(np.isfinite(roots.radius)).tolist():
            opened[i] += self._differences(vertices[i])
        ties = held.ties[case]
        if meet:  # units that are held on other pieces make ties that the cell does not have
            for i in np.flatnonzero((ties > 0) & (opened == 0)).tolist():
                ties[i] = self.on_cell(int(self.corners.cell[rows[i]]), last)[0].ties[0]
        opened = opened + ties
        opened = np.where(np.isfinite(roots.radius), opened, self._network.num_units)
        opened = np.minimum(opened, self._network.num_units)
        better = opened < best.open[vertex]
        v, here = vertex[better], np.flatnonzero(better)
        best.open[v] = opened[here]
        total = points[case[here]] + roots.hi[here]
        lost = roots.hi[here] - (total - points[case[here]])
        swapped = np.abs(roots.hi[here]) > np.abs(points[case[here]])
        lost = np.where(swapped, points[case[here]] - (total - roots.hi[here]), lost)
        low = lost + roots.lo[here]
        best.hi[v] = total + low  # correctly rounded: on a side x = c it is c
        best.lo[v] = low - (best.hi[v] - total)
        best.radius[v] = roots.radius[here] * (1 + 4 * EPS)
        best.radius[v] += 4 * EPS * np.abs(low).max(axis=1)

    def solved(self, rows: Ints, case: Ints, stages: int, *, meet: bool) -> _Solved:
        """Evaluate the first stages on cells, and find the vertices at some of their corners."""
        corners, complex_ = self.corners, self._complex
        _, first = np.unique(case, return_index=True)
        cells = corners.cell[rows[first]]
        vertex = corners.vertex[rows]
        pieces = self._all_pieces(cells)
        if meet:
            for k, v in enumerate(vertex.tolist()):
                self.meet(pieces[case[k]], v)
        points = np.array([self._middle(c) for c in cells.tolist()])
        held = self._evaluator.held(points, pieces, stages)
        functions, labels = self.functions(rows, case, held, points)
        roots = precise.solve(functions, complex_.points[vertex] - points[case])
        roots = roots._replace(radius=np.where(labels.known, roots.radius, np.inf))
        return _Solved(held, points, pieces, functions, labels, roots)

    def on_cell(self, cell: int, stages: int) -> tuple[Held, Floats]:
        """Evaluate the first stages on one cell; returns the point (1, P) as well."""
        point = self._middle(cell)[None]
        return self._evaluator.held(point, self._all_pieces(np.array([cell])), stages), point

    def meet(self, pieces: NDArray[np.int32], vertex: int) -> None:
        """Set every unit on the lowest of its pieces at a vertex, but for matches."""
        there = self._around(vertex)
        units = self._changed(there)
        units = units[~self._lead[units]]
        pieces[units] = self._pieces(there, units).min(axis=0)

    def constants(self, vertex: _Vertex) -> Constants:
        """Make what tells the values that are known at a vertex."""
        at, case = vertex.at, vertex.case
        pieces = at.pieces[case].copy()
        self.meet(pieces, vertex.number)
        level = {unit: knot for unit, knot in vertex.level if not self._lead[unit]}
        winners = {index: found[case] for index, found in at.held.winners.items()}
        return Constants(self._identities.rows, pieces, winners, level)

    def _around(self, vertex: int) -> Ints:
        """List the cells at a vertex."""
        return self.corners.cell[self._at[self._first[vertex] : self._first[vertex + 1]]]

    def _changed(self, cells: Ints) -> Ints:
        """List the units whose pieces differ between cells."""
        patterns = self._complex.patterns[cells]
        changed = np.bitwise_or.reduce(patterns ^ patterns[0], axis=0)
        units = self._made.bit_unit[np.flatnonzero(unpack(changed))]
        return np.unique(units).astype(np.int64)

    def _pieces(self, cells: Ints, units: Ints) -> Ints:
        """Name the pieces (cells, units) of some units on some cells."""
        out = np.tile(self._made.base[units].astype(np.int64), (len(cells), 1))
        first, last = (
            np.searchsorted(self._made.bit_unit[self._bits], units, side)
            for side in ("left", "right")
        )
        for k in range(len(units)):
            for bit in self._bits[first[k] : last[k]].tolist():
                word = self._complex.patterns[cells, bit >> 6]
                out[:, k] += (word >> np.uint64(bit & 63)).astype(np.int64) & 1
        return out

    def _middle(self, cell: int) -> Floats:
        if self._complex.points.shape[1] == 1:
            return self._complex.points[cell : cell + 2].mean(axis=0)
        a, b = self._complex.cell_offsets[cell : cell + 2]
        return self._complex.points[self._complex.cell_corners[a:b]].mean(axis=0)

    def functions(
        self, rows: Ints, case: Ints, held: Held, points: Floats
    ) -> tuple[Affine, _Labels]:
        """Give the functions (n, P, P + 1) that vanish at vertices, and what they stand for."""
        corners, dim = self.corners, points.shape[1]
        n = len(rows)
        vertex, beyond = corners.vertex[rows], corners.beyond[rows]
        parts = np.zeros((3, n, dim, dim + 1))
        knot, pair = np.zeros((n, dim)), np.full((n, dim, 3), -1)
        known = np.ones(n, np.bool_)
        unit = np.where(beyond >= 0, corners.unit[rows], -1)
        unit[self._outline.of[vertex, 1] >= 0] = -1  # a corner is where its sides meet
        for i, k in np.ndindex(n, dim):
            u = int(unit[i, k])
            if u < 0:
                sides = self._outline.of[vertex[i]]
                side = int(sides[k] if sides[1] >= 0 else sides[0])
                known[i] &= side >= 0
                if side >= 0:
                    parts[:, i, k] = np.array(self._outline.functions.at(side, points[case[i]])).T
                continue
            both = np.array([corners.cell[rows[i]], beyond[i, k]])
            if self._lead[u]:
                place = self._rivals(u, both)
                if place is None:
                    known[i] = False
                    continue
                unit[i, k], *pair[i, k] = place
            else:
                mine, theirs = self._pieces(both, np.array([u]))[:, 0].tolist()
                known[i] &= abs(mine - theirs) == 1
                knot[i, k] = self._breaks[u, max(mine, theirs)]
            for part, source in zip(parts, held[:3], strict=True):
                part[i, k] = source[case[i], :, unit[i, k]]
        return precise.minus(Affine(*parts), knot), _Labels(unit, knot, pair, known)

    def _rivals(self, unit: int, cells: Ints) -> tuple[int, int, int, int] | None:
        """Place where the winners of a match's window on two cells are compared, and the two."""
        index, field, match = self._field(unit)
        window = int(field.match_window[match])
        a, b = field.winners(self._all_pieces(cells), np.array([window]))[:, 0].tolist()
        if a == b:
            return None
        return int(field.unit[field.place(a, window, b)]), index, min(a, b), max(a, b)

    def _all_pieces(self, cells: Ints) -> NDArray[np.int32]:
        made = self._made
        return pieces_of(self._complex.patterns[cells], made.bit_unit, made.base)

    def _settled(self, at: _Solved, case: Ints, vertices: list[_Vertex]) -> Ints:
        """Prove that units are on their pieces, and count what stays open at each vertex."""
        held, pieces, labels, roots = at.held, at.pieces, at.labels, at.roots
        row, column = self._near(at, case)
        b = case[row]
        functions = Affine(*(part[b, :, column] for part in held[:3]))
        leads, piece = self._lead[column], pieces[b, column]
        low, high = self._breaks[column, piece], self._breaks[column, piece + 1]
        ends = np.where(leads, 0.0, low), np.where(leads, np.inf, high)
        proven = np.ones(len(row), np.bool_)
        for end, sign in zip(ends, (1, -1), strict=True):
            value, off = precise.values_at(
                functions, np.where(np.isfinite(end), end, 0.0), roots, row
            )
            proven &= np.isinf(end) | (sign * value > off)
        still = (np.abs(functions.hi[:, 1:]) + functions.error[:, 1:] == 0).all(axis=1)
        level, low = functions.hi[:, 0], functions.lo[:, 0]
        exact = still & (np.abs(low) + functions.error[:, 0] == 0)
        above = (level > ends[0]) | (leads & (level == ends[0]))
        proven |= exact & above & (level <= ends[1])
        proven |= (labels.unit[row] == column[:, None]).any(axis=1)
        for k in np.flatnonzero(~proven).tolist():
            u, i = int(column[k]), int(row[k])
            if leads[k]:
                if still[k] and (level[k] != 0 or low[k] != 0):
                    continue  # no tie that was counted, see `Held`
                index, field, place = self._field(u)
                two = field.compared(held.winners[index][b[k]], place)
                proven[k] = self._alike(index, *two, vertices[i])
            elif np.isfinite(roots.radius[i]):
                # level on all of a cell, a unit is on its lower piece
                proven[k] = any(
                    self._level(u, float(end[k]), vertices[i]) for end in ends[int(still[k]) :]
                )
        return np.bincount(row[~proven], minlength=len(case))

    def _near(self, at: _Solved, case: Ints) -> tuple[Ints, Ints]:
        """List vertices and units that float64 does not settle."""
        step, size = np.ascontiguousarray(at.roots.hi), 4096
        while True:
            row, column = np.empty((2, size), np.int64)
            found = precise.near_knots(
                at.held.hi, at.held.error, case, step, at.roots.radius, self._breaks, at.pieces,
                self._lead, row, column,
            )  # fmt: skip
            if found <= size:
                return row[:found], column[:found]
            size = found

    def _alike(self, index: int, a: int, b: int, vertex: _Vertex) -> bool:
        """Whether two candidates of a max-pooling are level, by definition or as computed."""
        (source,) = self._network.program.steps[index].data
        pairs = [pair for step, *pair in vertex.pairs if step == index]
        known = _joined(a, b, pairs) or vertex.constants.same(source, a, b)
        return known or self._identities.same(source, a, b)

    def _differences(self, vertex: _Vertex) -> int:
        """Count what differs between cells at a vertex without being level with its knot there."""
        held, case = vertex.at.held, vertex.case
        mine, around = vertex.at.pieces[case], self._around(vertex.number)
        changed = self._changed(around)
        opened = 0
        units = changed[~self._lead[changed]]
        for u, theirs in zip(units.tolist(), self._pieces(around, units).T, strict=True):
            for piece in set(theirs.tolist()) - {int(mine[u])}:
                knot = float(self._breaks[u, max(piece, int(mine[u]))])
                level = (u, knot) in vertex.level or _equals(held, case, u, knot)
                level = level or self._level(u, knot, vertex)
                opened += not (level and abs(piece - int(mine[u])) == 1)
        matches = changed[self._lead[changed]]
        if len(matches) == 0:
            return opened
        there_pieces = self._all_pieces(around)
        for index, field in self._evaluator.fields.items():
            own = self._match[matches[self._step[matches] == index]]
            windows = np.unique(field.match_window[own])
            here = held.winners[index][case]
            there = field.winners(there_pieces, windows)
            for w, winners in zip(windows.tolist(), there.T.tolist(), strict=True):
                for rival in set(winners) - {int(here[w])}:
                    if not self._alike(index, int(here[w]), rival, vertex):
                        place = field.place(int(here[w]), w, rival)
                        opened += not _equals(held, case, int(field.unit[place]), 0.0)
        return opened

    def _level(self, unit: int, knot: float, vertex: _Vertex) -> bool:
        """Whether a unit is level with a knot, as one that is by definition or as computed."""
        return vertex.constants.is_level(unit, knot) or any(
            self._identities.same_units(unit, other)
            for other, at in vertex.level if at == knot and not self._lead[other]
        )  # fmt: skip

    def _field(self, unit: int) -> tuple[int, Field, int]:
        """Find the max-pooling that a match belongs to, and which one it is there."""
        index = int(self._step[unit])
        return index, self._evaluator.fields[index], int(self._match[unit])


def _equals(held: Held, case: int, unit: int, number: float) -> bool:
    """Whether a unit is constant on a cell, and equals a number without any error."""
    hi, lo, error = (part[case, :, unit] for part in held[:3])
    return bool(hi[0] == number and not hi[1:].any() and not lo.any() and not error.any())


class _Labels(NamedTuple):
    """What the functions that define n vertices stand for."""

    unit: Ints  # (n, P) unit, or place of a lead; -1 for a side
    knot: Floats  # (n, P)
    pair: Ints  # (n, P, 3) step and the two candidates, for a lead
    known: NDArray[np.bool_]  # (n,)


class _Solved(NamedTuple):
    """Units on cells, and the vertices at some of their corners."""

    held: Held
    points: Floats  # (B, P)
    pieces: NDArray[np.int32]  # (B, num_units) that the units are held on
    functions: Affine  # (n, P, P + 1) zero at the vertices
    labels: _Labels
    roots: Roots


class _Vertex:
    """What is known of a vertex by its definition.

    Attributes
    ----------
    at, case : _Solved, int
        What it was found by, and the number of its cell there.
    number : int
        Its own.
    level : list
        Units, or places of leads, and their knots that pass through it.
    pairs : list
        Steps and the two candidates that leads compare.
    """

    def __init__(self, prover: Prover, at: _Solved, i: int, case: int, number: int) -> None:
        self._prover, self.at, self.case, self.number = prover, at, case, number
        unit, knot = at.labels.unit[i].tolist(), at.labels.knot[i].tolist()
        self.level = [key for key in zip(unit, knot, strict=True) if key[0] >= 0]
        self.pairs = at.labels.pair[i].tolist()

    @cached_property
    def constants(self) -> Constants:
        """What tells the values that are known there."""
        return self._prover.constants(self)


def _joined(a: int, b: int, pairs: list[list[int]]) -> bool:
    """Whether pairs of equals make two candidates equal."""
    reached = {a}
    for _ in pairs:
        for pair in pairs:
            if reached & set(pair):
                reached |= set(pair)
    return b in reached


def knots_of(network: Network) -> Floats:
    """List the ends of the pieces of all units: of piece k entries k and k + 1."""
    tables = []
    for heads in network.program.heads:
        for head in heads:
            bend = network.program.steps[head.step].nonlinearity
            assert bend is not None
            tables.append(
                np.stack([b.numpy().reshape(-1) for b in bend.breaks(head.round)], axis=1)
            )
    most = max(table.shape[1] for table in tables)
    rows = []
    for table in tables:
        end = np.full((len(table), 1), np.inf)
        rows.append(np.hstack([-end, table, *([end] * (most - table.shape[1] + 1))]))
    return np.concatenate(rows)


def _without_area(complex_: Complex, found: _Found) -> int:
    """Count the cells that are not proven to have an interior."""
    hi, lo, radius = found.hi, found.lo, found.radius
    if complex_.points.shape[1] == 1:
        length = (hi[1:, 0] - hi[:-1, 0]) + (lo[1:, 0] - lo[:-1, 0])
        size = np.abs(length) + np.abs(lo[1:, 0]) + np.abs(lo[:-1, 0])
        return int((~(length > radius[1:] + radius[:-1] + 8 * EPS * size)).sum())
    offsets = complex_.cell_offsets
    cell = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    vertex = complex_.cell_corners.astype(np.int64)
    origin = vertex[offsets[cell]]
    way = (hi[vertex] - hi[origin]) + (lo[vertex] - lo[origin])
    off = radius[vertex] + radius[origin]
    off = off + 8 * EPS * (np.abs(way) + np.abs(lo[vertex]) + np.abs(lo[origin])).max(axis=1)
    after = next_corner(offsets)
    doubled = way[:, 0] * way[after, 1] - way[:, 1] * way[after, 0]
    reach = np.abs(way).sum(axis=1)
    with np.errstate(invalid="ignore"):
        doubt = reach * off[after] + reach[after] * off + 2 * off * off[after]
        doubt = doubt + 8 * EPS * reach * reach[after]
    total = np.bincount(cell, doubled), np.bincount(cell, doubt)
    return int((~(total[0] > total[1] * (1 + 1e-9))).sum())
