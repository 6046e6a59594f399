"""Merging of neighbouring cells of a complex that are really one cell.

Two things cut too finely: a knot of a max-pooling unit that has no effect (see
`cpwl.engine.contests`), and a line along which a domain was cut into strips. In both cases the
pieces have the same pattern and their union is convex.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Ints, Ragged, next_corner, prefix, take_rows
from cpwl.engine.contests import clear_lost, compare_sides, components, contests_of
from cpwl.engine.plane.complex import Complex
from cpwl.network import Network


def merge_contested(
    complex_: Complex,
    network: Network,
    stage: int,
    bit_unit: NDArray[np.int32],
    base: NDArray[np.int32],
    fixed: NDArray[np.bool_],
    pool: ThreadPoolExecutor,
) -> Complex:
    """Clear the bits that have no effect and merge the cells that then agree.

    Parameters
    ----------
    stage
        What its contests leave without effect is cleared.
    bit_unit, base
        As in `cpwl.engine.contests.clear_lost`.
    fixed : (V,)
        The vertices that stay: the domain's own corners.
    """
    contests = contests_of(network, stage)
    if len(contests) == 0:
        return complex_
    cleared, patterns = clear_lost(complex_.patterns, contests, bit_unit, base, pool)
    if len(cleared) == 0:
        return complex_
    if complex_.points.shape[1] == 1:
        unit = complex_.point_unit.copy()
        sides = np.stack([np.arange(-1, len(unit) - 1), np.arange(len(unit))], axis=1)
    else:
        unit, sides = complex_.edge_unit.copy(), complex_.edge_cells
    found = compare_sides(patterns, cleared, network, bit_unit, unit, sides)
    unit[found.left] = bit_unit[found.deciding]
    if complex_.points.shape[1] == 1:
        return merge_intervals(replace(complex_, patterns=patterns, point_unit=unit), found.removed)
    complex_ = replace(complex_, patterns=patterns, edge_unit=unit)
    return merge_polygons(complex_, found.removed, fixed)


def merge_intervals(complex_: Complex, removed: Ints) -> Complex:
    """Drop inner points of a subdivided segment."""
    keep = np.ones(len(complex_.points), np.bool_)
    keep[removed] = False
    cells = np.arange(keep.sum() - 1, dtype=np.int32)
    return replace(
        complex_,
        points=complex_.points[keep],
        error=complex_.error[keep],
        names=complex_.names[keep],
        point_unit=complex_.point_unit[keep],
        patterns=complex_.patterns[keep[:-1]],
        edge_points=np.stack([cells, cells + 1], axis=1),
    )


def merge_polygons(complex_: Complex, removed: Ints, fixed: NDArray[np.bool_]) -> Complex:
    """Drop edges between cells with the same pattern, and the vertices that they leave behind.

        +-----+-----+         +-----------+
        |  A  :  A  |   ->    |     A     |    ':' and the vertex above it go; the vertex below
        +-----+-----+         +-----+-----+    stays as long as the knot '|' under it ends there
              |                     |

    The loops are laid anew only around the cells that change. Cost: linear in the complex for
    copying, n log n in the corners of the cells that change.
    """
    if len(removed) == 0:
        return complex_
    n_edges, n_cells = len(complex_.edge_points), len(complex_.patterns)
    edge_points, edge_cells = complex_.edge_points.copy(), complex_.edge_cells.copy()
    edge_stays = np.ones(n_edges, np.bool_)
    edge_stays[removed] = False
    point_stays, straight, by_straight = _left_behind(edge_points, removed, edge_stays, fixed)
    group = components(edge_cells[removed, 0], edge_cells[removed, 1], n_cells)
    first_cell = np.empty(int(group.max()) + 1, np.int64)
    first_cell[group[::-1]] = np.arange(n_cells)[::-1]

    changes = np.zeros(n_cells, np.bool_)
    touched = edge_cells[np.concatenate([removed, by_straight])]
    changes[touched[touched >= 0]] = True
    loops = _loops(complex_, group, changes, edge_stays)
    run = _runs(edge_points[by_straight], by_straight, straight, n_edges)
    edge_stays[by_straight] = run[by_straight] == by_straight
    loops = _straighten(loops, straight, run, by_straight, first_cell, edge_points, edge_cells)
    offsets, corners, edges = _replace_loops(complex_, loops, changes, first_cell)

    new_point, new_edge = (
        np.cumsum(stays, dtype=np.int32) - np.int32(1) for stays in (point_stays, edge_stays)
    )
    cells = edge_cells[edge_stays]
    return replace(
        complex_,
        points=complex_.points[point_stays],
        error=complex_.error[point_stays],
        names=complex_.names[point_stays],
        patterns=complex_.patterns[first_cell],
        edge_points=new_point[edge_points[edge_stays]],
        edge_cells=np.where(cells >= 0, group[cells], np.int32(-1)),
        edge_unit=complex_.edge_unit[edge_stays],
        cell_offsets=offsets,
        cell_corners=new_point[corners],
        cell_edges=new_edge[edges],
    )


class _Loops(NamedTuple):
    """Half-edges around groups of cells, in the order of the groups and along each loop."""

    start: Ints  # vertex
    edge: Ints
    owner: Ints  # group


def _straighten(
    loops: _Loops,
    straight: NDArray[np.bool_],
    run: Ints,
    by_straight: Ints,
    first_cell: Ints,
    edge_points: NDArray[np.int32],
    edge_cells: NDArray[np.int32],
) -> _Loops:
    """Join the edges of every straight run into one, named after the first of them.

    The joined edges' ends and cells are written into ``edge_points`` and ``edge_cells``: an edge
    runs along the loop that comes first, which is on its left.
    """
    kept = ~straight[loops.start]
    start, edge, owner = loops.start[kept], run[loops.edge[kept]], loops.owner[kept]
    sizes = np.bincount(owner, minlength=len(first_cell))
    end = start[next_corner(prefix(sizes[sizes > 0]))]
    joined = np.flatnonzero(np.isin(edge, run[by_straight]))
    names, first = np.unique(edge[joined], return_index=True)
    at_second = np.ones(len(joined), np.bool_)
    at_second[first] = False
    left, right = joined[first], joined[at_second]
    edge_points[names] = np.stack([start[left], end[left]], axis=1)
    edge_cells[names, 0] = first_cell[owner[left]]
    edge_cells[names, 1] = -1
    edge_cells[edge[right], 1] = first_cell[owner[right]]
    return _Loops(start, edge, owner)


def _replace_loops(
    complex_: Complex, loops: _Loops, changes: NDArray[np.bool_], first_cell: Ints
) -> tuple[Ints, NDArray[np.int32], NDArray[np.int32]]:
    """Offsets, corners and edges of all groups: those of cells that stay, and the new loops."""
    old_sizes = np.diff(complex_.cell_offsets)
    sizes = old_sizes[first_cell]
    groups, count = np.unique(loops.owner, return_counts=True)
    sizes[groups] = count
    is_new = np.zeros(len(first_cell), np.bool_)
    is_new[groups] = True
    new_slot, old_slot = np.repeat(is_new, sizes), np.repeat(changes, old_sizes)
    corners, edges = np.empty((2, len(new_slot)), np.int32)
    corners[new_slot], corners[~new_slot] = loops.start, complex_.cell_corners[~old_slot]
    edges[new_slot], edges[~new_slot] = loops.edge, complex_.cell_edges[~old_slot]
    return prefix(sizes), corners, edges


def _left_behind(
    edge_points: NDArray[np.int32],
    removed: Ints,
    edge_stays: NDArray[np.bool_],
    fixed: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Ints]:
    """Find the vertices that the removed edges leave with no edge, or with two in one line.

    Returns the flags (V,) of the vertices that stay, of those that are straight, and the edges at
    the straight ones. A vertex that is not fixed and has two edges left lies inside a knot or a
    side of the domain, since cells are convex.
    """
    at_removed = np.zeros(len(fixed), np.bool_)
    at_removed[edge_points[removed].reshape(-1)] = True
    near = np.flatnonzero(at_removed[edge_points].any(axis=1) & edge_stays)
    degree = np.bincount(edge_points[near].reshape(-1), minlength=len(fixed))
    straight = at_removed & (degree == 2) & ~fixed
    stays = ~straight & ~(at_removed & (degree == 0))
    return stays, straight, near[straight[edge_points[near]].any(axis=1)]


def _loops(
    complex_: Complex,
    group: NDArray[np.int32],
    changes: NDArray[np.bool_],
    edge_stays: NDArray[np.bool_],
) -> _Loops:
    """Lay the loops around the groups of cells that change."""
    cells = np.flatnonzero(changes)
    offsets = complex_.cell_offsets
    sizes, start = take_rows(Ragged(offsets, complex_.cell_corners), cells)
    edge = take_rows(Ragged(offsets, complex_.cell_edges), cells)[1].astype(np.int64)
    start = start.astype(np.int64)
    owner = np.repeat(group[cells].astype(np.int64), sizes)
    end = start[next_corner(prefix(sizes))]
    stays = edge_stays[edge]
    start, end, edge, owner = start[stays], end[stays], edge[stays], owner[stays]

    # around a convex union every vertex starts one half-edge: follow them by (group, vertex)
    key = owner * len(complex_.points) + start
    order = np.argsort(key, kind="stable")
    successor = order[np.searchsorted(key[order], owner * len(complex_.points) + end)]
    _, begin = np.unique(owner, return_index=True)
    place = np.empty(len(start), np.int64)
    current = begin
    step = 0
    while len(current):  # as many rounds as the longest loop has edges
        place[current] = step
        step += 1
        current = successor[current]
        going = current != begin
        current, begin = current[going], begin[going]
    order = np.lexsort((place, owner))
    return _Loops(start[order], edge[order], owner[order])


def _runs(
    edge_points: NDArray[np.int32],
    edges: Ints,
    straight: NDArray[np.bool_],
    n_edges: int,
) -> Ints:
    """Name the straight run that each edge belongs to after its first edge."""
    point = edge_points.reshape(-1)
    local = np.repeat(np.arange(len(edges)), 2)
    meets = np.flatnonzero(straight[point])
    pair = local[meets[np.argsort(point[meets], kind="stable")]].reshape(-1, 2)
    component = components(pair[:, 0], pair[:, 1], len(edges))
    name = np.full(int(component.max(initial=-1)) + 1, n_edges)
    np.minimum.at(name, component, edges)
    run = np.arange(n_edges)
    run[edges] = name[component]
    return run
