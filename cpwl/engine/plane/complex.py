"""Complex of a subdivided polygon or segment, as flat arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Floats, Ints
from cpwl.engine.rational import Vertices


@dataclass(frozen=True, eq=False)
class Complex:
    """Cells, edges and vertices of a subdivided polygon (P = 2) or segment (P = 1).

    In one dimension the points ascend, cell i is the interval from point i to point i + 1, and the
    edges are the cells; the arrays below ``edge_points`` are then empty.
    """

    points: Floats  # (V, P)
    error: Floats  # (V,) bound on the distance from the vertex that is meant
    names: Ints  # (V,) the arbiter's numbers, which hold what is meant
    patterns: NDArray[np.uint64]  # (C, W) packed bits of the stages so far
    edge_points: NDArray[np.int32]  # (E, 2)
    edge_cells: NDArray[np.int32]  # (E, 2) left and right of the edge, -1 outside
    edge_unit: NDArray[np.int32]  # (E,) unit whose knot the edge lies on, -1 - i on side i
    cell_offsets: Ints  # (C + 1,)
    cell_corners: NDArray[np.int32]  # (N,) anticlockwise
    cell_edges: NDArray[np.int32]  # (N,) edge from each corner to the next
    point_unit: NDArray[np.int32]  # (V,) only P = 1: unit whose knot the point is, -1 at the ends
    corners: Floats  # (M, P) of the domain
    undecided: int = 0  # sides of vertices that were taken as float64 has them
    broken: int = 0  # cells left whole because their signs were inconsistent

    @property
    def vertices(self) -> Vertices:
        """All there is to know about the vertices."""
        return Vertices(self.points, self.error, self.names)


def whole(corners: Vertices) -> Complex:
    """Make the complex of an undivided polygon (anticlockwise corners) or segment (two ends)."""
    n, dim = corners.points.shape
    empty = np.empty((0, 2), np.int32)
    patterns = np.empty((1, 0), np.uint64)
    nothing = np.empty(0, np.int32)
    if dim == 1:
        return Complex(
            *corners, patterns, np.array([[0, 1]], np.int32), empty, nothing,
            np.empty(0, np.int64), nothing, nothing, np.full(2, -1, np.int32), corners.points,
        )  # fmt: skip
    ring = np.arange(n, dtype=np.int32)
    return Complex(
        *corners, patterns, np.stack([ring, np.roll(ring, -1)], axis=1),
        np.stack([np.zeros(n, np.int32), np.full(n, -1, np.int32)], axis=1),
        -1 - ring, np.array([0, n]), ring, ring, nothing, corners.points,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Refined:
    """A complex with the meaning of its bits.

    ``bit_unit`` and ``bit_piece`` (64 * W,): bit j says that its unit is above the knot that
    bounds this piece from above; both -1 for padding. ``base`` (num_units,): piece of each unit
    where none of its bits is set.
    """

    complex: Complex
    bit_unit: NDArray[np.int32]
    bit_piece: Ints
    base: NDArray[np.int32]
    undecided: int
    stages: int
    needed: int = 0
