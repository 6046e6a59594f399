"""Merging cells that a tournament of pairwise maxima has cut too finely.

A max-pooling unit is captured as a tree of pairwise maxima. Where one half of the tree loses, the
knots inside that half have no effect: their bits are cleared, and cells that then have the same
pattern are one cell (a convex one: where one candidate beats all others).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cpwl import _kernels
from cpwl._complex import Complex
from cpwl._parallel import in_parallel


def merge_contested(
    complex_: Complex,
    contests: NDArray[np.int32],
    bit_unit: NDArray[np.int32],
    base: NDArray[np.int32],
    fixed: int,
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
    fixed : int
        The number of the domain's own corners, which come first among the points and stay.
    """
    bit_of = np.full(len(base), -1, np.int64)
    used = np.flatnonzero(bit_unit >= 0)
    bit_of[bit_unit[used]] = used
    parent, piece, child = contests.T
    matters = (bit_of[child] >= 0) & ((bit_of[parent] >= 0) | (base[parent] == piece))
    parent, piece, child = parent[matters], piece[matters], child[matters]
    if len(child) == 0:
        return complex_
    patterns = complex_.patterns.copy()
    in_parallel(
        pool,
        lambda a, b: _kernels.clear_lost(patterns, bit_of[parent], piece, bit_of[child], a, b),
        len(patterns),
    )
    complex_ = replace(complex_, patterns=patterns)
    contested = np.zeros(len(base), np.bool_)
    contested[child] = True
    if complex_.points.shape[1] == 1:
        return _merge_intervals(complex_, contested)
    return _merge_polygons(complex_, contested, fixed)


def _merge_intervals(complex_: Complex, contested: NDArray[np.bool_]) -> Complex:
    """Drop the points with the same pattern on both sides."""
    keep = np.ones(len(complex_.points), np.bool_)
    keep[1:-1] = ~contested[complex_.point_unit[1:-1]] | (
        complex_.patterns[1:] != complex_.patterns[:-1]
    ).any(axis=1)
    cells = np.arange(keep.sum() - 1, dtype=np.int32)
    return replace(
        complex_,
        points=complex_.points[keep],
        point_unit=complex_.point_unit[keep],
        patterns=complex_.patterns[keep[:-1]],
        edge_points=np.stack([cells, cells + 1], axis=1),
    )


def _merge_polygons(complex_: Complex, contested: NDArray[np.bool_], fixed: int) -> Complex:
    """Drop the edges with the same pattern on both sides, and the vertices they leave behind.

        +-----+-----+         +-----------+
        |  A  :  A  |   ->    |     A     |    ':' and the vertex above it go; the vertex below
        +-----+-----+         +-----+-----+    stays as long as the knot '|' under it ends there
              |                     |
    """
    edge_cells = complex_.edge_cells
    removed = np.zeros(len(edge_cells), np.bool_)
    candidates = np.flatnonzero((complex_.edge_unit >= 0) & contested[complex_.edge_unit])
    left, right = edge_cells[candidates].T
    removed[candidates] = (complex_.patterns[left] == complex_.patterns[right]).all(axis=1)
    if not removed.any():
        return complex_
    n_cells, n_points = len(complex_.patterns), len(complex_.points)
    group = _components(*edge_cells[removed].T, n_cells)
    n_groups = int(group.max()) + 1

    # half-edges (start -> end) that stay, with their group's cell on the left
    cell = np.repeat(np.arange(n_cells), np.diff(complex_.cell_offsets))
    following = np.arange(1, len(cell) + 1)
    following[complex_.cell_offsets[1:] - 1] = complex_.cell_offsets[:-1]
    stays = ~removed[complex_.cell_edges]
    start = complex_.cell_corners[stays].astype(np.int64)
    end = complex_.cell_corners[following][stays].astype(np.int64)
    edge = complex_.cell_edges[stays]
    owner = group[cell[stays]].astype(np.int64)
    place = _loop_places(start, end, owner, n_points, n_groups)
    order = np.lexsort((place, owner))
    start, edge, owner = start[order], edge[order], owner[order]

    # a vertex inside a straight run of one edge goes: it has two edges left, which become one
    degree = np.bincount(complex_.edge_points[~removed].reshape(-1), minlength=n_points)
    straight = degree == 2
    straight[:fixed] = False
    ends = np.flatnonzero(~removed)
    chain = _chains(complex_.edge_points[ends], ends, straight, len(edge_cells))
    kept = ~straight[start]
    start, edge, owner = start[kept], chain[edge[kept]], owner[kept]

    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=n_groups))])
    following = np.arange(1, len(start) + 1)
    following[offsets[1:] - 1] = offsets[:-1]
    names, first, new_edge = np.unique(edge, return_index=True, return_inverse=True)
    is_first = np.zeros(len(edge), np.bool_)
    is_first[first] = True
    cells = np.full((len(names), 2), -1, np.int32)
    cells[:, 0] = owner[first]
    cells[new_edge[~is_first], 1] = owner[~is_first]
    used = np.zeros(n_points, np.bool_)
    used[start] = True
    new_point = (np.cumsum(used) - 1).astype(np.int32)
    representative = np.empty(n_groups, np.int64)
    representative[group[::-1]] = np.arange(n_cells)[::-1]
    return replace(
        complex_,
        points=complex_.points[used],
        patterns=complex_.patterns[representative],
        edge_points=np.stack([new_point[start[first]], new_point[start[following[first]]]], axis=1),
        edge_cells=cells,
        edge_unit=complex_.edge_unit[names],
        cell_offsets=offsets.astype(np.int64),
        cell_corners=new_point[start],
        cell_edges=new_edge.astype(np.int32),
    )


def _components(a: NDArray, b: NDArray, n: int) -> NDArray[np.int32]:
    """Number the connected components of n nodes, in the order of their first nodes."""
    return connected_components(coo_array((np.ones(len(a), np.bool_), (a, b)), (n, n)), False)[1]


def _loop_places(
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    owner: NDArray[np.int64],
    n_points: int,
    n_groups: int,
) -> NDArray[np.int64]:
    """Place of every half-edge in the loop around its group."""
    key = owner * n_points + start
    order = np.argsort(key, kind="stable")
    successor = order[np.searchsorted(key[order], owner * n_points + end)]
    place = np.empty(len(start), np.int64)
    first = np.empty(n_groups, np.int64)
    first[owner[::-1]] = np.arange(len(owner))[::-1]
    current = first
    step = 0
    while len(current):  # as many rounds as the longest loop has edges
        place[current] = step
        step += 1
        current = successor[current]
        going = current != first
        current, first = current[going], first[going]
    return place


def _chains(
    edge_points: NDArray[np.int32],
    edges: NDArray[np.int64],
    straight: NDArray[np.bool_],
    n_edges: int,
) -> NDArray[np.int64]:
    """Name of the run of edges that each edge belongs to: the first edge of the run."""
    point = edge_points.reshape(-1)
    edge = np.repeat(edges, 2)
    meets = np.flatnonzero(straight[point])
    pair = meets[np.argsort(point[meets], kind="stable")].reshape(-1, 2)
    component = _components(edge[pair[:, 0]], edge[pair[:, 1]], n_edges)
    first = np.empty(int(component.max()) + 1, np.int64)
    first[component[::-1]] = np.arange(n_edges)[::-1]
    return first[component]
