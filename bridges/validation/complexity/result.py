"""Result of the section on local complexity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bridges.validation.findings import Row
from cpwl.arrays import Floats, Ints


@dataclass(frozen=True, eq=False)
class Complexity:
    """Knots and cells in neighbourhoods of Q dimensions, R radii and n latents each.

    Attributes
    ----------
    radius : float
        The radius that agreement is claimed at; one of `radii`.
    radii : (R,) float64 ndarray
    directions : tuple of int
        P, Q of them.
    planted : (n,) bool ndarray
        Latents drawn near a knot, anew at every radius. The others are uniform over the domain,
        and the same at every radius.
    z : (Q, R, n, *latent) float64 ndarray
        The latents; float32 has their values.
    cells, knots, folds : (Q, R, n) int64 ndarray
        Exact; -1 where V_z was not enumerated.
    proven : (Q, R, n) bool ndarray
        Where the theorem's hypotheses hold.
    fold_radius : (Q, m) float64 ndarray
        The smallest radius with a fold, for the uniform latents; inf where none was found. In more
        than two dimensions it is one of `radii`.
    counts : mapping of str to (Q, R, n) int64 ndarray
        Knots counted with "jvp float64", "hull float64", "jvp float32", "hull float32".
    undecided : (Q, R, n) int64 ndarray
        Units that "jvp float32" calls undecided.
    units : int
        Of the network; without any there are no knots.
    left_out : tuple of int
        P for which a latent has too few coordinates.
    rows : tuple of Row
        What `rows_of` makes of the rest.
    """

    radius: float
    radii: Floats
    directions: tuple[int, ...]
    planted: NDArray[np.bool_]
    z: Floats
    cells: Ints
    knots: Ints
    folds: Ints
    proven: NDArray[np.bool_]
    fold_radius: Floats
    counts: Mapping[str, Ints]
    undecided: Ints
    units: int
    left_out: tuple[int, ...] = ()
    rows: tuple[Row, ...] = ()
