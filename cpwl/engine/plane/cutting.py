"""The polygonal complex that the engine refines: flat arrays, and the cutting of its cells."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Ints, in_parallel, prefix
from cpwl.engine.plane import cutting_kernels, edge_kernels
from cpwl.engine.plane.complex import Complex
from cpwl.engine.plane.signs import StageSigns
from cpwl.engine.plane.tightening import scale_of, sharpened
from cpwl.engine.rational import Arbiter, Vertices
from cpwl.engine.work import TooLargeError

# Vertices whose place on their edge rounding leaves open by more than this share of the domain's
# extent are computed exactly, so that their coordinates are good ones.
_BLURRED = 1e-12


def split(
    complex_: Complex,
    signs: StageSigns,
    stage: int,
    column_unit: NDArray[np.int32],
    arbiter: Arbiter,
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
        return _split_segment(complex_, signs, stage, column_unit, arbiter, room, pool)
    return _split_polygons(complex_, signs, stage, column_unit, arbiter, room, pool)


def _check_room(
    room: int, complex_: Complex, signs: StageSigns, cells: int, points: int, edges: int, slots: int
) -> None:
    """Refuse a result that does not fit; sizes as in `Complex`, with the split's own arrays."""
    words = complex_.patterns.shape[1] + signs.pos.shape[1]
    needed = cells * (8 * words + 24) + 44 * points + 32 * edges + 8 * slots
    needed += 64 * len(complex_.patterns)
    if needed > room:
        raise TooLargeError(needed)


def _unset(count: int, dim: int) -> Vertices:
    """Make room for vertices."""
    return Vertices(np.empty((count, dim)), np.empty(count), np.empty(count, np.int64))


def _place_vertices(
    complex_: Complex,
    signs: StageSigns,
    stage: int,
    n_new: Ints,
    arbiter: Arbiter,
    out: Vertices,
    pool: ThreadPoolExecutor,
) -> None:
    """Place the new vertices on the edges, in the order of edges and along each."""
    first = prefix(n_new)
    n = int(first[-1])
    edge, column = np.empty((2, n), np.int32)
    blur = np.empty(n)
    scale = scale_of(complex_.corners)
    in_parallel(
        pool,
        lambda a, b: edge_kernels.place_vertices(
            complex_.points, complex_.error, complex_.edge_points, first, signs.offsets,
            signs.where, signs.spread, signs.blur, signs.fresh, signs.column,
            scale, a, b, out.points, out.error, edge, column, blur,
        ),
        n_new + 1,
        nanoseconds=20,
    )  # fmt: skip
    parents = complex_.names[complex_.edge_points[edge]]
    name = arbiter.add(parents, stage, signs.unit[column], signs.value[column])
    out.names[:] = np.arange(name, name + n)
    extent = np.ptp(complex_.corners, axis=0).max()
    out.points[:], out.error[:], _ = sharpened(out, blur > _BLURRED * extent, arbiter)


def _count_fresh(signs: StageSigns) -> Ints:
    """Count the new vertices on every edge."""
    total = prefix(signs.fresh)
    return total[signs.offsets[1:]] - total[signs.offsets[:-1]]


def _split_segment(
    complex_: Complex,
    signs: StageSigns,
    stage: int,
    column_unit: NDArray[np.int32],
    arbiter: Arbiter,
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
        lambda a, b: edge_kernels.split_intervals(
            signs.pos, signs.neg, signs.offsets, signs.column, signs.fresh, child, a, b, bits
        ),
        len(n_new),
        nanoseconds=30,
    )
    new = _unset(int(n_new.sum()), 1)
    _place_vertices(complex_, signs, stage, n_new, arbiter, new, pool)
    unit = np.empty(n_cells + 1, np.int32)
    old = np.zeros(n_cells + 1, np.bool_)
    old[child] = True
    vertices = []
    for before, fresh in zip(complex_.vertices, new, strict=True):
        merged = np.empty((n_cells + 1, *before.shape[1:]), before.dtype)
        merged[old], merged[~old] = before, fresh
        vertices.append(merged)
    unit[old], unit[~old] = complex_.point_unit, column_unit[signs.column[signs.fresh]]
    cells = np.arange(n_cells, dtype=np.int32)
    parent = np.repeat(np.arange(len(n_new)), n_new + 1)
    points, error, names = vertices
    return replace(
        complex_,
        points=points,
        error=error,
        names=names,
        patterns=np.hstack([complex_.patterns[parent], bits]),
        edge_points=np.stack([cells, cells + 1], axis=1),
        point_unit=unit,
    )


def _split_polygons(
    complex_: Complex,
    signs: StageSigns,
    stage: int,
    column_unit: NDArray[np.int32],
    arbiter: Arbiter,
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
        lambda a, b: cutting_kernels.count_cell_pieces(*shape, longest, a, b, count),
        size,
        nanoseconds=30,
    )
    bases = prefix(count[:, 2:6])  # faces, inner vertices, inner edges, corners
    n_faces, n_inner, n_inner_edges, n_corners = (int(x) for x in bases[-1])
    inner_first = n_points + n_on_edges
    first = np.array([0, inner_first, edge_first[-1], 0])
    total_points = inner_first + n_inner
    total_edges = int(edge_first[-1]) + n_inner_edges
    _check_room(room, complex_, signs, n_faces, total_points, total_edges, n_corners)

    points, error, names = _unset(total_points, 2)
    points[:n_points], error[:n_points], names[:n_points] = complex_.vertices
    on_edges = slice(n_points, inner_first)
    new = Vertices(points[on_edges], error[on_edges], names[on_edges])
    _place_vertices(complex_, signs, stage, n_new, arbiter, new, pool)
    origin = np.empty((n_inner, 3), np.int32)
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

    scale = scale_of(complex_.corners)

    def cut(start: int, stop: int, known: NDArray[np.int32], ask: NDArray[np.int32]) -> int:
        return cutting_kernels.split_cells(
            *shape, count, bases, longest, scale, known, ask, not arbiter.exact, start, stop,
            points, error, origin, edge_points, edge_cells, edge_column, corners, edges, sizes,
            patterns[:, width:],
        )  # fmt: skip

    def first_pass(start: int, stop: int) -> tuple[int, int]:
        ask = np.zeros(9, np.int32)
        return cut(start, stop, np.empty((0, 4), np.int32), ask), int(ask[8])

    done = in_parallel(pool, first_pass, count[:, 5], nanoseconds=60)
    surprises = sum(n for n, _ in done)
    for cell in np.flatnonzero(count[:, 6] == 2).tolist():
        surprises += _cut_exactly(cell, cut, count, names, signs, stage, arbiter)
    if n_inner_edges:
        edge_unit[edge_first[-1] :] = column_unit[edge_column[edge_first[-1] :]]
    made = slice(None)
    if surprises:
        made = _used(bases[:, 1], count[:, 3], inner_first)[inner_first:]
    ends, across = names[origin[made, :2]], origin[made, 2]
    first_name = arbiter.add(ends, stage, signs.unit[across], signs.value[across])
    names[inner_first:][made] = first_name + np.arange(len(ends))
    result = Complex(
        points, error, names, patterns, edge_points, edge_cells, edge_unit, prefix(sizes), corners,
        edges, complex_.point_unit, complex_.corners, complex_.undecided + sum(n for _, n in done),
        complex_.broken + int((count[:, 6] > 0).sum()),
    )  # fmt: skip
    if not surprises:
        return result
    return _close_gaps(result, count[:, 2:6], bases, inner_first, int(edge_first[-1]))


def _cut_exactly(
    cell: int,
    cut: Callable[[int, int, NDArray[np.int32], NDArray[np.int32]], int],
    count: NDArray[np.int32],
    names: Ints,
    signs: StageSigns,
    stage: int,
    arbiter: Arbiter,
) -> int:
    """Cut a cell where float64 leaves the side of some crossings open; returns what `cut` does."""
    known = np.empty((0, 4), np.int32)
    ask = np.zeros(9, np.int32)
    while True:
        surprises = cut(cell, cell + 1, known, ask)
        if count[cell, 6] != 2:
            return surprises
        p, q, across, column, right, *chords = ask[:8].tolist()
        meet = arbiter.add(names[None, [p, q]], stage, signs.unit[[across]], signs.value[[across]])
        sign = arbiter.signs(np.array([meet]), stage, signs.unit[[column]], signs.value[[column]])
        side = int(sign[0]) * (-1 if right else 1)
        known = np.append(known, np.array([[*chords, side]], np.int32), axis=0)


def _fill_segments(
    target: NDArray[np.int32],
    edge_points: NDArray[np.int32],
    n_new: Ints,
    edge_first: Ints,
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
    bases: Ints,
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
        error=complex_.error[vertices],
        names=complex_.names[vertices],
        patterns=complex_.patterns[faces],
        edge_points=new_point[complex_.edge_points[edges]].astype(np.int32),
        edge_cells=np.where(cells >= 0, new_cell[cells], -1).astype(np.int32),
        edge_unit=complex_.edge_unit[edges],
        cell_offsets=prefix(sizes),
        cell_corners=new_point[complex_.cell_corners[corners]].astype(np.int32),
        cell_edges=new_edge[complex_.cell_edges[corners]].astype(np.int32),
    )


def _used(bases: Ints, made: NDArray[np.int32], start: int) -> NDArray[np.bool_]:
    """Flag the places in use: all before ``start``, then ``made[c]`` from ``bases[c]`` on."""
    used = np.zeros(int(bases[-1]), np.bool_)
    used[:start] = True
    within = np.arange(made.sum()) - np.repeat(prefix(made)[:-1], made)
    used[np.repeat(bases[:-1], made) + within] = True
    return used
