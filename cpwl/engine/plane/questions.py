"""Single decisions in about 106 bits while a complex is cut, where float64 is close to a tie.

They make the complex right where knots nearly meet; that it is right is proven at the end, see
`cpwl.engine.plane.proving`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Floats, Ints
from cpwl.engine import precise
from cpwl.engine.plane.complex import Refined
from cpwl.engine.plane.corners import corners_of, usable_corners
from cpwl.engine.plane.proving import Prover
from cpwl.engine.precise import Affine
from cpwl.engine.work import Work
from cpwl.network.program import Tournament

_unproven = np.errstate(all="ignore")  # inf and NaN prove nothing
_VERTICES = 16  # evaluated at once


class Questions:
    """Answers questions about the next stage of a complex.

    Parameters
    ----------
    made : Refined
        The complex before the stage, with the meaning of its bits.
    stage : int

    Attributes
    ----------
    units : int
        Units of the network: an answer costs some 30 forward passes.
    """

    def __init__(self, work: Work, made: Refined, stage: int) -> None:
        self._work, self._made, self._stage = work, made, stage
        program = work.network.program
        # A match is decided by the candidates that are left, which are not looked at here.
        self._silent = any(
            isinstance(program.steps[head.step].nonlinearity, Tournament)
            for head in program.heads[stage]
        )
        self.units = work.network.num_units
        self._ready: tuple[Prover, NDArray[np.bool_]] | None = None
        self._cell: tuple[int, Affine] | None = None

    def _prepared(self) -> tuple[Prover, NDArray[np.bool_]]:
        """Prepare for the first question: most stages have none."""
        if self._ready is None:
            corners = corners_of(self._made.complex)
            prover = Prover(self._work, self._made, corners)
            self._ready = prover, usable_corners(self._made.complex, corners)
        return self._ready

    def _of(self, units: Ints) -> Ints:
        """Give units of the stage their numbers within the network."""
        return units + int(self._work.network.stage_offsets[self._stage])

    @_unproven
    def signs(self, names: Ints, units: Ints, knots: Floats) -> tuple[NDArray[np.int8], NDArray]:
        """Sign of unit - knot (n,) at vertices, and whether it is proven."""
        if self._silent or len(names) == 0:
            return np.zeros(len(names), np.int8), np.zeros(len(names), np.bool_)
        prover, usable = self._prepared()
        corners, complex_ = prover.corners, self._made.complex
        order = np.argsort(complex_.names)
        vertex = order[np.searchsorted(complex_.names[order], names)]
        wanted, which = np.unique(vertex, return_inverse=True)
        rows = np.flatnonzero(usable & np.isin(corners.vertex, wanted))
        rows = rows[np.lexsort([-corners.sine[rows], corners.vertex[rows]])]
        rows = rows[np.unique(corners.vertex[rows], return_index=True)[1]]
        sign, proven = np.zeros(len(names), np.int8), np.zeros(len(names), np.bool_)
        if len(rows) != len(wanted):
            return sign, proven
        for start in range(0, len(rows), _VERTICES):
            case = np.arange(len(rows[start : start + _VERTICES]))
            at = prover.solved(rows[start : start + _VERTICES], case, self._stage + 1, meet=True)
            mine = np.flatnonzero((which >= start) & (which < start + len(case)))
            row = which[mine] - start
            unit = self._of(units[mine])
            functions = Affine(*(part[row, :, unit] for part in at.held[:3]))
            value, off = precise.values_at(functions, knots[mine], at.roots, row)
            exact = np.all([(part[:, 1:] == 0).all(axis=1) for part in functions], axis=0)
            exact &= (functions.hi[:, 0] == knots[mine]) & (functions.lo[:, 0] == 0)
            exact &= functions.error[:, 0] == 0
            sign[mine] = np.where(np.abs(value) > off, np.sign(value), 0)
            proven[mine] = (np.abs(value) > off) | exact
        return sign, proven

    @_unproven
    def side(self, cell: int, units: Ints, knots: Floats) -> int | None:
        """Sign of the third unit - knot where the first two vanish in a cell; None if open."""
        if self._silent:
            return None
        if self._cell is None or self._cell[0] != cell:
            prover, _ = self._prepared()
            held, point = prover.on_cell(cell, self._stage + 1)
            self._cell = cell, Affine(*(np.moveaxis(part[0], 0, 1) for part in held[:3]))
            self._point = point
        functions = precise.minus(Affine(*(p[self._of(units)] for p in self._cell[1])), knots)
        roots = precise.solve(Affine(*(part[None, :2] for part in functions)), np.zeros((1, 2)))
        value, off = precise.values_at(
            Affine(*(part[2:] for part in functions)), np.zeros(1), roots, np.zeros(1, np.int64)
        )
        return int(np.sign(value[0])) if abs(value[0]) > off[0] else None

    @_unproven
    def order(
        self, names: Ints, units: Ints, knots: Floats
    ) -> tuple[Ints, Floats, NDArray[np.bool_]] | None:
        """Order what crosses an edge, see `Decisions.order`; None if it stays open."""
        if self._silent:
            return None
        prover, _ = self._prepared()
        complex_, corners = self._made.complex, prover.corners
        a, b = (int(np.flatnonzero(complex_.names == name)[0]) for name in names)
        here, there = (corners.cell[corners.vertex == v] for v in (a, b))
        for cell in np.intersect1d(here, there).tolist():
            row = np.flatnonzero((corners.cell == cell) & (corners.vertex == a))
            held, point = prover.on_cell(cell, self._stage + 1)
            crossing = Affine(*(np.moveaxis(p[0], 0, 1)[self._of(units)] for p in held[:3]))
            crossing = precise.minus(crossing, knots)
            parts = [part[:, None] for part in crossing]
            if complex_.points.shape[1] == 2:
                other = np.flatnonzero((corners.cell == cell) & (corners.vertex == b))
                shared = np.intersect1d(corners.edge[row[0]], corners.edge[other[0]])
                if len(shared) != 1:
                    continue
                k = int(np.flatnonzero(corners.edge[row[0]] == shared[0])[0])
                along, labels = prover.functions(row, np.zeros(1, np.int64), held, point)
                if not labels.known[0]:
                    return None
                same = (np.repeat(part[:, k], len(units), axis=0)[:, None] for part in along)
                parts = [np.concatenate(pair, axis=1) for pair in zip(same, parts, strict=True)]
            start = complex_.points[[a]] - point
            roots = precise.solve(Affine(*parts), np.repeat(start, len(units), axis=0))
            return _ordered(roots, complex_.points[b] - complex_.points[a], start[0])
        return None


def _ordered(
    roots: precise.Roots, way: Floats, start: Floats
) -> tuple[Ints, Floats, NDArray[np.bool_]] | None:
    """Order roots along a way, if no two are too close to be told apart."""
    axis = int(np.argmax(np.abs(way)))
    sign = np.sign(way[axis])
    hi, lo = sign * roots.hi[:, axis], sign * roots.lo[:, axis]
    order = np.lexsort([lo, hi])
    gap = np.diff(hi[order]) + np.diff(lo[order])
    reach = roots.radius[order]
    with np.errstate(invalid="ignore"):
        apart = gap > (reach[1:] + reach[:-1]) * (1 + 1e-9)
    if not apart.all():
        return None
    where = np.clip((hi - sign * start[axis]) / abs(way[axis]), 0.0, 1.0)
    return order, where[order], np.ones(len(order), np.bool_)
