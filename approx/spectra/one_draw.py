"""Effective rank of J and spread of psi_W and nu_W over W, from one draw of W J."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from approx.spectra.prediction import ratio

_GROUPS = 8  # groups of rows that the jackknife leaves out in turn: as many spectra to take


def effective_rank(gram: Tensor, n: int) -> Tensor:
    """Return (tr M)^2 / tr M^2 of M (n, n) from compressions X^T M X (B, m, m), X Haar (n, m).

    tr A^2 of the compression A, centred, is proportional to tr M^2, centred, in expectation; the
    factor is (m - 1)(m + 2) / ((n - 1)(n + 2)) exactly (natural statistics of spectral samples: Di
    Nardo, McCullagh and Senato 2013). 0 for M = 0; NaN where m = 1 cannot tell.
    """
    m = gram.shape[-1]
    trace = gram.diagonal(dim1=1, dim2=2).sum(dim=1) * (n / m)
    if m == 1:
        return torch.full_like(trace, math.nan if n > 1 else 1)
    squares = gram.square().sum(dim=(1, 2)) - m * (trace / n).square()
    centred = squares.clamp_min(0) * ((n - 1) * (n + 2) / ((m - 1) * (m + 2)))
    return ratio(trace.square(), trace.square() / n + centred)


def spread_of_scaling(values: Tensor, rank: Tensor, rows: int) -> Tensor:
    """Return the standard deviation of psi_W over W from the singular values of one draw.

    As in `prediction.scaling` it is the root of (log(1 - k / D) - log(1 - v)) / 2. The equation of
    the free compression at s = 0 and its derivative there give, for A = W M W^T,
    k tr A^-2 / (tr A^-1)^2 = 1 / (1 - v) - k / (D - k).
    """
    kept = torch.arange(values.shape[1]) < rank[:, None]
    inverse = torch.where(kept, values.clamp_min(1e-300).pow(-2), 0)
    # relative to the largest: a Jacobian's scale must not overflow its square
    inverse = inverse / inverse.amax(dim=1, keepdim=True).clamp_min(1e-300)
    sharp = ratio(
        rank.double() * inverse.square().sum(dim=1), inverse.sum(dim=1).square()
    ).clamp_min(1)
    share = rank.double() / rows
    return ((sharp * (1 - share) + share).log() / 2).clamp_min(0).sqrt()


def spread_where_all_is_seen(rank: Tensor, k: int, rows: int) -> Tensor:
    """Return the standard deviation of psi_W over W where W J has the rank of J, (B,).

    psi_W is then psi of J and half the log determinant of Q^T W^T W Q, Q (rows, rank) a frame of
    J's range: whatever J's singular values, a product of independent Beta((k - i) / 2,
    (rows - k) / 2), i < rank (Muirhead 1982, theorem 3.3.2).
    """
    i = torch.arange(k, dtype=torch.float64)
    variances = torch.polygamma(1, (k - i) / 2) - torch.polygamma(1, (rows - i) / 2)
    upto = torch.cat([torch.zeros(1, dtype=torch.float64), variances.cumsum(0)])
    return upto[rank].clamp_min(0).sqrt() / 2


def spread_of_rank(gram: Tensor, nu: Tensor) -> Tensor:
    """Return the standard deviation of nu_W over W from the Gram matrix of one draw.

    Jackknife over groups of rows of W of log(k / nu), which is proportional to k to leading order.
    A jackknife counts the part of the variance that is due to pairs of rows twice; that part is
    (2 log(k / nu) nu / k)^2, from the k (k + 1) / 2 entries of W M W^T.
    """
    k = gram.shape[-1]
    if k < 2:
        return torch.zeros_like(nu)
    groups = min(k, _GROUPS)
    left_out = []
    for i in range(groups):
        kept = torch.arange(k) % groups != i
        values = torch.linalg.eigvalsh(gram[:, kept][:, :, kept]).clamp_min(0).sqrt()
        total = values.sum(dim=1, keepdim=True)
        alpha = values / torch.where(total > 0, total, 1) + 1e-30
        n = int(kept.sum())
        left_out.append((math.log(n) + (alpha * alpha.log()).sum(dim=1)) * (k / n))
    deviations = torch.stack(left_out)
    variance = (groups - 1) * deviations.var(dim=0, correction=0) * nu.square()
    pairs = 2 * torch.where(nu > 0, (k / nu.clamp_min(1e-300)).log(), 0) * nu / k
    # at least the pairs' part: few groups scatter
    return torch.maximum(variance - pairs.square(), pairs.square()).sqrt()
