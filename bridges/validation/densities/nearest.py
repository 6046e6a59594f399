"""Entropy of points on a P-dimensional surface, from distances to their nearest neighbours."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import KDTree
from scipy.special import digamma

from bridges.validation.densities.result import Nearest
from cpwl.arrays import Floats
from cpwl.density import log_or_minus_inf

# A tree over more coordinates than this looks at most of the points.
_COORDINATES = 16
_NUMBERS = 2**22
# Estimates are made from all points, from fourths of them, from sixteenths, ...
_LEVELS = 4


def neighbour_entropy(points: Floats, dim: int, neighbours: int = 3) -> Nearest:
    """Estimate the differential entropy of a distribution on a surface.

    Parameters
    ----------
    points : (n, D) float64 ndarray
        Independent samples.
    dim : int
        P, the dimension of the surface, and of the volume that the density refers to.
    neighbours : int
        k. Bias grows like (k / n)^(1/P), the variance falls with k.

    Notes
    -----
    h = digamma(n) - digamma(k) + log omega_P + P mean log rho, rho the distance to the k-th
    neighbour and omega_P the volume of the unit ball (Kozachenko and Leonenko 1987; Kraskov,
    Stoegbauer and Grassberger 2004, eq. 20). Where the density is constant on flat pieces the
    estimate is biased only within a ball's radius of a piece's border, a share of the points that
    goes like n^(-1/P). Hence h(n / 4) - h(n) = (4^(1/P) - 1) bias(n), and so on. Where a surface
    is folded so finely that neighbours across a fold are nearer than those along the surface the
    bias falls more slowly: two to three times what the last change alone says was seen.

    Cost: `_LEVELS` searches for the neighbours of all points, O(n log n) each.
    """
    most = min(_LEVELS, 1 + int(math.log(max(1, len(points) // (20 * neighbours)), 4)))
    sizes = len(points) // 4 ** np.arange(most)
    single = [
        [_entropy(points[i :: 4**level][:size], dim, neighbours) for i in range(4**level)]
        for level, size in enumerate(sizes)
    ]
    entropy = np.array([np.mean(row) for row in single], np.float64)
    if most == 1:
        return Nearest(sizes, entropy, math.inf, math.inf)
    error = float(np.std(single[-1], ddof=1)) / math.sqrt(len(single[-1]))
    growth = 4.0 ** (np.arange(min(most, 3)) / dim)  # of the bias, next to that of all points
    changes = np.abs(np.diff(entropy[: len(growth)])) + 2 * error
    return Nearest(sizes, entropy, error, float((changes / np.diff(growth)).max()))


def ball_volume(dim: int) -> float:
    """Return the volume of the unit ball of R^P."""
    return math.pi ** (dim / 2) / math.gamma(dim / 2 + 1)


def kth_distances(points: Floats, k: int) -> Floats:
    """Return the Euclidean distance (n,) of each point (n, D) to its k-th nearest neighbour.

    With many coordinates the search runs in an orthogonal projection, which makes no distance
    longer: once the k-th smallest true distance among the candidates is below the projected
    distance of the last of them, no other point can be nearer. Where it is not, there are more
    candidates.
    """
    if points.shape[1] <= _COORDINATES:
        return KDTree(points).query(points, k + 1)[0][:, k]
    some = points[:: max(1, len(points) // 64)]
    _, _, axes = np.linalg.svd(some - some.mean(axis=0), full_matrices=False)
    low = (points - some.mean(axis=0)) @ axes[:_COORDINATES].T
    tree = KDTree(low)
    result = np.empty(len(points))
    rest, count = np.arange(len(points)), 4 * (k + 1)
    while len(rest):
        count = min(count, len(points))
        rows = max(1, _NUMBERS // (count * points.shape[1]))
        proven = np.empty(len(rest), bool)
        for start in range(0, len(rest), rows):
            mine = rest[start : start + rows]
            projected, candidates = tree.query(low[mine], count)
            away = points[candidates] - points[mine, None]
            true = np.sqrt(np.einsum("nkd,nkd->nk", away, away))
            result[mine] = np.partition(true, k, axis=1)[:, k]
            # rounding of the projection
            proven[start : start + rows] = result[mine] < projected[:, -1] * (1 - 1e-9)
        if count == len(points):
            break
        rest, count = rest[~proven], 4 * count
    return result


def _entropy(points: Floats, dim: int, k: int) -> float:
    """Return the estimate from one sample."""
    mean_log = float(log_or_minus_inf(kth_distances(points, k)).mean())
    return float(digamma(len(points)) - digamma(k)) + math.log(ball_volume(dim)) + dim * mean_log
