"""Permutation test, on the energy distance, that two samples come from one distribution."""

from __future__ import annotations

import numpy as np

from bridges.validation.densities.result import TwoSamples
from cpwl.arrays import Floats

# Relabellings made at once, and at least.
_AT_ONCE = 250
# Where so many of them are further apart than the given samples, their share is known well enough.
_ENOUGH = 50


def energy_test(x: Floats, y: Floats, permutations: int, rng: np.random.Generator) -> TwoSamples:
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
    (Besag and Clifford 1991). Small exponents see fine differences: 2,000 points uniform on the toy
    generator's image against uniform latents are 3.8 standard deviations further apart than
    relabelled points for a = 1, 5.7 for 1/2, 6.6 for 1/4 and 7.2 for 1/10.

    Cost: (m + n)^2 products for each permutation, in float32.
    """
    both = np.concatenate([x, y])
    powers = _powers(both)
    # w sums to 0, so that centring changes nothing but the size of what is added up
    powers -= powers.mean(axis=0)
    powers -= powers.mean(axis=1)[:, None]
    weights = np.where(np.arange(len(both)) < len(x), 1 / len(x), -1 / len(y))
    distance = float(-weights @ powers @ weights)
    coarse = powers.astype(np.float32)
    null = np.empty(0)
    while len(null) < permutations and (null >= distance).sum() < _ENOUGH:
        count = min(_AT_ONCE, permutations - len(null))
        relabelled = rng.permuted(np.tile(weights.astype(np.float32), (count, 1)), axis=1)
        more = -np.einsum("pn,pn->p", relabelled @ coarse, relabelled, dtype=np.float64)
        null = np.concatenate([null, more])
    p_value = (1 + int((null >= distance).sum())) / (1 + len(null))
    return TwoSamples(p_value, distance, null)


def _powers(points: Floats) -> Floats:
    """Return the fourth roots of all distances (n, n) between points (n, d)."""
    points = points - points.mean(axis=0)
    square = np.einsum("nd,nd->n", points, points)
    # in place: matrices of this size cost as much to allocate as to fill
    result = points @ points.T
    result *= -2
    result += square
    result += square[:, None]
    np.fill_diagonal(result, 0.0)
    np.maximum(result, 0.0, out=result)
    for _ in range(3):  # of squares
        np.sqrt(result, out=result)
    return result
