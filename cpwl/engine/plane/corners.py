"""Corners of cells: what a proof starts from, which of them it takes, and what is outside them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Floats, Ints, next_corner
from cpwl.engine.plane.complex import Complex
from cpwl.engine.plane.sides import Sides
from cpwl.engine.work import Work

# Corners of cells whose edges meet at a smaller angle (its sine) are used only where nothing else
# is left.
_FLAT = 1e-3


class Corners(NamedTuple):
    """Corners of cells, by cells; P edges leave a cell's corner."""

    cell: Ints  # (N,)
    vertex: Ints  # (N,)
    beyond: Ints  # (N, P) the cell on the other side of each edge, -1 outside
    edge: Ints  # (N, P) the edges themselves; P = 1: the vertex
    unit: Ints  # (N, P) units whose knots they lie on
    sine: Floats  # (N,) of the angle between the edges


def choose(
    complex_: Complex, corners: Corners, waiting: NDArray, tried: NDArray, attempt: int
) -> Ints:
    """Choose a corner for every vertex that waits, ascending in cells.

    First as few cells as reach all vertices; then the cells with the widest angles, one each.
    """
    usable = waiting[corners.vertex] & ~tried & usable_corners(complex_, corners)
    if attempt == 0:
        return _cover(corners, usable & (corners.sine > _FLAT), len(waiting))
    rows = np.flatnonzero(usable)
    rows = rows[np.lexsort([-corners.sine[rows], corners.vertex[rows]])]
    rows = rows[np.unique(corners.vertex[rows], return_index=True)[1]]
    return rows[np.argsort(corners.cell[rows], kind="stable")]


def usable_corners(complex_: Complex, corners: Corners) -> NDArray[np.bool_]:
    """Flag the corners whose two lines define the vertex: on the domain's boundary, with a side."""
    outside = (corners.beyond < 0).any(axis=1)
    on_boundary = np.zeros(len(complex_.points), np.bool_)
    on_boundary[corners.vertex[outside]] = True
    return outside | ~on_boundary[corners.vertex]


def _cover(corners: Corners, usable: NDArray[np.bool_], n_points: int) -> Ints:
    """Choose few cells that have usable corners at all vertices; greedily."""
    rows = np.flatnonzero(usable)
    cells, first = np.unique(corners.cell[rows], return_index=True)
    of_cell = np.split(rows, first[1:])
    order = sorted(range(len(cells)), key=lambda k: -len(of_cell[k]))
    covered = np.zeros(n_points, np.bool_)
    found: list[Ints] = []
    most = max((len(x) for x in of_cell), default=0)
    waiting = order
    for wanted in range(most, 0, -1):
        later = []
        for k in waiting:
            mine = of_cell[k][~covered[corners.vertex[of_cell[k]]]]
            if len(mine) >= wanted:
                covered[corners.vertex[mine]] = True
                found.append(mine)
            elif len(mine):
                later.append(k)
        waiting = later
    joined = np.concatenate(found) if found else np.empty(0, np.int64)
    return joined[np.argsort(corners.cell[joined], kind="stable")]


def corners_of(complex_: Complex) -> Corners:
    """List the corners of all cells."""
    n_cells = len(complex_.patterns)
    if complex_.points.shape[1] == 1:
        cell = np.repeat(np.arange(n_cells), 2)
        vertex = cell + np.tile([0, 1], n_cells)
        beyond = np.where(vertex == cell, cell - 1, cell + 1)
        beyond = np.where(beyond == n_cells, -1, beyond)[:, None]
        unit = complex_.point_unit[vertex].astype(np.int64)[:, None]
        return Corners(cell, vertex, beyond, vertex[:, None], unit, np.ones(len(cell)))
    offsets = complex_.cell_offsets
    cell = np.repeat(np.arange(n_cells), np.diff(offsets))
    place = np.arange(len(cell))
    after = next_corner(offsets)
    before = np.empty_like(place)
    before[after] = place
    edges = np.stack([complex_.cell_edges[before], complex_.cell_edges], axis=1)
    sides = complex_.edge_cells[edges].astype(np.int64)  # (N, 2, 2)
    beyond = np.where(sides[..., 0] == cell[:, None], sides[..., 1], sides[..., 0])
    vertex = complex_.cell_corners.astype(np.int64)
    a = complex_.points[vertex[before]] - complex_.points[vertex]
    b = complex_.points[vertex[after]] - complex_.points[vertex]
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cross = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
    sine = np.where(lengths > 0, cross / np.where(lengths > 0, lengths, 1.0), 0.0)
    unit = complex_.edge_unit[edges].astype(np.int64)
    return Corners(cell, vertex, beyond, edges.astype(np.int64), unit, sine)


def is_closed(complex_: Complex) -> bool:
    """Whether the boundaries of the cells add up to one loop, through all corners in order."""
    n = len(complex_.corners)
    if complex_.points.shape[1] == 1:
        ends = complex_.names[[0, -1]].tolist()
        return ends == [0, 1] and len(complex_.patterns) == len(complex_.points) - 1
    loop = _boundary(complex_)
    names = complex_.names[loop]
    ring = names[names < n]
    start = int(np.argmin(ring)) if len(ring) else 0
    return np.array_equal(np.roll(ring, -start), np.arange(n))


def _boundary(complex_: Complex) -> Ints:
    """Walk the boundary anticlockwise, from vertex to vertex; empty unless it is one loop."""
    offsets = complex_.cell_offsets
    start = complex_.cell_corners.astype(np.int64)
    end = start[next_corner(offsets)]
    n = len(complex_.points)
    forth, back = start * n + end, end * n + start
    if len(np.unique(forth)) != len(forth):
        return np.empty(0, np.int64)
    outer = ~np.isin(forth, back)
    following = np.full(n, -1)
    following[start[outer]] = end[outer]
    if len(np.unique(start[outer])) != outer.sum() or not outer.any():
        return np.empty(0, np.int64)
    loop = [int(start[outer][0])]
    while (step := int(following[loop[-1]])) != loop[0]:
        if step < 0 or len(loop) > n:
            return np.empty(0, np.int64)
        loop.append(step)
    return np.array(loop) if len(loop) == outer.sum() else np.empty(0, np.int64)


class Outline:
    """The domain's sides as affine functions, exactly, and which of them each vertex lies on."""

    def __init__(self, work: Work, complex_: Complex) -> None:
        number = {name: k for k, name in enumerate(complex_.corner_names.tolist())}
        n = len(number)
        self.functions = Sides([work.arbiter.point(name) for name in number])
        self.of = np.full((len(complex_.points), 2), -1)  # one or, at corners, two sides
        if complex_.points.shape[1] == 1:
            self.of[0, 0], self.of[-1, 0] = 0, 1
            return
        loop = _boundary(complex_)
        names = complex_.names[loop]
        first = np.flatnonzero(names == complex_.corner_names[0])
        start = int(first[0]) if len(first) else 0
        side = 0
        for vertex, name in zip(
            np.roll(loop, -start), np.roll(names, -start).tolist(), strict=True
        ):
            if name in number:
                side = number[name]
                self.of[vertex] = (side - 1) % n, side
            else:
                self.of[vertex, 0] = side
