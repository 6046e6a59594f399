"""The polygonal complex that the engine refines: flat arrays, and the cutting of its cells."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cpwl import _kernels
from cpwl._arrays import prefix
from cpwl._parallel import in_parallel
from cpwl._signs import StageSigns


@dataclass(frozen=True, eq=False)
class Complex:
    """Cells, edges and vertices of a subdivided polygon (P = 2) or segment (P = 1).

    In one dimension the points ascend, cell i is the interval from point i to point i + 1, and the
    edges are the cells; the arrays below ``edge_points`` are then empty.
    """

    points: NDArray[np.float64]  # (V, P)
    patterns: NDArray[np.uint64]  # (C, W) packed bits of the stages so far
    edge_points: NDArray[np.int32]  # (E, 2)
    edge_cells: NDArray[np.int32]  # (E, 2) left and right of the edge, -1 outside
    edge_unit: NDArray[np.int32]  # (E,) unit whose knot the edge lies on, -1 on the boundary
    cell_offsets: NDArray[np.int64]  # (C + 1,)
    cell_corners: NDArray[np.int32]  # (N,) anticlockwise
    cell_edges: NDArray[np.int32]  # (N,) edge from each corner to the next
    point_unit: NDArray[np.int32]  # (V,) only P = 1: unit whose knot the point is, -1 at the ends
    broken: int = 0  # cells left whole because rounding made their signs inconsistent


class TooLargeError(Exception):
    """The refined complex would take more memory than there is room for."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


def whole(corners: NDArray[np.float64]) -> Complex:
    """Make the complex of an undivided polygon (anticlockwise corners) or segment (two ends)."""
    n, dim = corners.shape
    empty = np.empty((0, 2), np.int32)
    patterns = np.empty((1, 0), np.uint64)
    nothing = np.empty(0, np.int32)
    if dim == 1:
        return Complex(
            corners.copy(), patterns, np.array([[0, 1]], np.int32), empty, nothing,
            np.empty(0, np.int64), nothing, nothing, np.full(2, -1, np.int32),
        )  # fmt: skip
    ring = np.arange(n, dtype=np.int32)
    return Complex(
        corners.copy(), patterns, np.stack([ring, np.roll(ring, -1)], axis=1),
        np.stack([np.zeros(n, np.int32), np.full(n, -1, np.int32)], axis=1),
        np.full(n, -1, np.int32), np.array([0, n]), ring, ring, nothing,
    )  # fmt: skip


def split(
    complex_: Complex,
    signs: StageSigns,
    column_unit: NDArray[np.int32],
    room: int,
    pool: ThreadPoolExecutor,
) -> Complex:
    """Cut every cell by the columns of one stage and append the stage's bits to the patterns.

    Parameters
    ----------
    column_unit : (K,)
        The network's number of the unit of each column, for the labels.
    room : int
        Bytes that the result may take.

    Raises
    ------
    TooLargeError
        The result would take more; nothing has been allocated then.
    """
    if complex_.points.shape[1] == 1:
        return _split_segment(complex_, signs, column_unit, room, pool)
    return _split_polygons(complex_, signs, column_unit, room, pool)


def _check_room(
    room: int, complex_: Complex, signs: StageSigns, cells: int, points: int, edges: int, slots: int
) -> None:
    """Refuse a result that does not fit; sizes as in `Complex`, with the split's own arrays."""
    words = complex_.patterns.shape[1] + signs.pos.shape[1]
    needed = cells * (8 * words + 24) + 16 * points + 32 * edges + 8 * slots
    needed += 64 * len(complex_.patterns)
    if needed > room:
        raise TooLargeError(needed)


def _new_points(complex_: Complex, signs: StageSigns, n_new: NDArray[np.int64]) -> NDArray:
    """Place the new vertices on the edges, in the order of edges and along each."""
    edge = np.repeat(np.arange(len(n_new)), n_new)
    start = complex_.points[complex_.edge_points[edge, 0]]
    end = complex_.points[complex_.edge_points[edge, 1]]
    return start + signs.where[signs.fresh, None] * (end - start)


def _count_fresh(signs: StageSigns) -> NDArray[np.int64]:
    """Count the new vertices on every edge."""
    total = prefix(signs.fresh)
    return total[signs.offsets[1:]] - total[signs.offsets[:-1]]


def _split_segment(
    complex_: Complex,
    signs: StageSigns,
    column_unit: NDArray[np.int32],
    room: int,
    pool: ThreadPoolExecutor,
) -> Complex:
    """Cut intervals: new points go between the ends of their interval, in order."""
    n_new = _count_fresh(signs)
    child = prefix(n_new + 1)
    n_cells = int(child[-1])
    _check_room(room, complex_, signs, n_cells, n_cells, 0, 0)
    bits = np.empty((n_cells, signs.pos.shape[1]), np.uint64)
    in_parallel(
        pool,
        lambda a, b: _kernels.split_intervals(
            signs.pos, signs.neg, signs.offsets, signs.column, signs.fresh, child, a, b, bits
        ),
        len(n_new),
        nanoseconds=30,
    )
    points = np.empty((n_cells + 1, 1))
    unit = np.empty(n_cells + 1, np.int32)
    old = np.zeros(n_cells + 1, np.bool_)
    old[child] = True
    points[old], points[~old] = complex_.points, _new_points(complex_, signs, n_new)
    unit[old], unit[~old] = complex_.point_unit, column_unit[signs.column[signs.fresh]]
    cells = np.arange(n_cells, dtype=np.int32)
    parent = np.repeat(np.arange(len(n_new)), n_new + 1)
    return replace(
        complex_,
        points=points,
        patterns=np.hstack([complex_.patterns[parent], bits]),
        edge_points=np.stack([cells, cells + 1], axis=1),
        point_unit=unit,
    )


def _split_polygons(
    complex_: Complex,
    signs: StageSigns,
    column_unit: NDArray[np.int32],
    room: int,
    pool: ThreadPoolExecutor,
) -> Complex:
    """Cut polygons: first every edge once, then every cell on its own."""
    n_points = len(complex_.points)
    n_cells = len(complex_.cell_offsets) - 1
    n_new = _count_fresh(signs)
    edge_first = prefix(n_new + 1)
    vertex = (n_points - 1 + np.cumsum(signs.fresh)).astype(np.int32)
    n_on_edges = int(n_new.sum())

    size = np.diff(complex_.cell_offsets) + np.add.reduceat(
        n_new[complex_.cell_edges], complex_.cell_offsets[:-1]
    )
    longest = int(size.max())
    shape = (
        complex_.cell_offsets, complex_.cell_corners, complex_.cell_edges, complex_.edge_points,
        signs.pos, signs.neg, signs.offsets, signs.column, vertex, edge_first,
    )  # fmt: skip
    count = np.empty((n_cells, 7), np.int32)
    in_parallel(
        pool,
        lambda a, b: _kernels.count_cell_pieces(*shape, longest, a, b, count),
        size,
        nanoseconds=30,
    )
    bases = prefix(count[:, 2:6])  # faces, inner vertices, inner edges, corners
    n_faces, n_inner, n_inner_edges, n_corners = (int(x) for x in bases[-1])
    first = np.array([0, n_points + n_on_edges, edge_first[-1], 0])
    total_points = n_points + n_on_edges + n_inner
    total_edges = int(edge_first[-1]) + n_inner_edges
    _check_room(room, complex_, signs, n_faces, total_points, total_edges, n_corners)

    points = np.empty((total_points, 2))
    points[:n_points] = complex_.points
    points[n_points : n_points + n_on_edges] = _new_points(complex_, signs, n_new)
    edge_points = np.empty((total_edges, 2), np.int32)
    _fill_segments(edge_points, complex_.edge_points, n_new, edge_first, n_points)
    edge_cells = np.full((total_edges, 2), -1, np.int32)
    edge_unit = np.empty(total_edges, np.int32)
    edge_unit[: edge_first[-1]] = np.repeat(complex_.edge_unit, n_new + 1)
    edge_column = np.zeros(total_edges, np.int32)
    corners = np.empty(n_corners, np.int32)
    edges = np.empty(n_corners, np.int32)
    sizes = np.zeros(n_faces, np.int64)
    width = complex_.patterns.shape[1]
    patterns = np.empty((n_faces, width + signs.pos.shape[1]), np.uint64)
    parent = np.repeat(np.arange(n_cells), count[:, 2])
    patterns[:, :width] = complex_.patterns[parent]
    bases += first
    surprises = in_parallel(
        pool,
        lambda a, b: _kernels.split_cells(
            *shape, count, bases, longest, a, b,
            points, edge_points, edge_cells, edge_column, corners, edges, sizes,
            patterns[:, width:],
        ),
        count[:, 5],
        nanoseconds=60,
    )  # fmt: skip
    if n_inner_edges:
        edge_unit[edge_first[-1] :] = column_unit[edge_column[edge_first[-1] :]]
    result = Complex(
        points, patterns, edge_points, edge_cells, edge_unit, prefix(sizes), corners, edges,
        complex_.point_unit, complex_.broken + int((count[:, 6] > 0).sum()),
    )  # fmt: skip
    if not any(surprises):
        return result
    return _close_gaps(result, count[:, 2:6], bases, n_points + n_on_edges, int(edge_first[-1]))


def _fill_segments(
    target: NDArray[np.int32],
    edge_points: NDArray[np.int32],
    n_new: NDArray[np.int64],
    edge_first: NDArray[np.int64],
    n_points: int,
) -> None:
    """Write the ends of the segments of all edges: v0 - x - y - v1 with new vertices x, y."""
    n = int(edge_first[-1])
    inner = np.ones(n, np.bool_)
    inner[edge_first[:-1]] = False
    starts, ends = target[:n, 0], target[:n, 1]
    fresh = np.arange(n_points, n_points + int(n_new.sum()), dtype=np.int32)
    starts[inner] = fresh
    starts[~inner] = edge_points[:, 0]
    last = np.zeros(n, np.bool_)
    last[edge_first[1:] - 1] = True
    ends[~last] = fresh
    ends[last] = edge_points[:, 1]


def _close_gaps(
    complex_: Complex,
    made: NDArray[np.int32],
    bases: NDArray[np.int64],
    inner_points: int,
    inner_edges: int,
) -> Complex:
    """Drop the places that were reserved but not used, where chords met in a common point."""
    faces, vertices, edges, corners = (
        _used(bases[:, k], made[:, k], start)
        for k, start in enumerate((0, inner_points, inner_edges, 0))
    )
    new_point, new_edge, new_cell = (
        np.cumsum(x, dtype=np.int64) - 1 for x in (vertices, edges, faces)
    )
    cells = complex_.edge_cells[edges]
    sizes = np.diff(complex_.cell_offsets)[faces]
    return replace(
        complex_,
        points=complex_.points[vertices],
        patterns=complex_.patterns[faces],
        edge_points=new_point[complex_.edge_points[edges]].astype(np.int32),
        edge_cells=np.where(cells >= 0, new_cell[cells], -1).astype(np.int32),
        edge_unit=complex_.edge_unit[edges],
        cell_offsets=prefix(sizes),
        cell_corners=new_point[complex_.cell_corners[corners]].astype(np.int32),
        cell_edges=new_edge[complex_.cell_edges[corners]].astype(np.int32),
    )


def _used(bases: NDArray[np.int64], made: NDArray[np.int32], start: int) -> NDArray[np.bool_]:
    """Flag the places in use: all before ``start``, then ``made[c]`` from ``bases[c]`` on."""
    used = np.zeros(int(bases[-1]), np.bool_)
    used[:start] = True
    within = np.arange(made.sum()) - np.repeat(prefix(made)[:-1], made)
    used[np.repeat(bases[:-1], made) + within] = True
    return used
