"""Cells of a 3-D partition as polygons: whole, cut open, and in an order in which to paint them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Floats, Ints, Ragged, next_corner, prefix

if TYPE_CHECKING:
    from cpwl.domain import Domain
    from cpwl.partition import Partition


class Plane(NamedTuple):
    """The closed half-space ``normal @ x >= offset`` of R^3."""

    normal: Floats
    offset: float


class Polygons(NamedTuple):
    """Convex polygons in R^3, anticlockwise seen from outside the cell that each belongs to.

    ``stroked``: whether the side from a corner to the next is an edge of the cell, and not a seam
    that clipping left. ``facet``: the facet that a polygon is part of; -1 on a cut.
    """

    offsets: Ints  # (K + 1,)
    corners: Floats  # (N, 3)
    stroked: NDArray[np.bool_]  # (N,)
    cell: Ints  # (K,)
    facet: Ints  # (K,)


def select(polygons: Polygons, keep: NDArray[np.bool_]) -> Polygons:
    """Keep some of the polygons."""
    sizes = np.diff(polygons.offsets)
    corner = np.repeat(keep, sizes)
    return Polygons(
        prefix(sizes[keep]), polygons.corners[corner], polygons.stroked[corner],
        polygons.cell[keep], polygons.facet[keep],
    )  # fmt: skip


def join(parts: list[Polygons]) -> Polygons:
    """Put lists of polygons one after the other."""
    sizes = np.concatenate([np.diff(part.offsets) for part in parts])
    rest = [np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[1:]]
    return Polygons(prefix(sizes), *rest)


def middles(offsets: Ints, corners: Floats) -> Floats:
    """Return the mean of the corners of each row, a point inside where the row is convex."""
    return _sums(offsets, corners) / np.diff(offsets)[:, None]


def _sums(offsets: Ints, values: Floats) -> Floats:
    """Add up each row; there may be no rows, which reduceat refuses."""
    return np.add.reduceat(values, offsets[:-1]) if len(offsets) > 1 else values[:0]


def normals(offsets: Ints, corners: Floats) -> Floats:
    """Return the vector areas of polygons: along the normal, as long as the area."""
    origin = np.repeat(corners[offsets[:-1]], np.diff(offsets), axis=0)
    following = corners[next_corner(offsets)]
    return _sums(offsets, np.cross(corners - origin, following - origin)) / 2


def cells(partition: Partition) -> Polygons:
    """Return every cell's facets; each facet inside the domain twice, once for either cell."""
    rows = Ragged(partition.facet_offsets, partition.facet_corners)
    owner = np.repeat(np.arange(partition.num_cells), np.diff(partition.cell_facet_offsets))
    facets = partition.cell_facets.astype(np.int64)
    return _faces(partition.points, rows, facets, owner, cell_middles(partition))


def cell_middles(partition: Partition) -> Floats:
    """Return the means of the cells' corners, (C, 3)."""
    return middles(partition.cell_offsets, partition.points[partition.cell_corners])


def hull(domain: Domain) -> Polygons:
    """Return the domain's sides, as the facets of one cell."""
    sizes = prefix(np.array([len(side) for side in domain.sides]))
    rows = Ragged(sizes, np.concatenate(domain.sides).astype(np.int32))
    every = np.arange(len(domain.sides))
    middle = domain.corners.mean(axis=0, keepdims=True)
    return _faces(domain.corners, rows, every, np.zeros_like(every), middle)


def _faces(points: Floats, rows: Ragged, facet: Ints, cell: Ints, inside: Floats) -> Polygons:
    """Return these facets, corner by corner, anticlockwise seen from outside their cells."""
    offsets, corners = rows.offsets, _cyclic(rows.offsets, points[rows.items])
    outwards = middles(offsets, corners)[facet] - inside[cell]
    flipped = np.einsum("fi,fi->f", normals(offsets, corners)[facet], outwards) < 0
    sizes = np.diff(offsets)[facet]
    starts = prefix(sizes)
    step = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes)
    step = np.where(np.repeat(flipped, sizes), np.repeat(sizes - 1, sizes) - step, step)
    taken = np.repeat(offsets[facet], sizes) + step
    stroked = np.ones(len(taken), np.bool_)
    return Polygons(starts, corners[taken], stroked, cell, facet)


def _cyclic(offsets: Ints, corners: Floats) -> Floats:
    """Return the corners of plane convex polygons in the order of their outlines."""
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    arm = corners - middles(offsets, corners)[row]
    first = arm[_first_largest(offsets, np.linalg.norm(arm, axis=1))]
    across = np.cross(first[row], arm)
    upwards = across[_first_largest(offsets, np.linalg.norm(across, axis=1))]
    return corners[_by_angle(row, arm, first, upwards)]


def _first_largest(offsets: Ints, values: Floats) -> Ints:
    """Return where each row has its largest entry."""
    largest = np.maximum.reduceat(values, offsets[:-1])
    hit = np.flatnonzero(values == np.repeat(largest, np.diff(offsets)))
    return hit[np.searchsorted(hit, offsets[:-1])]


def _by_angle(row: Ints, arm: Floats, first: Floats, normal: Floats) -> Ints:
    """Sort each row's arms anticlockwise about its normal."""
    second = np.cross(normal, first)
    x = np.einsum("ni,ni->n", arm, first[row]) / np.linalg.norm(first, axis=1)[row]
    y = np.einsum("ni,ni->n", arm, second[row]) / np.linalg.norm(second, axis=1)[row]
    return np.lexsort((np.arctan2(y, x), row))


def clip(polygons: Polygons, plane: Plane, keep: bool = True) -> Polygons:
    """Return the parts of polygons that lie in the half-space, or those that do not."""
    offsets, corners = polygons.offsets, polygons.corners
    height = corners @ plane.normal - plane.offset
    inside = (height >= 0) == keep
    following = next_corner(offsets)
    enters = inside[following]
    crosses = inside != enters
    # a corner inside is emitted, then the place where the side to the next one crosses
    place = prefix(inside.astype(np.int64) + crosses)
    made = np.empty((place[-1], 3))
    stroked = np.empty(place[-1], np.bool_)
    made[place[:-1][inside]] = corners[inside]
    stroked[place[:-1][inside]] = polygons.stroked[inside]
    at = (place[1:] - 1)[crosses]
    made[at] = _crossings(corners, following, height, crosses)
    stroked[at] = polygons.stroked[crosses] & enters[crosses]  # from leaving to entering: a seam
    sizes = np.diff(place[offsets])
    left = sizes > 0
    return Polygons(prefix(sizes[left]), made, stroked, polygons.cell[left], polygons.facet[left])


def section(polygons: Polygons, plane: Plane) -> Polygons:
    """Return where the plane cuts the cells, seen from the half-space.

    `polygons` must hold all facets of every cell. A facet in the plane counts for the cell that is
    not in the half-space.
    """
    height = polygons.corners @ plane.normal - plane.offset
    following = next_corner(polygons.offsets)
    # each corner of the section lies on two facets: on one the outline leaves the half-space there
    leaves = (height >= 0) & (height[following] < 0)
    points = _crossings(polygons.corners, following, height, leaves)
    cell = np.repeat(polygons.cell, np.diff(polygons.offsets))[leaves]
    order = np.argsort(cell, kind="stable")
    points, cell = points[order], cell[order]
    found, row, sizes = np.unique(cell, return_inverse=True, return_counts=True)
    offsets = prefix(sizes)
    arm = points - middles(offsets, points)[row]
    first = np.linalg.qr(plane.normal[:, None], mode="complete")[0][:, 1]  # along the plane
    shape = (len(found), 3)
    order = _by_angle(row, arm, np.broadcast_to(first, shape), np.broadcast_to(plane.normal, shape))
    return Polygons(
        offsets, points[order], np.ones(len(points), np.bool_), found, np.full(len(found), -1)
    )


def _crossings(
    corners: Floats, following: Ints, height: Floats, where: NDArray[np.bool_]
) -> Floats:
    """Return the points of height 0 on the sides that begin at the chosen corners."""
    after = following[where]
    share = height[where] / (height[where] - height[after])
    return corners[where] + share[:, None] * (corners[after] - corners[where])


def cut_open(polygons: Polygons, planes: Sequence[Plane]) -> Polygons:
    """Remove what lies in all the half-spaces together, and close the cells with walls.

    Polygons that the cut crosses come back in pieces whose seams are not stroked; the walls, the
    new faces of the cells, have no facet. `polygons` must hold all facets of every cell.
    """
    if not planes:
        return polygons
    parts = []
    for k, plane in enumerate(planes):
        wall = section(polygons, plane)
        for other in (*planes[:k], *planes[k + 1 :]):
            wall = clip(wall, other)
        parts.append(wall._replace(stroked=np.ones_like(wall.stroked)))
    rest = polygons
    for plane in planes:
        parts.append(clip(rest, plane, keep=False))
        rest = clip(rest, plane)
    made = join(parts)
    area = np.linalg.norm(normals(made.offsets, made.corners), axis=1)
    return select(made, area > 1e-14 * area.sum())  # not where a cell only touches the cut
