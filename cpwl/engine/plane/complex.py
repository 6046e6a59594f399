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
    error: Floats  # (V,) bound on the distance of a point from the exact vertex
    names: Ints  # (V,) the arbiter's numbers of the vertices
    patterns: NDArray[np.uint64]  # (C, W) packed bits of the stages so far
    edge_points: NDArray[np.int32]  # (E, 2)
    edge_cells: NDArray[np.int32]  # (E, 2) left and right of the edge, -1 outside
    edge_unit: NDArray[np.int32]  # (E,) unit whose knot the edge lies on, -1 - i on side i
    cell_offsets: Ints  # (C + 1,)
    cell_corners: NDArray[np.int32]  # (N,) anticlockwise
    cell_edges: NDArray[np.int32]  # (N,) edge from each corner to the next
    point_unit: NDArray[np.int32]  # (V,) only P = 1: unit whose knot the point is, -1 at the ends
    corners: Floats  # (M, P) of the domain, or of a strip of it
    corner_names: Ints  # (M,)
    undecided: int = 0  # sides of vertices that float64 decided without proof
    broken: int = 0  # cells left whole because their signs were inconsistent

    @property
    def vertices(self) -> Vertices:
        """Coordinates, error bounds and names of the vertices."""
        return Vertices(self.points, self.error, self.names)


def whole(corners: Vertices) -> Complex:
    """Make the complex of an undivided polygon (anticlockwise corners) or segment (two ends)."""
    n, dim = corners.points.shape
    ring = np.arange(n, dtype=np.int32)
    edges = ring if dim == 2 else ring[:0]
    return Complex(
        points=corners.points,
        error=corners.error,
        names=corners.names,
        patterns=np.empty((1, 0), np.uint64),
        edge_points=np.stack([ring, np.roll(ring, -1)], axis=1)[: n if dim == 2 else 1],
        edge_cells=np.stack([np.zeros_like(edges), np.full_like(edges, -1)], axis=1),
        edge_unit=-1 - edges,
        cell_offsets=np.array([0, n] if dim == 2 else [], np.int64),
        cell_corners=edges,
        cell_edges=edges,
        point_unit=np.full(n if dim == 1 else 0, -1, np.int32),
        corners=corners.points,
        corner_names=corners.names,
    )


@dataclass(frozen=True, eq=False)
class Refined:
    """A complex with the meaning of its bits.

    Bit j is set where its unit is above the knot that bounds its piece from above.
    """

    complex: Complex
    bit_unit: NDArray[np.int32]  # (64 * W,) -1 for padding
    bit_piece: Ints  # (64 * W,) -1 for padding
    base: NDArray[np.int32]  # (num_units,) piece of each unit where none of its bits is set
    undecided: int
    stages: int  # that cut the complex
    needed: int = 0  # bytes that the next stage would have taken, 0 if there was none
