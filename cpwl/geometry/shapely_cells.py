"""Cells of a plane partition as shapely polygons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

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
    offsets = partition.cell_offsets
    # a ring ends where it begins: repeat every cell's first corner after its last
    rings = offsets + np.arange(len(offsets))
    ids = np.empty(rings[-1], np.int64)
    ends = rings[1:] - 1
    ids[ends] = partition.cell_corners[offsets[:-1]]
    body = np.ones(len(ids), bool)
    body[ends] = False
    ids[body] = partition.cell_corners
    whole = (rings, np.arange(len(offsets)))
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, partition.points[ids], whole)
