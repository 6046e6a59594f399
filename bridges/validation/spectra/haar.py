"""Exact psi and nu of matrices A, and their law for W A, W random and orthonormal.

Both follow from the singular values of A alone. Nothing here is shared with `approx`: psi and nu
are written out anew, and W is drawn by numpy.
"""

from __future__ import annotations

import numpy as np

from bridges.validation.spectra.result import Law, Truth
from cpwl.arrays import Floats

_AT_ONCE = 2**22  # entries of the products whose singular values are taken in one call


def psi_nu(values: Floats, tolerance: float) -> tuple[Floats, Floats]:
    """Return psi and nu of singular values (..., k), from the definitions.

    psi = sum of log sigma over sigma > tolerance * largest; nu = exp(-sum a log a) with
    a = sigma / sum sigma + 1e-30 over all of them. Both 0 where all are zero.
    """
    largest = values.max(axis=-1, keepdims=True)
    kept = values > tolerance * largest
    psi = np.log(np.where(kept, values, 1.0)).sum(axis=-1)
    total = values.sum(axis=-1, keepdims=True)
    share = values / np.where(total > 0, total, 1.0) + 1e-30
    nu = np.exp(-(share * np.log(share)).sum(axis=-1))
    return psi, np.where(total[..., 0] > 0, nu, 0.0)


def tolerance(*sizes: int) -> float:
    """Return numpy.linalg.matrix_rank's relative tolerance for a matrix of these sizes."""
    return max(sizes) * float(np.finfo(np.float64).eps)


def truth(jacobians: Floats) -> Truth:
    """Take the singular values of Jacobians (n, D, E)."""
    values = np.linalg.svd(jacobians, compute_uv=False)
    outputs, columns = jacobians.shape[1:]
    zero = tolerance(outputs, columns) * values[:, :1]
    near = (values > zero / 10) & (values < 1e3 * zero)
    clear = np.logical_not(np.any(near, axis=1))
    return Truth(np.where(values > zero, values, 0.0), clear, outputs, columns)


def largest(found: Truth, k: int) -> tuple[Floats, Floats]:
    """Return psi and nu (n,) of the k largest singular values of the exact Jacobians."""
    return psi_nu(found.values[:, :k], 0.0)


def law(
    values: Floats, outputs: int, columns: int, k: int, draws: int, rng: np.random.Generator
) -> Law:
    """Draw psi and nu of W A for Haar W (k, D) and matrices A with given singular values.

    Parameters
    ----------
    values : (n, r) float64 ndarray
        Singular values of A (D, E), r = min(D, E).
    outputs, columns : int
        D and E.
    k : int
        Rows of W, at most r.
    draws : int
    rng : numpy Generator

    Returns
    -------
    Law

    Notes
    -----
    With A = U S V^T, the singular values of W A are those of (W U) S, and W U has the law of the
    first r columns of W whatever U is. Haar rows are the Q of a Gaussian (D, k) = Q R up to signs,
    which singular values do not see. Cost: D k^2 for a draw, k^2 r for a draw and latent.
    """
    n, r = values.shape
    psi, nu = np.empty((draws, n)), np.empty((draws, n))
    zero = tolerance(k, columns)
    step = max(1, _AT_ONCE // (k * r))
    for i in range(draws):
        q = np.linalg.qr(rng.standard_normal((outputs, k))).Q
        top = q[:r].T
        for start in range(0, n, step):
            part = slice(start, start + step)
            projected = np.linalg.svd(top * values[part, None], compute_uv=False)
            psi[i, part], nu[i, part] = psi_nu(projected.astype(np.float64, copy=False), zero)
    return Law(psi, nu)
