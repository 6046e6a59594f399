"""Effective rank of J, and spread of psi_W and nu_W over W, from the rows of one draw of W.

Rows beyond the k of psi_W and nu_W say what the k alone cannot: whether J has more directions than
these, and how psi_W and nu_W change where W turns to others.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from approx.spectra.prediction import ratio
from approx.spectra.result import around, pair, psi_nu, student

_ROWS = 16  # at least
_FEW = 4  # up to so many, psi_W and nu_W are compared between blocks of rows
_WINDOWS = 8
_MOST = 12
_HIGHER = 0.2
_BESIDE = 4  # rows beyond k
_TRUST = 8  # directions' worth of rows that weigh as much as what the values say of the next row
_STRIDES = 1, 3, 5, 7  # of the rows of a block: odd, so that each visits all 16 rows


class Spread(NamedTuple):
    """Variance over W of a descriptor, and the degrees of freedom of its estimate, each (B,)."""

    variance: Tensor
    freedom: Tensor


def rows_for(k: int, outputs: int) -> int:
    """Return how many rows of W are taken for k singular values and their spread."""
    return min(max(k + _BESIDE, _ROWS), outputs)


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


def spreads(
    factor: Tensor, k: int, outputs: int, most: Tensor, tolerance: float
) -> tuple[Spread, Spread]:
    """Return the spreads over W (k, outputs) of psi_W, and of nu_W on the scale of `_bent`.

    factor : (B, n, m), R of J^T W^T = Q R for the m rows at hand; most : (B,), the largest number
    of singular values that J may have after these.
    """
    enough = factor.shape[2] >= _ROWS
    values = torch.linalg.svdvals(_blocks(factor, k)) if enough and k <= _WINDOWS else None  # (B, s, m, k)
    blocks = None
    if values is not None:
        blocks = _between_blocks(values, most, tolerance)
    if k <= _FEW and blocks is not None:
        psi, nu = blocks
    else:
        u, s, _ = torch.linalg.svd(factor[:, :k, :k])
        nu = _of_rotation(factor, u, s, outputs, most)
        psi = _of_inverse(s[:, None] if values is None else values.flatten(1, 2), k, outputs, most, tolerance)
        if blocks is not None:
            psi = psi._replace(variance=torch.maximum(psi.variance,blocks[0].variance))
    # no J spreads psi_W less than one whose singular values are equal: that holds for few rows too
    least = _flat(most.double(), k, outputs)
    known = most <= k
    variance = torch.where(known, least, torch.maximum(psi.variance, least))
    return Spread(variance, torch.where(known, math.inf, psi.freedom)), nu


def interval_of_rank(nu: Tensor, spread: Spread, top: Tensor) -> tuple[Tensor, Tensor]:
    """Return the interval (B, 2) for nu_W of another W, and its standard error, between 1 and top."""
    half = student(spread.freedom) * (2 * spread.variance).sqrt()
    x = _bent(nu, top)
    slope = 2 * ((nu - 1).clamp_min(0) * (top - nu).clamp_min(0)).sqrt()  # d nu / d x
    ends = 1 + (top - 1)[:, None] * torch.sin(around(x, half).clamp(0, math.pi / 2)).square()
    ends = pair(torch.minimum(ends[:, 0], nu), torch.maximum(ends[:, 1], nu))
    return ends, slope * (2 * spread.variance).sqrt()


def _bent(nu: Tensor, top: Tensor) -> Tensor:
    """Return nu_W on a scale that its spread depends on less, near 1 and near the most it can be."""
    return torch.asin(((nu - 1) / (top - 1).clamp_min(1)).clamp(0, 1).sqrt())


def _blocks(factor: Tensor, k: int) -> Tensor:
    """Return blocks of k of 16 rows, (B, strides, 16, n, k)."""
    start, step = torch.arange(_ROWS), torch.arange(k)
    windows = torch.stack([(start[:, None] + s * step) % _ROWS for s in _STRIDES])
    return factor[:, :, windows].permute(0, 2, 3, 1, 4)


def _between_blocks(values: Tensor, most: Tensor, tolerance: float) -> tuple[Spread, Spread]:
    """Compare blocks of rows that have no row in common: W and another W, as they are."""
    *shape, k = values.shape
    psi, nu, _ = (x.view(shape) for x in psi_nu(values.flatten(0, 2), tolerance))
    nu = _bent(nu, most.clamp_max(k)[:, None, None])
    found = []
    for x in psi, nu:
        apart = [(x - x.roll(j, 2)).square().mean(dim=(1, 2)) for j in range(k, _ROWS - k + 1)]
        variance = torch.stack(apart).mean(dim=0) / 2
        found.append(Spread(variance, torch.full_like(variance, (_ROWS - 1) / math.sqrt(k))))
    return found[0], found[1]


def _of_inverse(s: Tensor, k: int, outputs: int, most: Tensor, tolerance: float) -> Spread:
    """Spread of psi_W from the singular values (B, draws, k) of a draw, or several.

    As in `prediction.scaling`, it is a function of v = sum_j (lambda_j q / (1 + lambda_j q))^2 / k,
    k / d for d equal singular values, whose law is known. The equation of the free compression at
    s = 0 and its derivative there give, for A = W M W^T, k tr A^-2 / (tr A^-1)^2 = 1 / (1 - v) - k
    / (D - k).
    """
    # relative to the smallest: a Jacobian's scale must not overflow its square
    kept = s > tolerance * s[..., :1]
    smallest = torch.where(kept, s, math.inf).amin(dim=-1, keepdim=True)
    inverse = torch.where(kept, smallest / torch.where(kept, s, 1), 0).square()
    sharp = ratio(k * inverse.square().sum(dim=-1), inverse.sum(dim=-1).square()).clamp_min(1)
    # of few rows the entries of A spread the values more than they do in the limit
    sharp = 1 + (sharp - 1) * (k**2 / ((k - 1) * (k + 2)))
    through = sharp + (k / (outputs - k) if k < outputs else 0)  # 1 / (1 - v)
    directions = torch.minimum(k / (1 - 1 / through), most.double()[:, None]).clamp_min(k)
    variance = _flat(directions.flatten(), k, outputs).view(directions.shape).mean(dim=1)
    # from the k (k + 1) / 2 entries of A
    return Spread(variance, torch.full_like(variance, k * (k + 1) / 2))


def _flat(directions: Tensor, k: int, outputs: int) -> Tensor:
    """Variance of psi_W over W where J has so many equal singular values, (B,).

    psi_W is then half the log determinant of a product of independent beta variables (Muirhead
    1982, theorem 3.3.2). The same holds for unequal ones where there are at most k: psi_W is then
    psi of J and that determinant.
    """
    i = torch.arange(k, dtype=torch.float64)
    wide, narrow = directions.clamp_min(k)[:, None], directions.clamp_max(k)[:, None]
    variances = torch.polygamma(1, (wide - i).clamp_min(0.5) / 2)
    seen = directions < k
    # fewer than k directions: the k rows of W take the part of these
    fewer = torch.polygamma(1, (k - i) / 2).expand_as(variances)
    variances = torch.where(seen[:, None], fewer, variances) - torch.polygamma(1, (outputs - i) / 2)
    return torch.where(i < narrow, variances, 0).sum(dim=1).clamp_min(0) / 4


def _of_rotation(factor: Tensor, u: Tensor, s: Tensor, outputs: int, most: Tensor) -> Spread:
    """Spread of nu_W from what turning W towards further rows does to nu_W.

    The Laplacian of the Grassmannian has eigenvalues near 2 D n on polynomials of degree n in the
    projector W^T W, so that with V_n the part of the variance that is due to these, the mean of
    |grad nu_W|^2 is 2 D sum n V_n, and that of |hess nu_W|^2 is 4 D^2 sum n (2 n - 1) V_n. Further
    rows sample both; parts beyond the second are taken for the second.
    """
    k = s.shape[1]
    tangent = (outputs - k) / outputs
    rest = factor[:, :, k:]  # (B, n, q)
    q = rest.shape[2]
    if q == 0:
        return Spread(torch.zeros_like(s[:, 0]), torch.full_like(s[:, 0], math.inf))
    turned = u.mT @ rest[:, :k]  # (B, k, q)
    further = turned.square().mean(dim=2)
    # a value below what a turn makes of it is about that: |s| has a corner at 0, nu_W's mean none
    smooth = (s.square() + further / 8).sqrt().clamp_min(1e-100)
    total = s.sum(dim=1, keepdim=True)
    share = ratio(s, total)
    logs = smooth.log()
    mean = (share * logs).sum(dim=1, keepdim=True)
    nu = (-(share * share.clamp_min(1e-300).log()).sum(dim=1, keepdim=True)).exp()
    scale = ratio(nu, total)
    slope = scale * (mean - logs)  # d nu / d smooth
    weight = tangent * (slope * s / smooth).square()
    seen, guessed = weight * further, weight * _along(s)
    second = tangent**2 * _curvature(slope, scale, s, smooth, turned, rest)
    # directions that hold little of the first derivative may hold any of the second, by chance
    second = second.minimum(_MOST * guessed).sum(dim=1)
    seen, guess = seen.sum(dim=1), guessed.sum(dim=1)
    share = ratio((second - seen).clamp_min(0) / 8, seen).clamp_max(_HIGHER)
    alike = ratio(guess.square(), guessed.square().sum(dim=1))  # directions that matter
    # where one direction makes the most of it, few rows see little of that
    weight = 1 / (1 + (_TRUST / (q * alike).clamp_min(1e-300)).square())
    gradient = torch.where(seen > 0, seen.clamp_min(1e-300) ** weight * guess ** (1 - weight), 0)
    freedom = alike / (1 / k + 2 * share)
    variance = gradient * (1 / 2 - share)
    top, nu = most.clamp_max(k), nu[:, 0]
    steep = 4 * (nu - 1) * (top - nu)  # (d nu / d bent)^2
    return Spread(ratio(variance, steep), freedom.clamp_min(4))


def _along(s: Tensor) -> Tensor:
    """Mean square of a further row along each left singular vector, (B, k), from the values alone.

    Ledoit and Peche 2011; smoothed as in Ledoit and Wolf 2020, with Cauchy's kernel. High where the
    values crowd, near the truth for values that stand apart.
    """
    k = s.shape[1]
    a = (s / s[:, :1].clamp_min(1e-300)).square()
    at = torch.complex(a, (k ** (-1 / 3) * a).clamp_min(1e-280))
    transform = (1 / (a[:, None] - at[:, :, None])).mean(dim=2)
    scale = s[:, :1].square() / k
    return torch.where(a > 1e-28, scale / (a * transform.abs().square()), 0)


def _curvature(
    slope: Tensor, scale: Tensor, s: Tensor, smooth: Tensor, turned: Tensor, rest: Tensor
) -> Tensor:
    """Square of the second derivative by turns of two rows, summed over the second of these."""
    a, phi = smooth.square(), slope / (2 * smooth)  # d nu / d a
    change = -(scale + slope) / (4 * smooth**3)  # its own derivative
    gap = a[:, :, None] - a[:, None]
    close = gap.abs() < 1e-6 * torch.maximum(a[:, :, None], a[:, None])
    divided = (phi[:, :, None] - phi[:, None]) / torch.where(close, 1, gap)
    divided = torch.where(close, (change[:, :, None] + change[:, None]) / 2, divided)
    c = s[:, :, None] * turned  # (B, k, q)
    inner = rest.mT @ rest
    total = torch.zeros_like(s)
    pairs = [(i, j) for i in range(c.shape[2]) for j in range(i)][:6]
    for i, j in pairs:
        x, y = c[:, :, i], c[:, :, j]
        hessian = 2 * divided * x[:, None] * y[:, :, None]
        along = 2 * (divided @ (x * y)[:, :, None])[:, :, 0] + 2 * phi * inner[:, i, j, None]
        total += (hessian + torch.diag_embed(along)).square().sum(dim=2)
    return total / max(len(pairs), 1)
