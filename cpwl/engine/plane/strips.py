"""Strips of a domain that is too large to be refined whole: cut apart, and glued.

The domain is cut into strips by lines on which no vertex lies. Along such a line both strips have
the same vertices, where knots cross it, and the same patterns; so the vertices are identified in
the order in which they lie on the line, and the cells on both sides are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import EPS, Ints, pack_row, padded, pattern_kernels, prefix
from cpwl.engine.contests import clear_lost, same_pattern
from cpwl.engine.plane.complex import Complex, Refined
from cpwl.engine.plane.merging import merge_intervals, merge_polygons
from cpwl.engine.rational import Arbiter, Vertices
from cpwl.network import Network


class StripsDisagreeError(Exception):
    """Two neighbouring strips differ on the line between them; another line will do."""


def cut_polygon(
    corners: Vertices, axis: int, lines: Sequence[float], arbiter: Arbiter
) -> list[Vertices]:
    """Cut a segment's ends or a convex polygon's corners into strips at increasing coordinates."""
    strips = []
    rest = corners
    for line in lines:
        strips.append(_half(rest, axis, line, -1, arbiter))
        rest = _half(rest, axis, line, 1, arbiter)
    return [*strips, rest]


def _half(corners: Vertices, axis: int, line: float, sign: int, arbiter: Arbiter) -> Vertices:
    """Clip a segment or polygon, no corner of which lies on the line, to one side of it."""
    out = []
    n = len(corners.points)
    for i in range(n):
        a = corners.points[i]
        j = (i + 1) % n
        if sign * (a[axis] - line) > 0:
            out.append((a, corners.error[i], corners.names[i]))
        if (a[axis] < line) != (corners.points[j, axis] < line) and (n > 2 or i == 0):
            # the same point from both sides
            low, high = (i, j) if a[axis] < corners.points[j, axis] else (j, i)
            start, end = corners.points[[low, high]]
            x = start + (line - start[axis]) / (end[axis] - start[axis]) * (end - start)
            x[axis] = line
            name = arbiter.add(
                corners.names[None, [low, high]], -1 - axis, np.zeros(1, np.int64), np.array([line])
            )
            spread = 4 * max(corners.error[low], corners.error[high])
            out.append((x, spread + 16 * EPS * np.abs([start, end]).max(), name))
    points, error, names = zip(*out, strict=True)
    order = np.argsort(np.array(points)[:, 0]) if n == 2 else np.arange(len(points))
    return Vertices(np.array(points)[order], np.array(error)[order], np.array(names)[order])


def glue(
    strips: list[Refined],
    axis: int,
    lines: Sequence[float],
    corners: Vertices,
    network: Network,
    pool: ThreadPoolExecutor,
) -> Refined:
    """Glue strips, given in order, along the lines between them.

    Takes the list of strips over and empties it, so that memory holds everything about once.

    Raises
    ------
    StripsDisagreeError
        Strips that do not match along a line.
    """
    undecided = sum(strip.undecided for strip in strips)
    broken = sum(strip.complex.broken for strip in strips)
    bit_unit, bit_piece, base = _put_on_common_bits(strips, network, pool)
    parts = [strip.complex for strip in strips]
    strips.clear()
    if corners.points.shape[1] == 1:
        seam = np.cumsum([len(part.patterns) for part in parts[:-1]])
        joined = _join_intervals(parts)
        pairs = np.stack([seam - 1, seam], axis=1)
    else:
        joined, seam = _join_polygons(parts, axis, lines)
        pairs = joined.edge_cells[seam]
    if not same_pattern(joined.patterns, *pairs.T).all():
        raise StripsDisagreeError
    joined = replace(joined, broken=broken, corners=corners.points, corner_names=corners.names)
    if corners.points.shape[1] == 1:
        merged = merge_intervals(joined, seam)
    else:
        fixed = np.isin(joined.names, corners.names)
        merged = merge_polygons(joined, seam, fixed)
    return Refined(
        complex=merged, bit_unit=bit_unit, bit_piece=bit_piece, base=base, undecided=undecided,
        stages=network.num_stages,
    )  # fmt: skip


def _join_intervals(parts: list[Complex]) -> Complex:
    """Put segments end to end."""
    patterns = np.concatenate([part.patterns for part in parts])
    cells = np.arange(len(patterns), dtype=np.int32)

    def ends(name: str) -> NDArray:
        return np.concatenate([getattr(part, name)[k > 0 :] for k, part in enumerate(parts)])

    return replace(
        parts[0],
        points=ends("points"),
        error=ends("error"),
        names=ends("names"),
        patterns=patterns,
        edge_points=np.stack([cells, cells + 1], axis=1),
        point_unit=ends("point_unit"),
    )


def _join_polygons(parts: list[Complex], axis: int, lines: Sequence[float]) -> tuple[Complex, Ints]:
    """Put strips side by side; also returns the edges on the lines between them.

    What lies on a line is numbered with the strip on its left; the strip on its right only adds
    its cells. Takes the parts apart as it goes, so that memory holds everything about once.
    """
    points, edges, seams = [], [], []  # per part: new numbers, and which are its own
    n_points = n_edges = 0
    shared: tuple[NDArray, NDArray] | None = None
    for k, part in enumerate(parts):
        if shared is not None:
            mine = _along(part, axis, lines[k - 1])
            if [len(x) for x in mine] != [len(x) for x in shared]:
                raise StripsDisagreeError
        else:
            mine = shared = (np.empty(0, np.int64), np.empty(0, np.int64))
        points.append(_renumbered(len(part.points), mine[0], shared[0], n_points))
        edges.append(_renumbered(len(part.edge_points), mine[1], shared[1], n_edges))
        n_points += len(part.points) - len(mine[0])
        n_edges += len(part.edge_points) - len(mine[1])
        if k + 1 < len(parts):
            on_line = _along(part, axis, lines[k])
            shared = (points[k][0][on_line[0]], edges[k][0][on_line[1]])
            seams.append(shared[1])
    first_cell = prefix(np.array([len(part.patterns) for part in parts]))
    edge_cells = np.full((n_edges, 2), -1, np.int32)
    for part, (number, _), first in zip(parts, edges, first_cell, strict=False):
        cells = np.where(part.edge_cells >= 0, part.edge_cells + np.int32(first), np.int32(-1))
        # on a line the cell goes to the side that the strip on the left has left empty
        taken = edge_cells[number]
        both = np.where(cells >= 0, cells, taken)
        clash = (cells >= 0).any(axis=1) & (taken >= 0).any(axis=1)
        empty = (taken[clash, 0] >= 0).astype(np.int64)
        both[clash] = taken[clash]
        both[np.flatnonzero(clash), empty] = cells[clash].max(axis=1)
        edge_cells[number] = both
    fields = [dict(vars(part)) for part in parts]
    template = parts[0]
    parts.clear()

    def gather(name: str, pick: Callable[[int, NDArray], NDArray]) -> NDArray:
        return np.concatenate([pick(k, field.pop(name)) for k, field in enumerate(fields)])

    slots = prefix(np.array([len(field["cell_corners"]) for field in fields]))
    joined = replace(
        template,
        edge_cells=edge_cells,
        **{
            name: gather(name, lambda k, x: x[points[k][1]])
            for name in ("points", "error", "names")
        },
        patterns=gather("patterns", lambda k, x: x),
        edge_points=gather("edge_points", lambda k, x: points[k][0][x[edges[k][1]]]),
        edge_unit=gather("edge_unit", lambda k, x: x[edges[k][1]]),
        cell_corners=gather("cell_corners", lambda k, x: points[k][0][x]),
        cell_edges=gather("cell_edges", lambda k, x: edges[k][0][x]),
        cell_offsets=np.append(gather("cell_offsets", lambda k, x: x[:-1] + slots[k]), slots[-1]),
    )
    return joined, np.concatenate(seams).astype(np.int64)


def _along(c: Complex, axis: int, line: float) -> tuple[Ints, Ints]:
    """Vertices and edges of a strip on one of its cutting lines, in order along it."""
    other = 1 - axis
    on_line = c.points[:, axis] == line
    points = np.flatnonzero(on_line)
    edges = np.flatnonzero(on_line[c.edge_points].all(axis=1) & (c.edge_cells < 0).any(axis=1))
    middle = c.points[c.edge_points[edges], other].sum(axis=1)
    return points[np.argsort(c.points[points, other])], edges[np.argsort(middle)]


def _renumbered(
    n: int, shared: Ints, partner: Ints, first: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Give own items numbers from ``first`` on, shared ones their partners'; flag the own."""
    own = np.ones(n, np.bool_)
    own[shared] = False
    out = np.empty(n, np.int32)
    out[own] = np.arange(first, first + own.sum())
    out[shared] = partner
    return out, own


def _put_on_common_bits(
    strips: list[Refined], network: Network, pool: ThreadPoolExecutor
) -> tuple[NDArray[np.int32], Ints, NDArray[np.int32]]:
    """Rewrite the patterns in ``strips`` on the columns that vary in any of them.

    Returns the units and pieces of the common bits, and the common base.
    """
    keys = [_key(t.bit_unit, t.bit_piece)[t.bit_unit >= 0] for t in strips]
    union = np.unique(np.concatenate(keys))
    unit = (union >> 32).astype(np.int32)
    stages = np.split(np.arange(len(union)), np.searchsorted(unit, network.stage_offsets[1:-1]))
    rows = np.concatenate([padded(stage, np.int64) for stage in stages])  # -1 is padding
    used = np.flatnonzero(rows >= 0)
    bit_unit = np.full(len(rows), -1, np.int32)
    bit_piece = np.full(len(rows), -1, np.int64)
    bit_unit[used] = unit
    bit_piece[used] = (union & 0xFFFFFFFF) - 2**31
    base = np.min([t.base for t in strips], axis=0)
    for k, key in enumerate(keys):
        strip = strips[k]
        mine = np.flatnonzero(strip.bit_unit >= 0)
        target = np.full(len(strip.bit_unit), -1, np.int64)
        target[mine] = used[np.searchsorted(union, key)]
        # a knot that the strip does not meet lies below all of the unit's values there, or above
        fill = np.zeros(len(bit_unit), np.bool_)
        fill[used] = strip.base[unit] > bit_piece[used]
        fill[target[mine]] = False
        patterns = np.empty((len(strip.complex.patterns), len(bit_unit) // 64), np.uint64)
        pattern_kernels.spread_bits(
            strip.complex.patterns, target, pack_row(fill), 0, len(patterns), patterns
        )
        # a unit that has no effect and did not vary in its strip has its bit only now
        _, patterns = clear_lost(patterns, network.contests, bit_unit, base, pool)
        strips[k] = replace(strip, complex=replace(strip.complex, patterns=patterns))
    return bit_unit, bit_piece, base


def _key(unit: NDArray, piece: NDArray) -> Ints:
    """One number for a unit and a piece, sorted by unit, then piece."""
    return (unit.astype(np.int64) << 32) + (piece + 2**31)
