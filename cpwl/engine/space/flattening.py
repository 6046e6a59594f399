"""Vertices that are computed exactly because a facet through them is not flat."""

from __future__ import annotations

import numpy as np

from cpwl.arrays import EPS, Floats, magnitude, take_rows
from cpwl.engine.rational import Arbiter
from cpwl.engine.space.lattice import Corners, Lattice
from cpwl.geometry import flatness_kernels as kernels

# In units of eps times the largest coordinate, up to a factor of 2. LOOK_ABOVE: a vertex whose
# error is estimated to be larger may be computed exactly. BENT_ABOVE: it is, if a facet through it
# is bent by more. `check` allows facets 64.
_LOOK_ABOVE = 128
_BENT_ABOVE = 16


def straightened(lattice: Lattice, found: Corners, arbiter: Arbiter, *, merged: bool) -> Floats:
    """Return the vertices, computed exactly where a facet is bent by more than their rounding.

    The engine places vertices as precisely as it needs them, and estimates their errors. The
    estimates must not be too low, and most are a hundred times too high: computing all vertices
    with a large estimate exactly would take most of the time of wide networks. A facet of more than
    P corners shows the errors themselves. They reach a thousand roundings where float64 adds up
    numbers far larger than their sum; elsewhere nothing is bent and nothing computed.

    Cells that were ``merged`` show errors as well: they may have several facets in one plane, and
    corners in that plane that lie on another of these facets.
    """
    points, exponent = lattice.points, magnitude(lattice.points)
    doubtful = np.ldexp(lattice.likely, -exponent) > _LOOK_ABOVE * EPS
    if not arbiter.exact or not doubtful.any():
        return points
    cells, facets, sides = found.cells, found.facets, found.sides
    points, dim, look = points.copy(), points.shape[1], doubtful
    while look.any():
        near = np.flatnonzero(np.logical_or.reduceat(look[facets.items], facets.offsets[:-1]))
        # at a size of which squares can be represented
        scaled, off = np.ldexp(points, -exponent), _BENT_ABOVE * EPS
        bent, look = np.empty(len(near), np.bool_), np.zeros(len(points), np.bool_)
        if merged:
            dented, outward = np.empty((len(near), 2), np.bool_), np.empty((len(near), dim))
            kernels.look_along_facets(
                scaled, near, *facets, sides, *cells, off, outward, bent, dented
            )
            look[take_rows(cells, sides[near][dented].astype(np.int64))[1]] = True
            bent |= dented.any(axis=1)
        else:
            kernels.bent_facets(scaled, near, *facets, off, bent)
        look[take_rows(facets, near[bent])[1]] = True
        look &= doubtful
        points[look] = arbiter.points(lattice.names[look])
        doubtful &= ~look
    return points
