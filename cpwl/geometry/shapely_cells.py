"""Cells of a plane partition, or parts of them, as shapely polygons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from cpwl.arrays import Floats, Ints

if TYPE_CHECKING:
    from cpwl.partition import Partition


def polygons(partition: Partition) -> NDArray[np.object_]:
    """Return the cells of a 2-D partition as shapely polygons, (C,); needs no network.

    Raises
    ------
    ValueError
        A partition of another dimension.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.polygons(partition)[0]
    <POLYGON ((-1 -1, 0 -1, 0 0, -1 0, -1 -1))>
    """
    if partition.dim == 1:
        raise ValueError(
            "Expected a 2-D partition for polygons, got a 1-D one. "
            "Its cells are intervals: partition.points[partition.cell_corners].reshape(-1, 2)."
        )
    if partition.dim > 2:
        raise ValueError(
            f"Expected a 2-D partition for polygons, got a {partition.dim}-D one. Subdivide a "
            "slice of two axes, or take the corners of cells: cell_corners, of facets: "
            "facet_corners."
        )
    return rings(partition.points, partition.cell_offsets, partition.cell_corners)


def rings(points: Floats, offsets: Ints, corners: NDArray) -> NDArray[np.object_]:
    """Return polygons, given by the numbers of their corners, as shapely polygons."""
    # a ring ends where it begins: repeat every polygon's first corner after its last
    starts = offsets + np.arange(len(offsets))
    ids = np.empty(starts[-1], np.int64)
    ends = starts[1:] - 1
    ids[ends] = corners[offsets[:-1]]
    body = np.ones(len(ids), bool)
    body[ends] = False
    ids[body] = corners
    whole = (starts, np.arange(len(offsets)))
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, points[ids], whole)
