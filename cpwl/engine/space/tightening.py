"""Error bounds of a lattice's vertices, tightened from the knots that pass through them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import EPS, Floats, Ints, Ragged
from cpwl.domain import Domain
from cpwl.engine.bounds import Bounds
from cpwl.engine.columns import pieces_of, units_of
from cpwl.engine.rational import Vertices
from cpwl.engine.residuals import Cells, knot_table, reach, residual_errors
from cpwl.engine.space.lattice import Lattice
from cpwl.network import Network


def tighten(
    lattice: Lattice,
    network: Network,
    bounds: Bounds,
    stages: int,
    sides: Floats,
    bit_unit: NDArray[np.int32],
    base: NDArray[np.int32],
    largest: float,
) -> Lattice:
    """Replace error bounds larger than this by what the residuals of the knots show.

    Parameters
    ----------
    stages : int
        Stages that have been worked through.
    sides
        As `side_planes` gives them.
    bit_unit, base
        As in `RefinedLattice`.

    Notes
    -----
    Cost: a look at all incidences, and P + 1 forward passes at the vertices in question.
    """
    poor = np.flatnonzero((lattice.error > largest) & (lattice.error <= reach(bounds)))
    if len(poor) == 0:
        return lattice
    vertex, facet, cell = _around(lattice, poor)
    knot = units_of(lattice.facet_bit[facet], bit_unit)
    row, knot = np.unique(np.stack([np.searchsorted(poor, vertex), knot]), axis=1)
    error, alone = lattice.error.copy(), np.arange(len(poor))
    error[poor] = residual_errors(
        network, bounds, stages,
        Cells(pieces_of(lattice.patterns[cell], bit_unit, base), alone, lattice.points[poor]),
        alone, lattice.points[poor], error[poor],
        knot_table(row, knot, len(poor), network.num_units), sides,
    )  # fmt: skip
    return replace(lattice, error=error)


def _around(lattice: Lattice, vertices: Ints) -> tuple[Ints, Ints, Ints]:
    """List the pairs of one of these vertices and a facet there, and one cell at each vertex."""
    vertex, face = vertices, vertices
    facets = vertex, face
    for faces in lattice.faces:
        facets = vertex, face
        vertex, face = _above(vertex, face, faces)
    first = np.searchsorted(vertex, vertices)
    return *facets, face[first]


def _above(vertex: Ints, face: Ints, faces: Ragged) -> tuple[Ints, Ints]:
    """Go from pairs (vertex, face) to pairs with the faces of one dimension more, sorted."""
    wanted = np.zeros(int(faces.items.max()) + 1, np.bool_)
    wanted[face] = True
    at = np.flatnonzero(wanted[faces.items])
    item = faces.items[at]
    owner = np.searchsorted(faces.offsets, at, side="right") - 1
    order = np.argsort(item, kind="stable")
    item, owner = item[order], owner[order]
    first, last = (np.searchsorted(item, face, side=side) for side in ("left", "right"))
    sizes = last - first
    ends = np.cumsum(sizes)
    place = np.arange(int(sizes.sum())) + np.repeat(first - ends + sizes, sizes)
    count = len(faces.offsets) - 1
    pairs = np.unique(np.repeat(vertex, sizes) * count + owner[place])
    return np.divmod(pairs, count)


def side_planes(domain: Domain, corners: Vertices) -> Floats:
    """Describe the sides of a domain by unit normals, offsets and errors, (sides, P + 2).

    A point x of a side has |normal . x - offset| <= error, because the side's corners have.
    """
    points, dim = corners.points, corners.points.shape[1]
    out = np.empty((len(domain.sides), dim + 2))
    for row, side in zip(out, domain.sides, strict=True):
        mine = points[list(side)]
        normal = np.linalg.svd(mine - mine.mean(axis=0))[2][-1]
        height = mine @ normal
        row[:dim], row[dim] = normal, height.mean()
        rounding = 4 * (dim + 1) * EPS * np.abs(points).max()
        row[dim + 1] = np.abs(height - row[dim]).max() + corners.error[list(side)].max() + rounding
    return out
