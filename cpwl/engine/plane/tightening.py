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
from cpwl.engine.residuals import Cells, covering, knot_table, reach, residual_errors
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
    usable = complex_.error <= reach(bounds)
    poor = (complex_.error > largest) & usable
    rows = np.flatnonzero(poor)
    if len(rows) == 0:
        return complex_
    corner, owner = _corners(complex_)
    wanted = poor[corner]
    chosen = covering(np.searchsorted(rows, corner[wanted]), owner[wanted], len(rows))
    cells, cell = np.unique(chosen, return_inverse=True)
    taken = np.isin(owner, cells) & usable[corner]
    vertex, knot = _knots_at(complex_, poor)
    error = complex_.error.copy()
    error[rows] = residual_errors(
        network, bounds, stages,
        Cells(
            pieces_of(complex_.patterns[cells], bit_unit, base),
            np.searchsorted(cells, owner[taken]), complex_.points[corner[taken]],
        ),
        cell, complex_.points[rows], error[rows],
        knot_table(np.searchsorted(rows, vertex), knot, len(rows), network.num_units),
        _sides(corners),
    )  # fmt: skip
    return replace(complex_, error=error)


def _corners(complex_: Complex) -> tuple[Ints, Ints]:
    """List the corners of all cells, and the cell of each, ascending."""
    cells = np.arange(len(complex_.patterns))
    if complex_.points.shape[1] == 1:
        return complex_.edge_points.reshape(-1).astype(np.int64), np.repeat(cells, 2)
    sizes = np.diff(complex_.cell_offsets)
    return complex_.cell_corners.astype(np.int64), np.repeat(cells, sizes)


def _knots_at(complex_: Complex, wanted: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """List (vertex, knot) for every edge at the wanted vertices, by vertices."""
    if complex_.points.shape[1] == 1:
        vertex = np.flatnonzero(wanted)
        unit = complex_.point_unit[vertex]
        return vertex, np.where(unit >= 0, unit, np.where(vertex == 0, -1, -2)).astype(np.int64)
    edge = np.flatnonzero(wanted[complex_.edge_points].any(axis=1))
    vertex = complex_.edge_points[edge].reshape(-1)
    mine = wanted[vertex]
    edge = np.repeat(edge, 2)[mine]
    order = np.argsort(vertex[mine], kind="stable")
    knot = complex_.edge_unit[edge[order]].astype(np.int64)
    return vertex[mine][order].astype(np.int64), knot


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
