"""Boundaries where outputs are equal and regions where one wins, exact inside the cells.

On a cell every output is affine, so its values at the corners say everything: a boundary crosses
a cell along the segment between two points of its sides, found by linear interpolation, and
neighbouring cells compute the same point on the side they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.affine import evaluate, num_outputs
from cpwl.arrays import Floats, Ints, next_corner

if TYPE_CHECKING:
    from cpwl.partition import Partition


_CHUNK_BYTES = 256 * 2**20


class Loops(NamedTuple):
    """Convex polygons as ragged corners: those of polygon i are offsets[i]:offsets[i + 1]."""

    offsets: Ints
    corners: Floats  # (N, P + D): slice coordinates, then the D outputs


class DecisionRegions(NamedTuple):
    """The parts of cells on which one output wins."""

    label: Ints  # (R,) the winning output
    cell: Ints  # (R,)
    offsets: Ints  # (R + 1,)
    corners: Floats  # (N, 2) slice coordinates, anticlockwise


def vertex_outputs(partition: Partition, outputs: Sequence[int] | None = None) -> Floats:
    """Return the network's flattened outputs at every vertex, (V, D), or only those listed.

    Raises
    ------
    ValueError
        A partition without its network, or an output that does not exist.

    Notes
    -----
    Cost: one float64 forward pass at every vertex.
    """
    size = num_outputs(partition)
    wanted = range(size) if outputs is None else outputs
    if any(not 0 <= k < size for k in wanted):
        raise ValueError(
            f"Expected outputs between 0 and {size - 1}, got {list(wanted)}. "
            "Count the entries of the flattened output from 0."
        )
    step = max(1, _CHUNK_BYTES // (8 * size))
    chunks = [
        evaluate(partition, partition.points[start : start + step])[:, wanted]
        for start in range(0, len(partition.points), step)
    ]
    return np.concatenate(chunks)


def decision_segments(partition: Partition, i: int, j: int) -> Floats:
    """Return where outputs i and j are equal: segments (K, 2, 2); in 1-D points (K, 1).

    Parameters
    ----------
    partition : Partition
        Of dimension 1 or 2.
    i, j : int
        Indices into the flattened output.

    Returns
    -------
    numpy.ndarray
        Slice coordinates. One segment for each cell that the boundary crosses; where i and j agree
        on whole cells, the border of that set towards the cells where output i is larger.

    Raises
    ------
    ValueError
        Equal or missing outputs, or a partition of dimension 3 or more.
    """
    if partition.dim > 2:
        raise ValueError(
            f"Expected a partition of dimension 1 or 2, got {partition.dim}. Subdivide a slice of "
            "the domain: cpwl.Slice.through(z0, z1, z2)."
        )
    if i == j:
        raise ValueError(f"Expected two different outputs, got {i} twice. Give the two to compare.")
    values = vertex_outputs(partition, [i, j])
    difference = values[:, 0] - values[:, 1]
    offsets, corner = partition.cell_offsets, partition.cell_corners
    if partition.dim == 1:
        low, high = corner[offsets[:-1]], corner[offsets[:-1] + 1]
        crossing = (difference[low] > 0) != (difference[high] > 0)
        points = _between(partition.points, difference, low[crossing], high[crossing])
        return np.unique(points, axis=0)
    following = corner[next_corner(offsets)]
    crossing = (difference[corner] > 0) != (difference[following] > 0)
    # the positive corners of a convex cell are consecutive: crossings come in pairs
    points = _between(partition.points, difference, corner[crossing], following[crossing])
    segments = points.reshape(-1, 2, 2)
    return segments[np.any(segments[:, 0] != segments[:, 1], axis=1)]


def decision_regions(partition: Partition, decide: str = "argmax") -> DecisionRegions:
    """Return the exact regions on which each output is the largest (or the smallest) one.

    Cells on which one output wins at every corner are taken whole; the others are clipped. Where
    several outputs tie on an area, that area is listed for each of them.

    Parameters
    ----------
    partition : Partition
        Two-dimensional.
    decide : {"argmax", "argmin"}
        ACAS Xu controllers, for example, advise the smallest of their outputs.

    Raises
    ------
    ValueError
        A one-dimensional partition, a single output, or another `decide`.

    Notes
    -----
    Cost: D^2 vectorised clips of the cells that a boundary crosses.
    """
    if decide not in ("argmax", "argmin"):
        raise ValueError(f"Expected decide to be 'argmax' or 'argmin', got {decide!r}. Choose one.")
    if partition.dim != 2:
        raise ValueError(
            f"Expected a partition of dimension 2, got {partition.dim}. "
            "Use decision_boundary, which also marks points of a one-dimensional slice."
        )
    values = vertex_outputs(partition)
    if values.shape[1] < 2:
        raise ValueError(
            f"Expected a network with two or more outputs, got {values.shape[1]}. "
            "Plot a single output's level set with decision_boundary of a two-output network."
        )
    score = values if decide == "argmax" else -values
    offsets, corner = partition.cell_offsets, partition.cell_corners
    winner = score.argmax(1)[corner]
    starts = offsets[:-1]
    whole = np.minimum.reduceat(winner, starts) == np.maximum.reduceat(winner, starts)
    labels, cells = [winner[starts][whole]], [np.flatnonzero(whole)]
    loops = [_take(offsets, partition.points[corner], cells[0])]
    mixed = np.flatnonzero(~whole)
    if len(mixed):
        cut = _take(offsets, np.hstack([partition.points, score])[corner], mixed)
        for k in range(score.shape[1]):
            part, source = _clip_to_winner(cut, k)
            labels.append(np.full(len(source), k))
            cells.append(mixed[source])
            loops.append(Loops(part.offsets, part.corners[:, :2]))
    sizes = np.concatenate([np.diff(loop.offsets) for loop in loops])
    return DecisionRegions(
        np.concatenate(labels).astype(np.int64),
        np.concatenate(cells).astype(np.int64),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate([loop.corners for loop in loops]),
    )


def _clip_to_winner(loops: Loops, k: int) -> tuple[Loops, Ints]:
    """Return the parts of polygons on which score k is the largest, and their polygons."""
    num_scores = loops.corners.shape[1] - 2
    source = np.arange(len(loops.offsets) - 1)
    for j in range(num_scores):
        if j == k or len(source) == 0:
            continue
        loops, kept = _clip(loops, loops.corners[:, 2 + k] - loops.corners[:, 2 + j])
        source = source[kept]
    return loops, source


def _clip(loops: Loops, level: Floats) -> tuple[Loops, Ints]:
    """Clip every polygon to level >= 0 (level affine, given at the corners); drop empty ones.

    Each corner emits itself if it is inside, then the crossing on the side that follows it:

        outside   crossing   inside corners ...   crossing   outside
    """
    offsets, corners = loops
    following = next_corner(offsets)
    inside = level >= 0
    # a corner at exactly 0 is a crossing itself, and is emitted once
    cross = ((level > 0) & (level[following] < 0)) | ((level < 0) & (level[following] > 0))
    a, b = level[cross], level[following][cross]
    t = (a / (a - b))[:, None]
    made = (1 - t) * corners[cross] + t * corners[following[cross]]
    count = inside.astype(np.int64) + cross
    place = np.cumsum(count) - count
    out = np.empty((int(count.sum()), corners.shape[1]))
    out[place[inside]] = corners[inside]
    out[(place + inside)[cross]] = made
    sizes = np.add.reduceat(count, offsets[:-1]) if len(offsets) > 1 else np.empty(0, np.int64)
    kept = np.flatnonzero(sizes >= 3)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return _take(starts, out, kept), kept


def _take(offsets: Ints, corners: Floats, chosen: Ints) -> Loops:
    """Return the chosen polygons."""
    sizes = offsets[chosen + 1] - offsets[chosen]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    index = np.arange(starts[-1]) + np.repeat(offsets[chosen] - starts[:-1], sizes)
    return Loops(starts, corners[index])


def _between(points: Floats, value: Floats, a: NDArray, b: NDArray) -> Floats:
    """Return the zeros of an affine value between vertices a and b, the same for (b, a) bitwise."""
    a, b = np.minimum(a, b), np.maximum(a, b)
    t = (value[a] / (value[a] - value[b]))[:, None]
    return (1 - t) * points[a] + t * points[b]
