"""Error bounds of a complex's vertices.

They are tightened from the knots that pass through a vertex, or removed by computing it exactly.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import EPS, SMALLEST, Floats, Ints, magnitude
from cpwl.engine.bounds import Bounds
from cpwl.engine.columns import pieces_of
from cpwl.engine.plane.complex import Complex
from cpwl.engine.plane.meetings import Meetings
from cpwl.engine.rational import Arbiter, Vertices
from cpwl.engine.residuals import knot_table, residual_errors
from cpwl.network import Network


def sharpen(
    complex_: Complex, arbiter: Arbiter, largest: float, meetings: Meetings | None
) -> Complex:
    """Compute exactly the vertices with a larger error bound than this."""
    poor = complex_.error > largest
    found = None
    if meetings is not None and poor.any():
        found = meetings.vertices(np.flatnonzero(poor))
    better = sharpened(complex_.vertices, poor, arbiter, found)
    return replace(complex_, points=better.points, error=better.error)


def sharpened(
    vertices: Vertices,
    poor: NDArray[np.bool_],
    arbiter: Arbiter,
    found: tuple[Floats, NDArray[np.bool_]] | None = None,
) -> Vertices:
    """Round the exact coordinates of some of the vertices.

    ``found`` has them, and which of them are proven; the others are computed one by one.
    """
    if not poor.any() or not arbiter.exact:
        return vertices
    points, error = vertices.points.copy(), vertices.error.copy()
    left = np.flatnonzero(poor)
    if found is not None:
        points[poor] = found[0]
        left = left[~found[1]]
    points[left] = arbiter.points(vertices.names[left])
    # twice: half an ulp for each of at most two coordinates
    error[poor] = 2 * EPS * np.abs(points[poor]).max(axis=1) + SMALLEST
    return Vertices(points, error, vertices.names)


def tighten(
    complex_: Complex,
    network: Network,
    bounds: Bounds,
    stages: int,
    corners: Vertices,
    bit_unit: NDArray[np.int32],
    base: NDArray[np.int32],
    largest: float,
) -> Complex:
    """Replace error bounds larger than this by what the residuals of the knots show.

    ``stages`` have been worked through; ``bit_unit`` and ``base`` are as in `Refined`.
    """
    poor = complex_.error > largest
    if not poor.any():
        return complex_
    vertex, cell, knot = _incident(complex_, poor)
    rows, first, row = np.unique(vertex, return_index=True, return_inverse=True)
    error = complex_.error.copy()
    error[rows] = residual_errors(
        network, bounds, stages, complex_.points[rows], error[rows],
        pieces_of(complex_.patterns[cell[first]], bit_unit, base),
        knot_table(row, knot, len(rows), network.num_units), _sides(corners),
    )  # fmt: skip
    return replace(complex_, error=error)


def _incident(complex_: Complex, wanted: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """List (vertex, a cell there, knot) for every edge at the wanted vertices, by vertices."""
    if complex_.points.shape[1] == 1:
        vertex = np.flatnonzero(wanted)
        cell = np.minimum(vertex, len(complex_.patterns) - 1)
        ends = np.where(vertex == 0, -1, -2)
        unit = complex_.point_unit[vertex]
        return vertex, cell, np.where(unit >= 0, unit, ends).astype(np.int64)
    edge = np.flatnonzero(wanted[complex_.edge_points].any(axis=1))
    vertex = complex_.edge_points[edge].reshape(-1)
    mine = wanted[vertex]
    edge = np.repeat(edge, 2)[mine]
    order = np.argsort(vertex[mine], kind="stable")
    edge = edge[order]
    cell = complex_.edge_cells[edge].max(axis=1)
    knot = complex_.edge_unit[edge].astype(np.int64)
    return vertex[mine][order].astype(np.int64), cell.astype(np.int64), knot


def _sides(corners: Vertices) -> Floats:
    """Describe the sides by unit normals, offsets and errors; see `residual_errors`."""
    points, error = corners.points, corners.error
    rounding = 8 * EPS * np.abs(points).max()
    if points.shape[1] == 1:
        return np.stack([np.ones(2), points[:, 0], error + rounding], axis=1)
    along = np.roll(points, -1, axis=0) - points
    scale = scale_of(points)
    length = np.linalg.norm(scale * along, axis=1)
    normal = scale * np.stack([-along[:, 1], along[:, 0]], axis=1) / length[:, None]
    offset = (normal * points).sum(axis=1)
    off = np.maximum(error, np.roll(error, -1)) + rounding
    return np.column_stack([normal, offset, off])


def scale_of(points: Floats) -> float:
    """Power of two that brings the largest coordinate near 1."""
    return 2.0 ** -min(max(magnitude(points), -1000), 1000)
