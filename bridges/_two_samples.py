"""Whether two samples come from one distribution: a permutation test on the energy distance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Exponent of the distances. Smaller ones see finer differences: 2,000 points uniform on the toy
# generator's image against uniform latents are 3.8 standard deviations further apart than
# relabelled points with exponent 1, 5.7 with 1/2, 6.6 with 1/4, 7.2 with 1/10.
_EXPONENT = 0.25
# Relabellings made at once, and at least.
_AT_ONCE = 250
# Where so many of them are further apart than the given samples, their share is known well enough.
_ENOUGH = 50


class TwoSamples(NamedTuple):
    """A test of two samples.

    Attributes
    ----------
    p_value : float
        Share of relabelled samples, the given one included, that are at least as far apart. At
        most q with probability q if the two distributions are one, whatever they are.
    distance : float
        The energy distance of the two samples.
    null : (n,) float64 ndarray
        That of the relabelled ones, as many as were needed.
    """

    p_value: float
    distance: float
    null: Array


def energy_test(x: Array, y: Array, permutations: int, rng: np.random.Generator) -> TwoSamples:
    """Test whether samples x (m, d) and y (n, d) come from the same distribution.

    Parameters
    ----------
    x, y : ndarray
    permutations : int
        At most so many relabellings; fewer where 50 of them are further apart than x and y are.
    rng : numpy.random.Generator

    Notes
    -----
    The energy distance 2 E|X - Y|^a - E|X - X'|^a - E|Y - Y'|^a is 0 for equal distributions alone,
    for 0 < a < 2 (Szekely and Rizzo 2013); a is 1/4. It is -w^T M w for the powers M of distances
    and weights w of 1/m and -1/n. The permutations make the test exact, also where they stop early
    (Besag and Clifford 1991).

    Cost: (m + n)^2 products for each permutation, in float32.
    """
    both = np.concatenate([x, y])
    distances = _distances(both) ** _EXPONENT
    # w sums to 0, so that centring changes nothing but the size of what is added up
    distances -= distances.mean(axis=0)
    distances -= distances.mean(axis=1)[:, None]
    weights = np.where(np.arange(len(both)) < len(x), 1 / len(x), -1 / len(y))
    distance = float(-weights @ distances @ weights)
    coarse = distances.astype(np.float32)
    null = np.empty(0)
    while len(null) < permutations and (null >= distance).sum() < _ENOUGH:
        count = min(_AT_ONCE, permutations - len(null))
        relabelled = rng.permuted(np.tile(weights.astype(np.float32), (count, 1)), axis=1)
        more = -np.einsum("pn,pn->p", relabelled @ coarse, relabelled, dtype=np.float64)
        null = np.concatenate([null, more])
    p_value = (1 + int((null >= distance).sum())) / (1 + len(null))
    return TwoSamples(p_value, distance, null)


def _distances(points: Array) -> Array:
    """Return all distances (n, n) between points (n, d), from one matrix product."""
    points = points - points.mean(axis=0)
    square = np.einsum("nd,nd->n", points, points)
    squared = square[:, None] + square - 2 * (points @ points.T)
    np.fill_diagonal(squared, 0.0)
    return np.sqrt(np.maximum(squared, 0.0))
