"""Volumes, centroids and directions of all faces of a partition, and simplices that fill its cells.

A face of dimension k is filled by the cones from its lowest vertex, the *apex*, over those of its
facets that do not hold it (the pulling triangulation, one face at a time). Its measure is a vector
of C(P, k) minors, the k-volumes of its projections to the coordinate planes of dimension k: the
facet's minors give the cone's in k products each, so every face is measured once, however many
cells it bounds, and no determinant is expanded. The minors of a facet are its normal.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Floats, Ints, Ragged, njit, take_rows

if TYPE_CHECKING:
    from cpwl.domain import Domain
    from cpwl.partition import Partition


class Measures(NamedTuple):
    """What is known of the n faces of one dimension k."""

    minors: Floats  # (n, C(P, k)) in the order of combinations(range(P), k); either orientation
    centroid: Floats  # (n, P)
    apex: NDArray[np.int32]  # (n,) the lowest vertex


def levels(partition: Partition) -> tuple[Ragged, ...]:
    """Return the faces of dimension 1..P, each by its facets (edges by vertices)."""
    if partition.dim == 1:
        return (Ragged(partition.cell_offsets, partition.cell_corners),)
    cells = Ragged(partition.cell_facet_offsets, partition.cell_facets)
    if partition.dim == 2:
        return Ragged(partition.facet_offsets, partition.facet_corners), cells
    return (*partition.skeleton, cells)


def measures(points: Floats, faces: tuple[Ragged, ...]) -> Iterator[Measures]:
    """Yield the measures of the faces of dimension 1, 2, ..., of a complex.

    Exact up to rounding: all terms of a sum have one sign, and every coordinate is a difference
    from a vertex of the face itself. Cost: k C(P, k) products for each facet of each face.
    """
    points = np.array(points, order="C")  # a read-only array would compile the kernel once more
    n, dim = points.shape
    below = Measures(np.ones((n, 1)), points, np.arange(n, dtype=np.int32))
    for k, (offsets, items) in enumerate(faces, 1):
        place, sign = _expansion(dim, k)
        count = len(offsets) - 1
        found = Measures(
            np.zeros((count, len(place))), np.empty((count, dim)), np.empty(count, np.int32)
        )
        _cones(points, offsets, items, *below, place, sign, *found)
        yield found
        below = found


def normals(minors: Floats) -> Floats:
    """Turn the minors (n, P) of facets into normal vectors whose length is the facet's volume."""
    dim = minors.shape[1]
    # expanding det [x, facet] along x: combinations(range(P), P - 1) leaves out the last axis first
    return minors[:, ::-1] * np.resize([1.0, -1.0], dim)


def half_spaces(domain: Domain) -> tuple[Floats, Floats]:
    """Return unit normals (m, P) and offsets (m,) of a domain's sides: normals @ s <= offsets."""
    corners = domain.corners
    found = np.empty((len(domain.sides), domain.dim))
    offsets = np.empty(len(found))
    for i, side in enumerate(domain.sides):
        on = corners[list(side)]
        *_, axes = np.linalg.svd(on - on[0])
        heights = (corners - on[0]) @ axes[-1]
        found[i] = -axes[-1] if heights.sum() > 0 else axes[-1]
        offsets[i] = (on @ found[i]).max()
    return found, offsets


def triangulate(partition: Partition, cells: Ints) -> tuple[NDArray[np.int32], Ints]:
    """Return simplices (T, P + 1) of vertices that fill the cells, and the row of each one's cell.

    Neighbouring cells cut the facet that they share alike. A simplex may be flat.
    """
    faces = levels(partition)
    apexes = [np.arange(len(partition.points), dtype=np.int32)]
    for offsets, items in faces:
        apexes.append(np.minimum.reduceat(apexes[-1][items], offsets[:-1]))
    row, face = np.arange(len(cells)), np.asarray(cells, np.int64)
    simplices = np.empty((len(cells), 0), np.int32)
    for k in range(partition.dim, 0, -1):
        apex = apexes[k][face]
        sizes, below = take_rows(faces[k - 1], face)
        keep = apexes[k - 1][below] != np.repeat(apex, sizes)
        parent = np.repeat(np.arange(len(face)), sizes)[keep]
        simplices = np.column_stack([simplices, apex])[parent]
        row, face = row[parent], below[keep]
    return np.column_stack([simplices, face.astype(np.int32)]), row


def _expansion(dim: int, k: int) -> tuple[Ints, Floats]:
    """Return how a k x k minor expands along its first row.

    For each set S of k axes and each axis S[j]: ``place`` (C(P, k), k, 2) that axis and the index
    of the minor on the others, ``sign`` (k,) = (-1)^j.
    """
    smaller = {axes: i for i, axes in enumerate(combinations(range(dim), k - 1))}
    place = [
        [(axes[j], smaller[axes[:j] + axes[j + 1 :]]) for j in range(k)]
        for axes in combinations(range(dim), k)
    ]
    return np.array(place, np.int64), np.resize([1.0, -1.0], k)


@njit(cache=True, nogil=True)
def _cones(
    points, offsets, items, facet_minors, facet_centroid, facet_apex, place, sign,
    minors, centroid, apex,
):  # fmt: skip
    """Sum the cones that fill every face; `minors` holds zeros on entry."""
    dim = points.shape[1]
    width, k = place.shape[0], place.shape[1]
    cone, arm = np.empty(width), np.empty(dim)
    for face in range(len(offsets) - 1):
        first, last = offsets[face], offsets[face + 1]
        top = facet_apex[items[first]]
        for i in range(first + 1, last):
            top = min(top, facet_apex[items[i]])
        apex[face] = top
        total, lead = 0.0, 0
        for axis in range(dim):
            centroid[face, axis] = 0.0
        for i in range(first, last):
            facet = items[i]
            base = facet_apex[facet]
            if base == top:
                continue
            for axis in range(dim):
                arm[axis] = points[base, axis] - points[top, axis]
            weight = 0.0
            for c in range(width):
                value = 0.0
                for j in range(k):
                    axis, minor = place[c, j, 0], place[c, j, 1]
                    value += sign[j] * arm[axis] * facet_minors[facet, minor]
                cone[c] = value
                weight += abs(value)
            # facets come in either orientation; the cones that fill a face are all turned one way
            turn = -1.0 if (cone[lead] < 0) != (minors[face, lead] < 0) else 1.0
            for c in range(width):
                minors[face, c] += turn * cone[c]
            for c in range(width):
                if abs(minors[face, c]) > abs(minors[face, lead]):
                    lead = c
            total += weight
            for axis in range(dim):
                centroid[face, axis] += weight * (facet_centroid[facet, axis] - points[top, axis])
        for c in range(width):
            minors[face, c] /= k
        for axis in range(dim):
            if total > 0:
                # the centroid of a cone divides the way from its base to the apex as 1 : k
                step = centroid[face, axis] / total * k / (k + 1)
            else:  # of no volume in floating point
                step = 0.0
                for i in range(first, last):
                    step += facet_centroid[items[i], axis] - points[top, axis]
                step /= last - first
            centroid[face, axis] = points[top, axis] + step
