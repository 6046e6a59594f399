"""Regions on which one output wins: cells cut where outputs are equal, and joined again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cpwl.arrays import EPS, Floats, Ints, next_corner, prefix
from cpwl.decision.vertex_values import rounding, vertex_outputs
from cpwl.geometry import rings
from cpwl.partition import require_complete, require_partition

if TYPE_CHECKING:
    from cpwl.partition import Partition


@dataclass(frozen=True, eq=False)
class DecisionRegions:
    """The connected sets on which one output wins, and which of them are neighbours.

    Parameters
    ----------
    labels : (R,) int64
        The output that wins; with a single output 1 where it is positive, else 0.
    areas : (R,) float64
        In slice coordinates. They sum to that of the domain.
    polygons : (R,) shapely geometries
        In slice coordinates. Neighbours have the same vertices on their common border.
    neighbours : (K, 2) int64
        Pairs of regions with a common border, the lower first.
    lengths : (K,) float64
        Lengths of these borders.
    tolerance : float
        Outputs closer to each other at a vertex are equal there: that much is rounding.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.decision_regions(partition)
    DecisionRegions(2 regions of 2 outputs)
    """

    labels: Ints
    areas: Floats
    polygons: NDArray[np.object_]
    neighbours: Ints
    lengths: Floats
    tolerance: float

    def __repr__(self) -> str:
        """Summarise: polygons are long."""
        outputs = len(np.unique(self.labels))
        return f"DecisionRegions({len(self.labels):,} regions of {outputs:,} outputs)"


class _Loops(NamedTuple):
    """Convex polygons by their corners, and the output that wins on each."""

    offsets: Ints  # (n + 1,)
    corners: Ints
    label: Ints  # (n,)


def decision_regions(partition: Partition, decide: str = "argmax") -> DecisionRegions:
    """Return the exact regions on which one output is the largest (or the smallest) one.

    Parameters
    ----------
    partition : Partition
        Two-dimensional, complete, with its network. With a single output, a logit or a signed
        distance, the regions are those of its sign.
    decide : {"argmax", "argmin"}
        ACAS Xu controllers, for example, advise the smallest of their outputs.

    Returns
    -------
    DecisionRegions
        Where outputs tie on an area the lowest of them wins, as in `torch.argmax`;
        ``contour(partition, (i, j)).flat`` lists the cells on which two of them do.

    Raises
    ------
    ValueError
        A partition of another dimension or without its network, another `decide`, or "argmin" of
        a single output.
    PartitionError
        An incomplete partition: the outputs are not affine on its cells.

    Notes
    -----
    Output by output, the polygons so far are cut where the next output and the best one so far are
    equal. Each side is cut once, whatever number of polygons it bounds. Cost: one forward pass at
    the vertices and, for each output, one pass over the polygons; then their union by shapely.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> regions = cpwl.decision_regions(partition)
    >>> regions.labels.tolist(), regions.areas.tolist()
    ([0, 1], [2.0, 2.0])
    >>> import networkx
    >>> networkx.Graph(regions.neighbours.tolist()).edges
    EdgeView([(0, 1)])
    """
    require_partition(partition)
    if decide not in ("argmax", "argmin"):
        raise ValueError(f"Expected decide to be 'argmax' or 'argmin', got {decide!r}. Choose one.")
    if partition.dim != 2:
        raise ValueError(
            f"Expected a partition of dimension 2, got {partition.dim}. "
            "Use contour, which gives the boundary between two outputs in 1 to 3 dimensions."
        )
    require_complete(partition)
    scores = vertex_outputs(partition)
    if scores.shape[1] == 1:
        if decide == "argmin":
            raise ValueError(
                "Expected two or more outputs for 'argmin', got one. "
                "Leave it out: the regions are then those where the output is positive, or not."
            )
        scores = np.column_stack([np.zeros(len(scores)), scores])
    if decide == "argmin":
        scores = -scores
    top = np.sort(scores, axis=1)[:, -2:]
    near = np.argsort(top[:, 1] - top[:, 0])[:1024]
    tolerance = rounding(partition, near) + EPS * float(np.abs(top[near]).max())
    points, loops = _cut(partition, scores, tolerance)
    return _join(points, loops, tolerance)


def _cut(partition: Partition, scores: Floats, tolerance: float) -> tuple[Floats, _Loops]:
    """Return vertices, and the polygons of the cells on which one score is the largest."""
    points, best = partition.points, scores[:, 0]
    loops = _Loops(
        partition.cell_offsets,
        partition.cell_corners.astype(np.int64),
        np.zeros(partition.num_cells, np.int64),
    )
    for k in range(1, scores.shape[1]):
        # affine on every polygon, for each has one winner so far
        ahead = scores[:, k] - best
        ahead[np.abs(ahead) <= tolerance] = 0
        side, starts = np.sign(ahead)[loops.corners], loops.offsets[:-1]
        high, low = np.maximum.reduceat(side, starts), np.minimum.reduceat(side, starts)
        loops.label[(high > 0) & (low == 0) | (low > 0)] = k
        best = np.maximum(best, scores[:, k])
        mixed = (high > 0) & (low < 0)
        if mixed.any():
            old = len(points)
            ends, loops = _split(loops, mixed, ahead, k)
            a, b = ends.T
            t = (ahead[a] / (ahead[a] - ahead[b]))[:, None]
            points = np.concatenate([points, (1 - t) * points[a] + t * points[b]])
            scores = np.concatenate([scores, (1 - t) * scores[a] + t * scores[b]])
            best = np.concatenate([best, scores[old:, k]])
    return points, loops


def _split(loops: _Loops, mixed: NDArray[np.bool_], ahead: Floats, k: int) -> tuple[Ints, _Loops]:
    """Cut the polygons of which output k wins a part; return the ends of the sides that it cuts.

    The new vertices are numbered after the old ones, in the order of these sides.
    """
    sizes = np.diff(loops.offsets)
    corner = np.repeat(mixed, sizes)
    rest = _Loops(prefix(sizes[~mixed]), loops.corners[~corner], loops.label[~mixed])
    cut = _Loops(prefix(sizes[mixed]), loops.corners[corner], loops.label[mixed])
    level = ahead[cut.corners]
    following = next_corner(cut.offsets)
    crossed = level * np.sign(level[following]) < 0
    sides = np.sort(np.stack([cut.corners, cut.corners[following]], axis=1)[crossed], axis=1)
    ends, index = np.unique(sides, axis=0, return_inverse=True)
    made = np.full(len(level), -1)
    made[crossed] = len(ahead) + index.reshape(-1)
    won = _part(cut, level >= 0, made)._replace(label=np.full(int(mixed.sum()), k))
    parts = (rest, _part(cut, level <= 0, made), won)
    return ends, _Loops(
        prefix(np.concatenate([np.diff(part.offsets) for part in parts])),
        np.concatenate([part.corners for part in parts]),
        np.concatenate([part.label for part in parts]),
    )


def _part(loops: _Loops, inside: NDArray[np.bool_], made: Ints) -> _Loops:
    """Return the part of every polygon on one side of a line.

    Each corner emits itself if it is inside, then the vertex made on the side that follows it:

        outside   made   inside corners ...   made   outside
    """
    both = np.stack([np.where(inside, loops.corners, -1), made], axis=1).reshape(-1)
    kept = both >= 0
    row = np.repeat(np.arange(len(loops.label)), 2 * np.diff(loops.offsets))
    sizes = np.bincount(row[kept], minlength=len(loops.label))
    return _Loops(prefix(sizes), both[kept], loops.label)


def _join(points: Floats, loops: _Loops, tolerance: float) -> DecisionRegions:
    """Join neighbouring polygons of one output."""
    piece = np.repeat(np.arange(len(loops.label)), np.diff(loops.offsets))
    ends = np.stack([loops.corners, loops.corners[next_corner(loops.offsets)]], axis=1)
    # the two polygons of each side inside the domain
    key = np.sort(ends, axis=1) @ np.array([len(points), 1])
    order = np.argsort(key, kind="stable")
    twice = np.flatnonzero(key[order][1:] == key[order][:-1])
    first, second = order[twice], order[twice + 1]
    a, b = piece[first], piece[second]
    same = loops.label[a] == loops.label[b]
    count = len(loops.label)
    links = coo_array((np.ones(int(same.sum())), (a[same], b[same])), shape=(count, count))
    size, region = connected_components(links, directed=False)
    pieces = rings(points, loops.offsets, loops.corners)
    # by output, the largest first
    label, area = np.empty(size, np.int64), np.bincount(region, shapely.area(pieces), size)
    label[region] = loops.label
    ranked = np.lexsort((-area, label))
    region = np.argsort(ranked)[region]
    members = np.split(np.argsort(region, kind="stable"), np.cumsum(np.bincount(region))[:-1])
    polygons = np.empty(size, object)
    polygons[:] = [shapely.coverage_union_all(pieces[chosen]) for chosen in members]
    between = np.sort(np.stack([region[a[~same]], region[b[~same]]], axis=1), axis=1)
    neighbours, row = np.unique(between, axis=0, return_inverse=True)
    length = np.linalg.norm(np.subtract(*points[ends[first[~same]].T]), axis=1)
    return DecisionRegions(
        label[ranked],
        area[ranked].astype(np.float64),
        polygons,
        neighbours.reshape(-1, 2).astype(np.int64),
        np.bincount(row.reshape(-1), length, len(neighbours)).astype(np.float64),
        tolerance,
    )
