"""A cell inside a box, in coordinates of its own size, and safe bounds over it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cpwl.arrays import EPS, UNIT_ROUNDOFF, Floats, Ints
from cpwl.cells.cell import Cell
from cpwl.cells.linear_programs import Optimum
from cpwl.domain import floats
from cpwl.errors import require_kind


class Room(NamedTuple):
    """A cell in a box, in coordinates y = (x - z) / scale."""

    cell: Cell
    A: Floats
    b: Floats
    low: Floats
    high: Floats
    scale: float
    reach: float  # the longest y

    def doubt(self, length: Any) -> Floats:
        """Bound the error of all distances (m,) for a y of this length."""
        return self.cell.doubt.error / self.scale + self.cell.doubt.tilt * length


def room_of(cell: Cell, lo: Any, hi: Any) -> Room:
    """Return a cell in a caller's box, numbers or one entry a coordinate."""
    require_kind(cell, Cell, "Make one with cpwl.cell_at(network, z).")
    size = len(cell.z)
    low, high = floats(lo, "lo"), floats(hi, "hi")
    if any(side.shape not in ((), (size,), cell.network.input_shape) for side in (low, high)):
        raise ValueError(
            f"Expected lo and hi as numbers or with {size} entries, one per latent coordinate, got "
            f"shapes {low.shape} and {high.shape}."
        )
    low, high = (np.broadcast_to(side.reshape(-1), size) for side in (low, high))
    outside = np.flatnonzero((cell.z < low) | (cell.z > high) | (low >= high))
    if len(outside):
        k = outside[0]
        raise ValueError(
            f"Expected lo < hi and a box that holds the cell's latent, got [{low[k]:g}, "
            f"{high[k]:g}] and {cell.z[k]:g} on axis {k}. Widen the box, or take the cell at "
            "another latent."
        )
    # about the size of the cell, so that the tolerances of HiGHS are small beside it
    distances = np.sort(cell.distances)
    far = np.nonzero(distances)[0]
    scale = float((high - low).max())
    if len(far):
        scale = min(scale, float(distances[max(min(size, len(distances) - 1), far[0])]))
    low, high = (low - cell.z) / scale, (high - cell.z) / scale
    reach = float(np.linalg.norm(np.maximum(-low, high))) * (1 + 4 * size * EPS)
    return Room(cell, cell.halfspaces.A, cell.distances / scale, low, high, scale, reach)


def safe_bound(room: Room, cost: Floats, A: Floats, b: Floats, best: Optimum) -> float:
    """Bound cost . y where A y <= b in the box, by multipliers that may be anything >= 0."""
    used = np.flatnonzero(best.multipliers)
    rows, weights = best.rows[used], best.multipliers[used]
    normals = A[rows]
    rest = cost - weights @ normals
    corner = np.maximum(np.abs(room.low), np.abs(room.high))
    sizes = weights @ np.abs(b[rows]) + (np.abs(cost) + weights @ np.abs(normals)) @ corner
    rounding = (len(rows) + len(cost) + 8) * UNIT_ROUNDOFF * sizes
    value = weights @ b[rows] + np.maximum(rest * room.low, rest * room.high).sum()
    return float(value + rounding)


def coincident(room: Room) -> Ints:
    """Name for each half-space the first one with the same hyperplane up to rounding."""
    count, size = room.A.shape
    first = np.arange(count)
    if count < 2:
        return first
    weights = np.random.default_rng(0).standard_normal(size + 1)
    key = room.A @ weights[:-1] + room.b * weights[-1]
    order = np.argsort(key, kind="stable")
    tilt, error = room.cell.doubt.tilt, room.cell.doubt.error / room.scale
    a, b = order[:-1], order[1:]
    length = np.linalg.norm(weights)
    near = key[b] - key[a] <= length * (tilt[a] + tilt[b] + error[a] + error[b])
    a, b = a[near], b[near]
    same = np.linalg.norm(room.A[a] - room.A[b], axis=1) <= tilt[a] + tilt[b]
    same &= np.abs(room.b[a] - room.b[b]) <= error[a] + error[b]
    pairs = coo_array((np.ones(same.sum(), bool), (a[same], b[same])), (count, count))
    labels = connected_components(pairs, directed=False)[1]
    np.minimum.at(lowest := np.full(count, count), labels, first)
    return lowest[labels]
