"""Weights of a pool: what they are worth, and systematic resampling from them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


def scaled(log_weights: Floats) -> Floats:
    """Return weights (N,) that sum to 1, from their logarithms up to a constant."""
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def effective_size(weights: Floats) -> float:
    """Return Kish's effective sample size (sum w)^2 / sum w^2."""
    return float(weights.sum() ** 2 / np.square(weights).sum())


def tail(weights: Floats) -> float:
    """Return the shape of a generalised Pareto distribution of the largest weights.

    Above 0 their r-th moment is finite for r < 1 / shape; -inf where the largest are equal.
    """
    count = len(weights)
    # as many as Vehtari et al. take
    taken = int(min(0.2 * count, 3 * np.sqrt(count)))
    rising = np.sort(weights)[-taken - 1 :]
    above = rising[1:] - rising[0]
    if not above[-1] > 1e-9 * rising[-1]:  # rounding
        return float("-inf")
    return float(stats.genpareto.fit(above / above.mean(), 0.1, floc=0)[0])


def systematic(weights: Floats, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return n indices by systematic resampling, in random order.

    Index i comes floor(n w_i) or ceil(n w_i) times, n w_i on average (Carpenter, Clifford and
    Fearnhead 1999).
    """
    cumulated = np.cumsum(weights)
    at = (rng.random() + np.arange(n)) / n * cumulated[-1]
    # side="right" never lands on a weight of zero; rounding may land behind the last
    found = np.searchsorted(cumulated, at, side="right")
    last = np.searchsorted(cumulated, cumulated[-1])
    return rng.permutation(np.minimum(found, last)).astype(np.int64)


def largest_share(log_weights: Floats, least: float) -> float:
    """Return the largest t in [0, 1] whose weights w^t have an effective size of `least`.

    It falls with t: its logarithm is 2 K(t) - K(2 t) up to a constant, K convex.
    """
    low, high = 0.0, 1.0
    for _ in range(40):
        t = (low + high) / 2
        enough = effective_size(scaled(t * log_weights)) >= least
        low, high = (t, high) if enough else (low, t)
    return low
