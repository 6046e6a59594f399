"""Cutting a planar or one-dimensional complex by the columns of one stage."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Ints, in_parallel, prefix
from cpwl.engine.plane import cutting_kernels as kernels
from cpwl.engine.plane import edge_kernels
from cpwl.engine.plane.complex import Complex
from cpwl.engine.plane.meetings import FEWEST, Meetings
from cpwl.engine.plane.questions import Questions
from cpwl.engine.plane.signs import StageSigns
from cpwl.engine.plane.tightening import scale_of, sharpened
from cpwl.engine.rational import Arbiter, Vertices
from cpwl.engine.work import TooLargeError

# Compute a new vertex in rational arithmetic if rounding can move it along its edge by more than
# this share of the domain's extent.
_RECOMPUTE_ABOVE = 1e-12


def split(
    complex_: Complex,
    signs: StageSigns,
    stage: int,
    column_unit: NDArray[np.int32],
    arbiter: Arbiter,
    room: int,
    pool: ThreadPoolExecutor,
    questions: Questions | None = None,
    meetings: Meetings | None = None,
) -> Complex:
    """Cut every cell by the columns of one stage and append the stage's bits to the patterns.

    Parameters
    ----------
    column_unit : (K,)
        The network's number of the unit of each column, for the labels.
    room : int
        Bytes that the result may take.
    questions : Questions, optional
        Answers for the arbiter where that is out of reach.
    meetings : Meetings, optional
        Answers before the arbiter is asked, many at a time.

    Raises
    ------
    TooLargeError
        The result would take more; nothing has been allocated then.
    """
    if complex_.points.shape[1] == 1:
        return _split_segment(complex_, signs, stage, column_unit, arbiter, room, pool, meetings)
    return _split_polygons(
        complex_, signs, stage, column_unit, arbiter, room, pool, questions, meetings
    )


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
    meetings: Meetings | None,
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
    poor, found = blur > _RECOMPUTE_ABOVE * extent, None
    if meetings is not None and poor.any():
        e, c = edge[poor].astype(np.int64), column[poor]
        found = meetings.crossings(e, signs.unit[c], signs.value[c], out.points[poor])
    out.points[:], out.error[:], _ = sharpened(out, poor, arbiter, found)


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
    meetings: Meetings | None,
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
    _place_vertices(complex_, signs, stage, n_new, arbiter, new, pool, meetings)
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
    questions: Questions | None,
    meetings: Meetings | None,
) -> Complex:
    """Cut polygons: first every edge once, then every cell on its own."""
    n_new = _count_fresh(signs)
    uncut = _uncut(complex_, signs, n_new)
    longest, count = _count_pieces(uncut, n_new, pool)
    n_points = len(complex_.points)
    first = np.array([0, n_points + int(n_new.sum()), uncut.edge_first[-1], 0])
    bases = prefix(count[:, : kernels.COLUMNS]) + first
    _check_room(room, complex_, signs, *bases[-1].tolist())

    inner_point, inner_edge = first[kernels.VERTICES], first[kernels.EDGES]
    vertices = _unset(bases[-1, kernels.VERTICES], 2)
    for place, old in zip(vertices, complex_.vertices, strict=True):
        place[:n_points] = old
    on_edges = slice(n_points, inner_point)
    new = Vertices(vertices.points[on_edges], vertices.error[on_edges], vertices.names[on_edges])
    _place_vertices(complex_, signs, stage, n_new, arbiter, new, pool, meetings)
    out = _places(complex_, signs, vertices, n_new, uncut.edge_first, count, bases)

    scale = scale_of(complex_.corners)

    def cut(start: int, stop: int, doubts: kernels.Doubts) -> int:
        return kernels.split_cells(uncut, count, bases, longest, scale, doubts, start, stop, out)

    surprises, taken = _cut_cells(
        cut, count, vertices.names, signs, stage, arbiter, pool, questions, meetings
    )
    edge_unit = np.empty(len(out.edge_points), np.int32)
    edge_unit[:inner_edge] = np.repeat(complex_.edge_unit, n_new + 1)
    edge_unit[inner_edge:] = column_unit[out.edge_column[inner_edge:]]
    made = slice(None)
    if surprises:
        made = _used(bases[:, kernels.VERTICES], count[:, kernels.VERTICES], inner_point)
        made = made[inner_point:]
    ends, across = vertices.names[out.origin[made, :2]], out.origin[made, 2]
    first_name = arbiter.add(ends, stage, signs.unit[across], signs.value[across])
    vertices.names[inner_point:][made] = first_name + np.arange(len(ends))
    result = Complex(
        points=vertices.points,
        error=vertices.error,
        names=vertices.names,
        patterns=out.patterns,
        edge_points=out.edge_points,
        edge_cells=out.edge_cells,
        edge_unit=edge_unit,
        cell_offsets=prefix(out.sizes),
        cell_corners=out.corners,
        cell_edges=out.edges,
        point_unit=complex_.point_unit,
        corners=complex_.corners,
        corner_names=complex_.corner_names,
        undecided=complex_.undecided + taken,
        broken=complex_.broken + int((count[:, kernels.STATE] == kernels.WHOLE).sum()),
    )
    return _close_gaps(result, count, bases, first) if surprises else result


def _uncut(complex_: Complex, signs: StageSigns, n_new: Ints) -> kernels.Uncut:
    """Put together what is to be cut and where."""
    vertex = len(complex_.points) - 1 + np.cumsum(signs.fresh)
    return kernels.Uncut(
        cell_offsets=complex_.cell_offsets,
        cell_corners=complex_.cell_corners,
        cell_edges=complex_.cell_edges,
        edge_points=complex_.edge_points,
        pos=signs.pos,
        neg=signs.neg,
        offsets=signs.offsets,
        column=signs.column,
        vertex=vertex.astype(np.int32),
        edge_first=prefix(n_new + 1),
    )


def _count_pieces(
    uncut: kernels.Uncut, n_new: Ints, pool: ThreadPoolExecutor
) -> tuple[int, NDArray[np.int32]]:
    """Bound the boundary points of a cell, and what each cell is cut into: (C, 6)."""
    offsets = uncut.cell_offsets
    size = np.diff(offsets) + np.add.reduceat(n_new[uncut.cell_edges], offsets[:-1])
    longest = int(size.max())
    count = np.empty((len(size), 6), np.int32)
    in_parallel(
        pool,
        lambda a, b: kernels.count_cell_pieces(uncut, longest, a, b, count),
        size,
        nanoseconds=30,
    )
    return longest, count


def _places(
    complex_: Complex,
    signs: StageSigns,
    vertices: Vertices,
    n_new: Ints,
    edge_first: Ints,
    count: NDArray[np.int32],
    bases: Ints,
) -> kernels.Pieces:
    """Allocate what the cells are cut into, and fill in what is known before."""
    faces, _, edges, corners = bases[-1].tolist()
    edge_points = np.empty((edges, 2), np.int32)
    _fill_segments(edge_points, complex_.edge_points, n_new, edge_first, len(complex_.points))
    width = complex_.patterns.shape[1]
    patterns = np.empty((faces, width + signs.pos.shape[1]), np.uint64)
    patterns[:, :width] = np.repeat(complex_.patterns, count[:, kernels.FACES], axis=0)
    return kernels.Pieces(
        points=vertices.points,
        error=vertices.error,
        origin=np.empty((count[:, kernels.VERTICES].sum(), 3), np.int32),
        edge_points=edge_points,
        edge_cells=np.full((edges, 2), -1, np.int32),
        edge_column=np.zeros(edges, np.int32),
        corners=np.empty(corners, np.int32),
        edges=np.empty(corners, np.int32),
        sizes=np.zeros(faces, np.int64),
        patterns=patterns,
    )


def _cut_cells(
    cut: Callable[[int, int, kernels.Doubts], int],
    count: NDArray[np.int32],
    names: Ints,
    signs: StageSigns,
    stage: int,
    arbiter: Arbiter,
    pool: ThreadPoolExecutor,
    questions: Questions | None,
    meetings: Meetings | None,
) -> tuple[int, int]:
    """Cut all cells; returns how many became less than was counted, and the sides taken as 0."""
    lenient = not arbiter.exact and questions is None

    def first_pass(start: int, stop: int) -> tuple[int, int]:
        ask = np.zeros(10, np.int32)
        known = np.empty((0, 4), np.int32)
        surprises = cut(start, stop, kernels.Doubts(known, ask, lenient))
        return surprises, int(ask[kernels.TAKEN])

    done = in_parallel(pool, first_pass, count[:, kernels.CORNERS], nanoseconds=60)
    surprises, taken = (sum(x) for x in zip(*done, strict=True))
    doubtful = np.flatnonzero(count[:, kernels.STATE] == kernels.IN_DOUBT)
    known_of = {cell: np.empty((0, 4), np.int32) for cell in doubtful.tolist()}
    if meetings is not None:
        surprises += _answer_many(cut, count, known_of, signs, meetings)
        doubtful = doubtful[count[doubtful, kernels.STATE] == kernels.IN_DOUBT]
    for cell in doubtful.tolist():
        known = known_of[cell]
        while True:
            ask = np.zeros(10, np.int32)
            made = cut(cell, cell + 1, kernels.Doubts(known, ask, lenient))
            if count[cell, kernels.STATE] != kernels.IN_DOUBT:
                break
            if questions is None or arbiter.exact:
                answer = _answer(ask, names, signs, stage, arbiter)
            else:
                answer, unknown = _answer_in_bits(ask, cell, signs, questions)
                taken += unknown
            known = np.vstack([known, answer])
        surprises += made
    return surprises, taken


def _answer_many(
    cut: Callable[[int, int, kernels.Doubts], int],
    count: NDArray[np.int32],
    known: dict[int, NDArray[np.int32]],
    signs: StageSigns,
    meetings: Meetings,
) -> int:
    """Decide sides in all doubtful cells at once, and cut again, while there are many of them.

    What is decided is added to what is known of the cells. Returns how many became less than was
    counted.
    """
    surprises, waiting = 0, np.array(list(known), np.int64)
    while len(waiting) >= FEWEST:
        asks = np.zeros((len(waiting), 10), np.int32)
        for cell, ask in zip(waiting.tolist(), asks, strict=True):
            made = cut(cell, cell + 1, kernels.Doubts(known[cell], ask, False))
            if count[cell, kernels.STATE] != kernels.IN_DOUBT:
                surprises += made
        open_ = count[waiting, kernels.STATE] == kernels.IN_DOUBT
        waiting, asks = waiting[open_], asks[open_]
        three = asks[:, [kernels.ALONG, kernels.ACROSS, kernels.COLUMN]]
        sign, proven = meetings.sides(waiting, signs.unit[three], signs.value[three])
        side = np.where(asks[:, kernels.RIGHT] > 0, -sign, sign)
        answers = np.column_stack([asks[:, :3], side]).astype(np.int32)
        waiting, answers = waiting[proven], answers[proven]
        for cell, answer in zip(waiting.tolist(), answers, strict=True):
            known[cell] = np.vstack([known[cell], answer])
    return surprises


def _answer(
    ask: NDArray[np.int32], names: Ints, signs: StageSigns, stage: int, arbiter: Arbiter
) -> NDArray[np.int32]:
    """Decide the side of a vertex of a chord in rational arithmetic; see `kernels.Doubts`."""
    *chords, p, q, across, column, right, _, _ = ask.tolist()
    meet = arbiter.add(names[None, [p, q]], stage, signs.unit[[across]], signs.value[[across]])
    sign = arbiter.signs(np.array([meet]), stage, signs.unit[[column]], signs.value[[column]])
    return np.array([*chords, -sign[0] if right else sign[0]], np.int32)


def _answer_in_bits(
    ask: NDArray[np.int32], cell: int, signs: StageSigns, questions: Questions
) -> tuple[NDArray[np.int32], int]:
    """Decide it in about 106 bits; what stays open is taken as 0, and counted."""
    *chords, _, _, across, column, right, _, along = ask.tolist()
    three = [along, across, column]
    sign = questions.side(cell, signs.unit[three], signs.value[three])
    side = 0 if sign is None else sign
    return np.array([*chords, -side if right else side], np.int32), int(sign is None)


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


def _close_gaps(complex_: Complex, count: NDArray[np.int32], bases: Ints, first: Ints) -> Complex:
    """Drop the places that were reserved but not used, where chords met in a common point."""
    faces, vertices, edges, corners = (
        _used(bases[:, k], count[:, k], int(first[k])) for k in range(len(first))
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
