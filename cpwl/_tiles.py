"""Gluing the tiles of a domain that was too large to be worked off whole.

The domain is cut into strips by lines on which no vertex lies. Along such a line both strips have
the same vertices, where knots cross it, and the same patterns; so the vertices are identified in
the order in which they lie on the line, and the cells on both sides are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from cpwl import _kernels
from cpwl._arrays import pack_row, padded
from cpwl._complex import Complex
from cpwl._merge import merge_intervals, merge_polygons, same_pattern


class TilesDisagreeError(Exception):
    """Two neighbouring tiles differ on the line between them; another line will do."""


@dataclass(frozen=True, eq=False)
class Refined:
    """A complex with the meaning of its bits.

    ``bit_unit`` and ``bit_piece`` (64 * W,): bit j says that its unit is above the knot that
    bounds this piece from above; both -1 for padding. ``base`` (num_units,): piece of each unit
    where none of its bits is set.
    """

    complex: Complex
    bit_unit: NDArray[np.int32]
    bit_piece: NDArray[np.int64]
    base: NDArray[np.int32]
    zeros: int


def cut_polygon(
    corners: NDArray[np.float64], axis: int, lines: Sequence[float]
) -> list[NDArray[np.float64]]:
    """Cut a segment's ends or a convex polygon's corners into strips at increasing coordinates."""
    if corners.shape[1] == 1:
        ends = np.concatenate([corners[:1], np.reshape(lines, (-1, 1)), corners[1:]])
        return [ends[k : k + 2] for k in range(len(ends) - 1)]
    strips = []
    rest = corners
    for line in lines:
        strips.append(_half(rest, axis, line, -1))
        rest = _half(rest, axis, line, 1)
    return [*strips, rest]


def _half(
    corners: NDArray[np.float64], axis: int, line: float, sign: int
) -> NDArray[np.float64]:
    """Clip a convex polygon, no corner of which lies on the line, to one side of it."""
    out = []
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if sign * (a[axis] - line) > 0:
            out.append(a)
        if (a[axis] < line) != (b[axis] < line):
            low, high = (a, b) if a[axis] < b[axis] else (b, a)  # the same point from both sides
            x = low + (line - low[axis]) / (high[axis] - low[axis]) * (high - low)
            x[axis] = line
            out.append(x)
    return np.array(out)


def glue(
    tiles: Sequence[Refined],
    axis: int,
    lines: Sequence[float],
    stage_offsets: NDArray[np.int64],
    corners: NDArray[np.float64],
) -> Refined:
    """Glue strips, given in order, along the lines between them.

    Raises
    ------
    TilesDisagreeError
        Strips that do not match along a line.
    """
    tiles = _on_common_bits(tiles, stage_offsets)
    joined, seam = reduce(
        lambda made, item: _join(made[0], made[1], item[0].complex, axis, item[1]),
        zip(tiles[1:], lines, strict=True),
        (tiles[0].complex, np.empty(0, np.int64)),
    )
    one_dimensional = joined.points.shape[1] == 1
    pairs = np.stack([seam - 1, seam], axis=1) if one_dimensional else joined.edge_cells[seam]
    if not same_pattern(joined.patterns, *pairs.T).all():
        raise TilesDisagreeError
    if one_dimensional:
        merged = merge_intervals(joined, seam)
    else:
        fixed = (joined.points[:, None] == corners).all(axis=2).any(axis=1)
        merged = merge_polygons(joined, seam, fixed)
    head = tiles[0]
    return Refined(
        merged, head.bit_unit, head.bit_piece, head.base, sum(tile.zeros for tile in tiles)
    )


def _join(
    a: Complex, seam: NDArray[np.int64], b: Complex, axis: int, line: float
) -> tuple[Complex, NDArray[np.int64]]:
    """Put two complexes side by side; ``seam`` collects the edges (P = 1: points) between them."""
    n_points, n_edges, n_cells = (len(x) for x in (a.points, a.edge_points, a.patterns))
    patterns = np.concatenate([a.patterns, b.patterns])
    if a.points.shape[1] == 1:
        cells = np.arange(len(patterns), dtype=np.int32)
        joined = replace(
            a,
            points=np.concatenate([a.points, b.points[1:]]),
            patterns=patterns,
            edge_points=np.stack([cells, cells + 1], axis=1),
            point_unit=np.concatenate([a.point_unit, b.point_unit[1:]]),
            broken=a.broken + b.broken,
        )
        return joined, np.append(seam, n_points - 1)
    points_a, edges_a = _along(a, axis, line)
    points_b, edges_b = _along(b, axis, line)
    if len(points_a) != len(points_b) or len(edges_a) != len(edges_b):
        raise TilesDisagreeError
    new_point = _renumbered(len(b.points), points_b, points_a, n_points)
    new_edge = _renumbered(len(b.edge_points), edges_b, edges_a, n_edges)
    keep_points = np.ones(len(b.points), np.bool_)
    keep_points[points_b] = False
    keep_edges = np.ones(len(b.edge_points), np.bool_)
    keep_edges[edges_b] = False
    cells_b = np.where(b.edge_cells >= 0, b.edge_cells + np.int32(n_cells), np.int32(-1))
    cells_a = a.edge_cells.copy()
    # on the boundary the only cell of an edge may be on its left or on its right
    side = (cells_a[edges_a, 0] >= 0).astype(np.int64)
    cells_a[edges_a, side] = cells_b[edges_b].max(axis=1)
    joined = Complex(
        np.concatenate([a.points, b.points[keep_points]]),
        patterns,
        np.concatenate([a.edge_points, new_point[b.edge_points[keep_edges]]]),
        np.concatenate([cells_a, cells_b[keep_edges]]),
        np.concatenate([a.edge_unit, b.edge_unit[keep_edges]]),
        np.concatenate([a.cell_offsets, b.cell_offsets[1:] + a.cell_offsets[-1]]),
        np.concatenate([a.cell_corners, new_point[b.cell_corners]]),
        np.concatenate([a.cell_edges, new_edge[b.cell_edges]]),
        a.point_unit,
        a.broken + b.broken,
    )
    return joined, np.concatenate([seam, edges_a])


def _along(c: Complex, axis: int, line: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Vertices and edges of a strip on one of its cutting lines, in order along it."""
    other = 1 - axis
    on_line = c.points[:, axis] == line
    points = np.flatnonzero(on_line)
    edges = np.flatnonzero(on_line[c.edge_points].all(axis=1) & (c.edge_cells < 0).any(axis=1))
    middle = c.points[c.edge_points[edges], other].sum(axis=1)
    return points[np.argsort(c.points[points, other])], edges[np.argsort(middle)]


def _renumbered(
    n: int, shared: NDArray[np.int64], partner: NDArray[np.int64], first: int
) -> NDArray[np.int32]:
    """Number n items from ``first`` on, except the shared ones, which take their partners' numbers."""
    own = np.ones(n, np.bool_)
    own[shared] = False
    out = np.empty(n, np.int32)
    out[own] = np.arange(first, first + own.sum())
    out[shared] = partner
    return out


def _on_common_bits(
    tiles: Sequence[Refined], stage_offsets: NDArray[np.int64]
) -> list[Refined]:
    """Rewrite the patterns of all tiles on the columns that vary in any of them."""
    keys = [_key(t.bit_unit, t.bit_piece)[t.bit_unit >= 0] for t in tiles]
    union = np.unique(np.concatenate(keys))
    unit = (union >> 32).astype(np.int32)
    stages = np.split(np.arange(len(union)), np.searchsorted(unit, stage_offsets[1:-1]))
    # padding (-1) has its place in ``rows`` as well
    rows = np.concatenate([padded(stage, np.int64) for stage in stages])
    used = np.flatnonzero(rows >= 0)
    bit_unit = np.full(len(rows), -1, np.int32)
    bit_piece = np.full(len(rows), -1, np.int64)
    bit_unit[used] = unit
    bit_piece[used] = (union & 0xFFFFFFFF) - 2**31
    base = np.min([t.base for t in tiles], axis=0)
    used = np.flatnonzero(bit_unit >= 0)
    out = []
    for tile, key in zip(tiles, keys, strict=True):
        mine = np.flatnonzero(tile.bit_unit >= 0)
        target = np.full(len(tile.bit_unit), -1, np.int64)
        target[mine] = used[np.searchsorted(union, key)]
        # a knot that the tile does not meet lies below all of the unit's values there, or above
        fill = np.zeros(len(bit_unit), np.bool_)
        fill[used] = tile.base[bit_unit[used]] > bit_piece[used]
        fill[target[mine]] = False
        patterns = np.empty((len(tile.complex.patterns), len(bit_unit) // 64), np.uint64)
        _kernels.spread_bits(
            tile.complex.patterns, target, pack_row(fill), 0, len(patterns), patterns
        )
        out.append(
            Refined(replace(tile.complex, patterns=patterns), bit_unit, bit_piece, base, tile.zeros)
        )
    return out


def _key(unit: NDArray, piece: NDArray) -> NDArray[np.int64]:
    """One number for a unit and a piece, sorted by unit, then piece."""
    return (unit.astype(np.int64) << 32) + (piece + 2**31)
