"""What vanishes on the edges and at the vertices of a complex, as functions of its cells."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Floats, Ints
from cpwl.engine.columns import pieces_of
from cpwl.engine.plane.complex import Refined

# Corners whose edges meet at a smaller angle (its sine) are used only where nothing else is left.
_FLAT = 1e-3
_PIECES = 2**22  # looked up at once


class Knots(NamedTuple):
    """Functions that vanish somewhere; arrays of one shape, of which the first axis is cells'."""

    unit: Ints  # counted within the network; -1 - i for side i of the domain
    knot: Floats
    known: NDArray[np.bool_]  # False: the cells do not tell

    def take(self, which: Any) -> Knots:
        """Return some of them, by an index."""
        return Knots(self.unit[which], self.knot[which], self.known[which])


def knots_at(unit: Ints, knot: Floats) -> Knots:
    """Name units and knots that are known."""
    return Knots(unit, knot, np.ones(unit.shape, np.bool_))


class Faces:
    """Looks the cells along edges and at vertices up, and what vanishes there.

    A face of a cell is one of its edges; in one dimension, where edges are cells, it is an end.

    Parameters
    ----------
    made : Refined
    breaks : (num_units, m)
        Ends of the pieces of all units, see `knots_of`.
    """

    def __init__(self, made: Refined, breaks: Floats) -> None:
        self._made, self._complex, self._breaks = made, made.complex, breaks
        self.dim = made.complex.points.shape[1]
        self._order: Ints | None = None

    def pieces(self, cells: Ints) -> NDArray[np.int32]:
        """Name the piece (n, num_units) of every unit on cells."""
        return pieces_of(self._complex.patterns[cells], self._made.bit_unit, self._made.base)

    def vertices(self, names: Ints) -> Ints:
        """Find vertices by their names."""
        if self._order is None:
            self._order = np.argsort(self._complex.names)
        return self._order[np.searchsorted(self._complex.names, names, sorter=self._order)]

    def cell_along(self, edges: Ints) -> Ints:
        """Name a cell along each edge."""
        if self.dim == 1:
            return edges
        return self._complex.edge_cells[edges].max(axis=1).astype(np.int64)

    def corners(self, vertices: Ints) -> tuple[Ints, Knots]:
        """Choose a cell (n,) at each of some vertices, ascending; what vanishes there, (n, P).

        Few cells in all; wide corners before flat ones.
        """
        complex_ = self._complex
        if self.dim == 1:
            cell = np.minimum(vertices, len(complex_.patterns) - 1)
            return cell, self._on(cell, vertices[:, None])
        wanted = np.zeros(len(complex_.points), np.bool_)
        wanted[vertices] = True
        rows = np.flatnonzero(wanted[complex_.cell_corners])
        cell, after, before = self._around(rows)
        vertex, *beside = (complex_.cell_corners[k] for k in (rows, after, before))
        (a, b), (c, d) = ((complex_.points[v] - complex_.points[vertex]).T for v in beside)
        with np.errstate(over="ignore", invalid="ignore"):  # what is NaN comes last
            length = np.hypot(a, b) * np.hypot(c, d)
            sine = np.abs(a * d - b * c) / np.where(length > 0, length, 1.0)
        many = np.bincount(cell, minlength=len(complex_.patterns))[cell]
        best = np.lexsort([-sine, -many, sine < _FLAT, vertex])
        best = best[np.unique(vertex[best], return_index=True)[1]]
        edges = complex_.cell_edges[np.stack([rows, before], axis=1)[best]]
        return cell[best], self._on(cell[best], edges.astype(np.int64))

    def ends(self, cell: Ints, edges: Ints) -> tuple[Knots, Knots]:
        """Name what vanishes (n, P) at the first and at the second ends of edges of cells.

        The cells are those that `cell_along` names.
        """
        complex_ = self._complex
        if self.dim == 1:
            return self._on(cell, edges[:, None]), self._on(cell, edges[:, None] + 1)
        own = np.full(len(complex_.edge_points), -1)
        own[edges] = cell
        rows = np.flatnonzero(own[complex_.cell_edges] >= 0)
        around = self._around(rows)
        mine = around[0] == own[complex_.cell_edges[rows]]
        rows, after, before = (x[mine] for x in (rows, *around[1:]))
        place = np.empty(len(own), np.int64)  # among the rows
        place[complex_.cell_edges[rows]] = np.arange(len(rows))
        rows, after, before = (x[place[edges]] for x in (rows, after, before))
        start, stop = (
            complex_.cell_edges[np.stack(pair, axis=1)].astype(np.int64)
            for pair in ((rows, before), (after, rows))
        )
        turned = (complex_.cell_corners[rows] != complex_.edge_points[edges, 0])[:, None]
        first, second = np.where(turned, stop, start), np.where(turned, start, stop)
        return self._on(cell, first), self._on(cell, second)

    def crossing(self, cell: Ints, edges: Ints, owner: Ints, crossed: Knots) -> Knots:
        """Name what vanishes (n, P) where functions (n,) do on edges (m,) of cells.

        ``owner`` (n,) says on which of the edges.
        """
        across = crossed.take(np.s_[:, None])
        if self.dim == 1:
            return across
        along = self._on(cell, edges[:, None]).take(owner)
        return Knots(
            np.hstack([along.unit, across.unit]), np.hstack([along.knot, across.knot]),
            np.hstack([along.known, across.known]),
        )  # fmt: skip

    def _around(self, rows: Ints) -> tuple[Ints, Ints, Ints]:
        """Name the cells of some corners, and the corners after and before them."""
        offsets = self._complex.cell_offsets
        cell = np.searchsorted(offsets, rows, side="right") - 1
        first, last = offsets[cell], offsets[cell + 1] - 1
        after = np.where(rows == last, first, rows + 1)
        return cell, after, np.where(rows == first, last, rows - 1)

    def _on(self, cell: Ints, faces: Ints) -> Knots:
        """Name what vanishes on faces (n, m) of cells."""
        complex_ = self._complex
        cells = np.broadcast_to(cell[:, None], faces.shape)
        if self.dim == 1:
            unit = complex_.point_unit[faces].astype(np.int64)
            unit = np.where(unit < 0, np.where(faces == 0, -1, -2), unit)
            beyond = np.where(faces == cells, faces - 1, faces)
        else:
            unit = complex_.edge_unit[faces].astype(np.int64)
            beyond = complex_.edge_cells[faces].sum(axis=2) - cells
        inside, number = unit >= 0, np.maximum(unit, 0)
        mine, theirs = (self._piece(x, number) for x in (cells, np.where(inside, beyond, cells)))
        known = ~inside | (np.abs(mine - theirs) == 1)
        knot = self._breaks[number, np.maximum(mine, theirs)]
        return Knots(unit, np.where(inside & known, knot, 0.0), known)

    def _piece(self, cells: Ints, units: Ints) -> Ints:
        """Name the piece of one unit on each of some cells."""
        flat, unit = cells.reshape(-1), units.reshape(-1)
        out = np.empty(len(flat), np.int64)
        size = max(1, _PIECES // len(self._made.base))
        for start in range(0, len(flat), size):
            part = slice(start, start + size)
            all_units = self.pieces(flat[part])
            out[part] = all_units[np.arange(len(all_units)), unit[part]]
        return out.reshape(cells.shape)
