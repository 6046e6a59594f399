"""Merging neighbouring cells of a complex that are really one cell.

Two things cut too finely. A max-pooling unit is captured as a tree of pairwise maxima, and knots
inside a half of the tree that loses have no effect. And a domain that was worked off in tiles has
been cut where no knot is. In both cases the pieces have the same pattern and their union is convex.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cpwl.arrays import Ints, last_difference
from cpwl.engine.contests import clear_lost, same_pattern
from cpwl.engine.plane.complex import Complex
from cpwl.engine.plane.cutting import prefix


def merge_contested(
    complex_: Complex,
    contests: NDArray[np.int32],
    bit_unit: NDArray[np.int32],
    base: NDArray[np.int32],
    fixed: NDArray[np.bool_],
    pool: ThreadPoolExecutor,
) -> Complex:
    """Clear the bits that have no effect and merge the cells that then agree.

    Parameters
    ----------
    contests : (K, 3)
        (parent unit, piece, child unit): while the parent is on the piece, the child has no effect.
    bit_unit : (64 * W,)
        Unit of each bit of the patterns, -1 for padding.
    base : (num_units,)
        Pieces of the units that do not vary.
    fixed : (V,)
        The vertices that stay: the domain's own corners.
    """
    child, patterns = clear_lost(complex_.patterns, contests, bit_unit, base, pool)
    if len(child) == 0:
        return complex_
    contested = np.zeros(len(base), np.bool_)
    contested[child] = True
    if complex_.points.shape[1] == 1:
        unit = complex_.point_unit
        sides = np.stack([np.arange(-1, len(unit) - 1), np.arange(len(unit))], axis=1)
    else:
        unit, sides = complex_.edge_unit, complex_.edge_cells
    candidates = np.flatnonzero((unit >= 0) & contested[np.maximum(unit, 0)])
    same = same_pattern(patterns, *sides[candidates].T)
    removed, left = candidates[same], candidates[~same]
    unit = unit.copy()
    unit[left] = bit_unit[last_difference(patterns, sides[left])]
    if complex_.points.shape[1] == 1:
        return merge_intervals(replace(complex_, patterns=patterns, point_unit=unit), removed)
    complex_ = replace(complex_, patterns=patterns, edge_unit=unit)
    return merge_polygons(complex_, removed, fixed)


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
    group = _components(edge_cells[removed, 0], edge_cells[removed, 1], n_cells)
    first_cell = np.empty(int(group.max()) + 1, np.int64)
    first_cell[group[::-1]] = np.arange(n_cells)[::-1]

    changes = np.zeros(n_cells, np.bool_)
    touched = edge_cells[np.concatenate([removed, by_straight])]
    changes[touched[touched >= 0]] = True
    start, edge, owner = _loops(complex_, group, changes, edge_stays)

    # the two edges that meet in a straight vertex become one, named after the first of them
    run = _runs(edge_points[by_straight], by_straight, straight, n_edges)
    kept = ~straight[start]
    start, edge, owner = start[kept], run[edge[kept]], owner[kept]
    edge_stays[by_straight] = run[by_straight] == by_straight
    after = np.arange(1, len(owner) + 1)
    loop_first = np.flatnonzero(np.concatenate([[True], np.diff(owner) > 0]))
    after[np.append(loop_first[1:], len(owner)) - 1] = loop_first
    straightened = np.flatnonzero(np.isin(edge, run[by_straight]))
    names, first = np.unique(edge[straightened], return_index=True)
    edge_points[names, 0] = start[straightened[first]]
    edge_points[names, 1] = start[after[straightened[first]]]
    edge_cells[names, 0] = first_cell[owner[straightened[first]]]
    edge_cells[names, 1] = -1
    second = np.ones(len(straightened), np.bool_)
    second[first] = False
    second = straightened[second]
    edge_cells[edge[second], 1] = first_cell[owner[second]]

    sizes = np.diff(complex_.cell_offsets)[first_cell]
    changed_groups, count = np.unique(owner, return_counts=True)
    sizes[changed_groups] = count
    offsets = prefix(sizes)
    is_changed = np.zeros(len(first_cell), np.bool_)
    is_changed[changed_groups] = True
    new_slot = np.repeat(is_changed, sizes)
    old_slot = np.repeat(changes, np.diff(complex_.cell_offsets))
    corners = np.empty(len(new_slot), np.int32)
    edges = np.empty(len(new_slot), np.int32)
    corners[new_slot], corners[~new_slot] = start, complex_.cell_corners[~old_slot]
    edges[new_slot], edges[~new_slot] = edge, complex_.cell_edges[~old_slot]

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
) -> tuple[Ints, Ints, Ints]:
    """Lay the loops around the groups of cells that change, group after group.

    Returns the start vertex, edge and group of every half-edge, in order.
    """
    cells = np.flatnonzero(changes)
    sizes = np.diff(complex_.cell_offsets)[cells]
    owner = np.repeat(group[cells].astype(np.int64), sizes)
    first = prefix(sizes)
    slots = np.arange(first[-1]) + np.repeat(complex_.cell_offsets[cells] - first[:-1], sizes)
    start = complex_.cell_corners[slots].astype(np.int64)
    after = np.arange(1, len(start) + 1)
    after[first[1:] - 1] = first[:-1]
    end = start[after]
    edge = complex_.cell_edges[slots].astype(np.int64)
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
    return start[order], edge[order], owner[order]


def _components(a: NDArray, b: NDArray, n: int) -> NDArray[np.int32]:
    """Label the connected components of n nodes, in the order of their first nodes."""
    return connected_components(coo_array((np.ones(len(a), np.bool_), (a, b)), (n, n)), False)[1]


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
    component = _components(pair[:, 0], pair[:, 1], len(edges))
    name = np.full(int(component.max(initial=-1)) + 1, n_edges)
    np.minimum.at(name, component, edges)
    run = np.arange(n_edges)
    run[edges] = name[component]
    return run
