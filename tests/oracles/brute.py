"""Brute force over activation patterns with linear programs, and closed-form counts.

Independent of the rational oracle as well as of the engine: every pattern is a set of half-planes,
and it is a cell when HiGHS finds a point with positive distance to all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from oracles.layers import Layer, Scalar
from oracles.polytopes import Polytope
from scipy.optimize import linprog

Array = NDArray[np.float64]


def feasible_patterns(
    layers: Sequence[Layer], domain: Sequence[Sequence[float]] | Polytope, depth: float = 1e-7
) -> set[tuple[int, ...]]:
    """Return the patterns whose cell holds a ball of radius `depth`, trying every one.

    Exponential in the units of a layer: for a dozen units in all. Scalar units without period,
    layers in sequence.
    """
    if isinstance(domain, Polytope):
        walls = np.array(domain.walls, dtype=np.float64)
    else:
        walls = _sides(np.asarray(domain, dtype=np.float64))
    return set(_patterns(list(layers), walls, np.eye(walls.shape[1])[:-1], depth))


def _patterns(
    layers: list[Layer], walls: Array, latent: Array, depth: float
) -> Iterator[tuple[int, ...]]:
    """Yield the patterns of `layers` on the cell walls @ (z, 1) >= 0, reading latent @ (z, 1)."""
    if not layers:
        yield ()
        return
    one, *rest = layers
    assert isinstance(one.units, Scalar)
    assert one.units.period is None
    weight, bias = np.array(one.weight, dtype=float), np.array(one.bias, dtype=float)
    before = weight @ latent
    before[:, -1] += bias
    knots = [-math.inf, *map(float, one.units.knots), math.inf]
    slopes = np.array(one.units.slopes, dtype=float)
    intercepts = np.array(one.units.intercepts, dtype=float)
    for pieces in itertools.product(range(len(slopes)), repeat=len(bias)):
        chosen = list(pieces)
        new, possible = [], True
        for row, piece in zip(before, pieces, strict=True):
            low, high = knots[piece], knots[piece + 1]
            if np.abs(row[:-1]).max() < 1e-12:  # constant: on the lower piece at a knot
                possible &= bool(low < row[-1] - 1e-12 and row[-1] - 1e-12 <= high)
                continue
            if math.isfinite(low):
                new.append([*row[:-1], row[-1] - low])
            if math.isfinite(high):
                new.append([*-row[:-1], high - row[-1]])
        inside = np.concatenate([walls, np.array(new).reshape(-1, walls.shape[1])])
        if possible and inscribed_radius(inside) > depth:
            after = slopes[chosen][:, None] * before
            after[:, -1] += intercepts[chosen]
            for below in _patterns(rest, inside, after, depth):
                yield pieces + below


def inscribed_radius(walls: Array) -> float:
    """Radius of the largest ball in walls @ (z, 1) >= 0; negative if there is none."""
    norms = np.linalg.norm(walls[:, :-1], axis=1)
    dim = walls.shape[1] - 1
    result = linprog(
        np.eye(dim + 1)[-1] * -1.0,
        A_ub=np.column_stack([-walls[:, :-1], norms]),
        b_ub=walls[:, -1],
        bounds=[(None, None)] * (dim + 1),
        method="highs",
    )
    assert result.status == 0, result.message
    return -float(result.fun)


def _sides(points: Array) -> Array:
    """Rows (normal, offset) that are >= 0 inside an anticlockwise polygon or an interval."""
    if points.shape[1] == 1:
        return np.array([[1.0, -points[0, 0]], [-1.0, points[1, 0]]])
    edges = np.roll(points, -1, axis=0) - points
    normals = np.column_stack([-edges[:, 1], edges[:, 0]])
    return np.column_stack([normals, -(normals * points).sum(1)])


def arrangement_cells(count: int, dim: int = 2, crossings: int | None = None) -> int:
    """Cells that hyperplanes in general position make of a convex set that holds all vertices.

    Buck's and Zaslavsky's sum of binomials C(n, i), i <= dim. In the plane 1 + n + (crossings
    inside), where all lines have to cross the set but not one another inside it.
    """
    if crossings is not None:
        assert dim == 2
        return 1 + count + crossings
    return sum(math.comb(count, i) for i in range(dim + 1))


def arrangement_faces(count: int, dim: int, face: int) -> int:
    """Faces of dimension `face` that hyperplanes in general position make of R^dim (Buck)."""
    return math.comb(count, dim - face) * arrangement_cells(count - dim + face, face)
