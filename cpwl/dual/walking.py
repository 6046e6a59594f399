"""Finding the cell of a point geometrically, in three dimensions and more: walk towards it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import KDTree

from cpwl.geometry.measure import levels, magnitude, measures, normals

if TYPE_CHECKING:
    from cpwl.partition import Partition

Array = NDArray[np.float64]


def walk(partition: Partition, s: Array) -> NDArray[np.int64]:
    """Return a cell that touches each of the points (n, P) of the domain, P >= 3.

    From the nearest centroid along the straight line to the point, from cell to cell across the
    facet through which the line leaves. Cost: one measurement of all facets, then about as many
    cells for each point as lie between.
    """
    exponent = magnitude(partition.points)  # so that no volume overflows
    s = np.ldexp(s, -exponent)
    *_, facets, cells = measures(np.ldexp(partition.points, -exponent), levels(partition))
    outward = normals(facets.minors)
    first, second = partition.facet_cells.T
    # from centre to centre: seen from a cell thinner than rounding alone, no side would be certain
    ahead = np.where(second[:, None] < 0, facets.centroid, cells.centroid[second])
    outward[np.einsum("fp,fp->f", outward, ahead - cells.centroid[first]) < 0] *= -1
    _, nearest = KDTree(cells.centroid).query(s)
    found = np.asarray(nearest, np.int64)
    _walk(
        s, cells.centroid, facets.centroid, outward, partition.cell_facet_offsets,
        partition.cell_facets, partition.facet_cells, found,
    )  # fmt: skip
    return found


@njit(cache=True, nogil=True)
def _walk(s, middle, on_facet, outward, offsets, facets, facet_cells, found):
    """Replace a first guess of every point's cell; normals point away from a facet's first cell."""
    dim = s.shape[1]
    for i in range(len(s)):
        cell = found[i]
        origin = middle[cell]
        furthest = 0.0
        for _ in range(len(middle)):
            leave, across = np.inf, -1
            for j in range(offsets[cell], offsets[cell + 1]):
                facet = facets[j]
                turn = 1.0 if facet_cells[facet, 0] == cell else -1.0
                rate, distance = 0.0, 0.0
                for axis in range(dim):
                    rate += turn * outward[facet, axis] * (s[i, axis] - origin[axis])
                    distance += turn * outward[facet, axis] * (on_facet[facet, axis] - origin[axis])
                if rate > 0 and distance < leave * rate:
                    leave, across = distance / rate, facet
            if leave > furthest:
                furthest, found[i] = leave, cell
            if leave >= 1:
                break
            cell = facet_cells[across, 0] + facet_cells[across, 1] - cell
            if cell < 0:  # out of the domain by rounding
                break
