"""Effective rank of J, and spread of psi_W and nu_W over W, from the rows of one draw of W.

Rows beyond the k of psi_W and nu_W say what the k alone cannot: whether J has more directions than
these, and how nu_W changes where W turns to others.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from approx.spectra.prediction import ratio
from approx.spectra.result import around, pair, psi_nu, student
from approx.spectra.rounding import Weighed

# rows in all, as many as a prediction's products: blocks of up to 8 are compared as they are
_LEAST = 16
# a value and so many further draws: their range holds the next one in 38 of 40 cases
_FURTHER = 38
_BEYOND = 4  # rows after the k
_STRIDES = 1, 3, 5, 7  # between the rows of a block: odd, so that each visits all 16
_PAIRS = 6  # of further rows, for a second derivative: all of 4, and of more for its cost
# these are by simulation; nu_W is too wide or narrow on some spectra without any of them
_CLEAR = 8  # directions and rows from which on what the rows saw outweighs what values suggest
_SECOND = 12  # a direction's second derivative is at most so many times its first: chance beyond
_HIGHER = 0.2  # of the first derivative's square, at most this is of degree two: 1/4 but for chance


class Spread(NamedTuple):
    """Variance over W of a descriptor, and the degrees of freedom of its estimate, each (B,)."""

    variance: Tensor
    freedom: Tensor


class Another(NamedTuple):
    """What is said of a descriptor for another draw of W."""

    stderr: Tensor  # (B,), of the difference
    interval: Tensor  # (B, 2), of 95 %


def rows_for(k: int, outputs: int) -> int:
    """Return how many rows of W are taken for k singular values and their spread."""
    return min(max(k + _BEYOND, _LEAST), outputs)


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


def of_rows(
    w: Weighed, factor: Tensor, outputs: int, smaller: int, k: int
) -> tuple[Another, Another]:
    """Return what the m < D rows at hand say of psi_W and nu_W of another W (k, outputs).

    Parameters
    ----------
    w : Weighed
        psi_W and nu_W of the first k rows.
    factor : Tensor
        (B, n, m) float64, R of J^T W^T = Q R for all rows of W.
    outputs, smaller, k : int
        D, min(D, d), and rows of W.
    """
    rows, tolerance = factor.shape[2], w.tolerance
    values = torch.linalg.svdvals(factor)
    # more rows than J has directions see all of these
    most = (values > tolerance * values[:, :1]).sum(dim=1)
    most = torch.where(most < rows, most, smaller)
    u, s, vh = torch.linalg.svd(factor[:, :k, :k])
    if 2 * k <= _LEAST:
        psi, nu = _between_blocks(_of_blocks(factor, k), most, tolerance)
    else:
        psi, nu = None, _of_turns(factor, u, s, outputs, most)
    # two blocks tell less of a spread than the inverse does
    if psi is None or 3 * k > _LEAST:
        psi = _of_inverse(s, vh, outputs, most, tolerance)
    # no J spreads psi_W less than one whose singular values are equal
    least = _of_equal_values(most.double(), k, outputs)
    known = most <= rows
    beyond = _of_unequal_values(values, k, torch.where(known, most, 0))
    variance = least + torch.where(known, beyond, (psi.variance - least).clamp_min(0))
    stderr = (2 * variance).sqrt()  # this draw and another differ by the spread of both
    freedom = torch.where(known, math.inf, psi.freedom)
    of_psi = Another(stderr, around(w.psi, student(freedom) * stderr))
    return of_psi, _of_rank(w.nu, nu, most.clamp_max(k))


def of_law(w: Weighed, factor: Tensor, k: int) -> tuple[Another, Another]:
    """Return what all D rows at hand, R (B, n, D), say: W is drawn again.

    The range of 39 draws, this one among them, holds the next in 38 of 40 cases, whatever the law.
    No other draw is needed where k = D: W J has the singular values of J.
    """
    outputs = factor.shape[2]
    draws = _gaussian(_FURTHER if k < outputs else 0, outputs, k)
    further = [torch.linalg.svdvals(factor @ torch.linalg.qr(g).Q) for g in draws]
    found = [(w.psi, w.nu), *(psi_nu(values, w.tolerance) for values in further)]
    psi, nu = (torch.stack(drawn, dim=1) for drawn in zip(*found, strict=True))
    values = torch.linalg.svdvals(factor)
    most = (values > w.tolerance * values[:, :1]).sum(dim=1)
    # of psi_W all that is not drawn is known
    of_psi = _of_equal_values(most.double(), k, outputs) + _of_unequal_values(values, k, most)
    of_nu = (nu - nu[:, :1]).var(dim=1, correction=min(1, len(draws)))
    a, b = (
        Another((2 * variance).sqrt(), pair(x.amin(dim=1), x.amax(dim=1)))
        for x, variance in ((psi, of_psi), (nu, of_nu))
    )
    return a, b


def _of_rank(nu: Tensor, spread: Spread, top: Tensor) -> Another:
    """Return what a spread on the scale of `_bent` is of nu_W, at most `top`."""
    stderr = (2 * spread.variance).sqrt()
    ends = around(_bent(nu, top), student(spread.freedom) * stderr).clamp(0, math.pi / 2)
    low, high = (1 + (top - 1)[:, None] * ends.sin().square()).unbind(dim=1)
    slope = 2 * ((nu - 1) * (top - nu)).clamp_min(0).sqrt()  # d nu / d bent
    return Another(slope * stderr, pair(torch.minimum(low, nu), torch.maximum(high, nu)))


def _bent(nu: Tensor, top: Tensor) -> Tensor:
    """Return nu_W between 1 and `top` on a scale on which its spread depends less on it.

    Near either end nu_W is one minus or plus squares of nearly normal variables.
    """
    return ((nu - 1) / (top - 1).clamp_min(1)).clamp(0, 1).sqrt().asin()


def _of_blocks(factor: Tensor, k: int) -> Tensor:
    """Return singular values (B, strides, 16, k) of blocks of k of the first 16 rows."""
    start, step = torch.arange(_LEAST), torch.arange(k)
    rows = torch.stack([(start[:, None] + stride * step) % _LEAST for stride in _STRIDES])
    return torch.linalg.svdvals(factor[:, :, rows].permute(0, 2, 3, 1, 4))


def _between_blocks(values: Tensor, most: Tensor, tolerance: float) -> tuple[Spread, Spread]:
    """Compare blocks that have no row in common: a draw of W and another, as they are."""
    *shape, k = values.shape
    psi, nu = (x.view(shape) for x in psi_nu(values.flatten(0, 2), tolerance))
    found = []
    for x in psi, _bent(nu, most.clamp_max(k)[:, None, None]):
        apart = [(x - x.roll(j, 2)).square().mean(dim=(1, 2)) for j in range(k, _LEAST - k + 1)]
        variance = torch.stack(apart).mean(dim=0) / 2
        # that of 16 rows for k = 1; 16 rows hold the fewer blocks the larger these are
        found.append(Spread(variance, torch.full_like(variance, (_LEAST - 1) / math.sqrt(k))))
    return found[0], found[1]


def _of_inverse(s: Tensor, vh: Tensor, outputs: int, most: Tensor, tolerance: float) -> Spread:
    """Spread of psi_W from A^-1, A = W M W^T, and its freedom from what each row of W changes.

    The jackknife tells the variance of the logarithm of the estimate. Without row i, A^-1 is
    B = A^-1 - b b^T / b_i, b its column i.
    """
    k = s.shape[1]
    kept = s > tolerance * s[:, :1]
    # relative to the smallest: a Jacobian's scale must not overflow its square
    smallest = torch.where(kept, s, math.inf).amin(dim=1, keepdim=True)
    inverse = torch.where(kept, smallest / torch.where(kept, s, 1), 0).square()
    first, second = inverse.sum(dim=1), inverse.square().sum(dim=1)
    variance = _as_equal_values(first, second, k, outputs, most)
    # of the powers 1 to 3 of A^-1, the entries (i, i)
    one, two, three = (vh.square().mT @ inverse.pow(n)[:, :, None] for n in (1, 2, 3))
    less = ratio(two, one)[:, :, 0]
    without = second[:, None] - 2 * ratio(three, one)[:, :, 0] + less.square()
    each = first[:, None] - less, without, k - 1, outputs, most[:, None].expand(-1, k)
    logs = _as_equal_values(*each).clamp_min(1e-300).log()
    spread = logs.var(dim=1, correction=0) * (k - 1)
    return Spread(variance, 2 / spread.clamp_min(1e-300))


def _as_equal_values(first: Tensor, second: Tensor, k: int, outputs: int, most: Tensor) -> Tensor:
    """Variance of psi_W by tr A^-1 and tr A^-2, A = W M W^T (k, k).

    As in `prediction.scaling`, it depends on v = sum_j (lambda_j q / (1 + lambda_j q))^2 / k alone,
    which is k / n for n equal singular values: psi_W of J is spread as if it had k / v of them. The
    equation of the free compression at s = 0 and its derivative there give
    k tr A^-2 / (tr A^-1)^2 = 1 / (1 - v) - k / (D - k).
    """
    sharp = ratio(k * second, first.square()).clamp(1, k)
    # few rows spread the values of A more than many: of the variance of its entries, to first order
    sharp = 1 + (sharp - 1) * (k**2 / ((k - 1) * (k + 2)))
    through = sharp + k / (outputs - k)
    directions = torch.minimum(k / (1 - 1 / through), most.double()).clamp_min(k)
    return _of_equal_values(directions.flatten(), k, outputs).view(directions.shape)


def _of_equal_values(n: Tensor, k: int, outputs: int) -> Tensor:
    """Variance over W of psi_W of J with n equal singular values, n (B,), or with any n <= k.

    Half the log determinant of a product of independent beta variables, of (m - i) / 2 and
    (D - m) / 2 degrees for i < min(n, k), m the larger of n and k (Muirhead 1982, theorem 3.3.2).
    For n <= k W sees all of J, and psi_W is psi of J and that determinant.
    """
    i = torch.arange(k, dtype=torch.float64)
    larger, smaller = n.clamp_min(k)[:, None], n.clamp_max(k)[:, None]
    variances = torch.polygamma(1, (larger - i) / 2) - torch.polygamma(1, (outputs - i) / 2)
    return torch.where(i < smaller, variances, 0).sum(dim=1).clamp_min(0) / 4


def _of_unequal_values(values: Tensor, k: int, n: Tensor) -> Tensor:
    """Variance (B,) of psi_W of J with n > k singular values (B, >= n) beyond that of equal ones.

    W J = L O S V^T with L lower triangular and O (k, n) Haar, independent: L has the law of equal
    values, and log det O S^2 O^T is drawn. Values of more rows of W J than n stand for S; that they
    are a little further apart makes the variance up to a fifth too large where S is flat.
    """
    beyond = torch.zeros_like(values[:, 0])
    some = n > k
    if not some.any():
        return beyond
    kept = torch.arange(values.shape[1]) < n[some, None]
    s = values[some] / values[some, :1]
    logs = []
    for g in _gaussian(_FURTHER, values.shape[1], k):
        r = [torch.linalg.qr(x[:, :, None] * g, mode="r").R for x in (kept * s, kept.double())]
        of_s, of_ones = (x.diagonal(dim1=1, dim2=2).abs().log().sum(dim=1) for x in r)
        logs.append(of_s - of_ones)
    return beyond.masked_scatter(some, torch.stack(logs).var(dim=0))


def _gaussian(draws: int, n: int, k: int) -> Tensor:
    """Return (draws, n, k) normal entries, the same each time: W is random, and these turn it."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(draws, n, k, generator=generator, dtype=torch.float64)


def _of_turns(factor: Tensor, u: Tensor, s: Tensor, outputs: int, most: Tensor) -> Spread:
    """Spread of nu_W, `_bent`, from what turning W towards further rows does to it.

    Polynomials of degree n in the projector W^T W are eigenfunctions of the Laplacian of the
    Grassmannian, with eigenvalues near 2 D n. So with V_n the variance that is due to these,

        mean |grad nu_W|^2 = 2 D sum_n n V_n, mean |hess nu_W|^2 = 4 D^2 sum_n n (2 n - 1) V_n,

    and both are sampled by rows that W does not have. Degrees above two are taken for two. Where
    one direction makes the most of the gradient, few rows tell little of it, and the singular
    values, which then stand apart, tell more (`_along`).
    """
    k, tangent = s.shape[1], (outputs - s.shape[1]) / outputs
    rest = factor[:, :, k:]  # (B, n, q)
    q = rest.shape[2]
    turned = u.mT @ rest[:, :k]  # (B, k, q)
    further = turned.square().mean(dim=2)
    # |s| has a corner at 0, its mean over turns has none
    smooth = (s.square() + further / 8).sqrt().clamp_min(1e-100)
    total = s.sum(dim=1, keepdim=True)
    alpha = ratio(s, total)
    mean = (alpha * smooth.log()).sum(dim=1, keepdim=True)
    nu = (-(alpha * alpha.clamp_min(1e-300).log()).sum(dim=1, keepdim=True)).exp()
    scale = ratio(nu, total)
    slope = scale * (mean - smooth.log())  # d nu / d s
    weight = tangent * (slope * s / smooth).square()
    seen, suggested = weight * further, weight * _along(s)
    second = tangent**2 * _second_derivative(slope, scale, s, smooth, turned, rest)
    second = second.minimum(_SECOND * suggested).sum(dim=1)
    alike = ratio(suggested.sum(dim=1).square(), suggested.square().sum(dim=1))
    seen, suggested = seen.sum(dim=1), suggested.sum(dim=1)
    higher = ratio((second - seen).clamp_min(0) / 8, seen).clamp_max(_HIGHER)
    clear = 1 / (1 + (_CLEAR / (q * alike).clamp_min(1e-100)).square())
    some = seen > 0
    gradient = torch.where(some, seen, 1) ** clear * torch.where(some, suggested, 0) ** (1 - clear)
    variance = gradient * (1 / 2 - higher)
    # each direction is known from k rows; of degree two the gradient itself is random
    freedom = alike / (1 / k + 2 * higher)
    top, nu = most.clamp_max(k), nu[:, 0]
    squared_slope = 4 * (nu - 1) * (top - nu)  # of `_bent`
    return Spread(ratio(variance, squared_slope), freedom)


def _along(s: Tensor) -> Tensor:
    """Mean square of a further row along each left singular vector, (B, k), from values s alone.

    Ledoit and Peche 2011; smoothed as in Ledoit and Wolf 2020, with Cauchy's kernel. High where the
    values crowd, near the truth for values that stand apart.
    """
    k = s.shape[1]
    a = (s / s[:, :1].clamp_min(1e-300)).square()
    at = torch.complex(a, (k ** (-1 / 3) * a).clamp_min(1e-280))
    transform = (1 / (a[:, None] - at[:, :, None])).mean(dim=2)
    return torch.where(a > 1e-28, s[:, :1].square() / k / (a * transform.abs().square()), 0)


def _second_derivative(
    slope: Tensor, scale: Tensor, s: Tensor, smooth: Tensor, turned: Tensor, rest: Tensor
) -> Tensor:
    """Mean square of nu_W's second derivative, (B, k): two turns, summed over where the one is.

    Of A = W M W^T with eigenvalues a and eigenvectors u, by Daleckii and Krein: the first divided
    differences of d nu / d a take the place of its derivative.
    """
    a, by_a = smooth.square(), slope / (2 * smooth)
    own = -(scale + slope) / (4 * smooth.pow(3))  # derivative of by_a by the same a
    gap = a[:, :, None] - a[:, None]
    close = gap.abs() < 1e-6 * torch.maximum(a[:, :, None], a[:, None])
    divided = (by_a[:, :, None] - by_a[:, None]) / torch.where(close, 1, gap)
    divided = torch.where(close, (own[:, :, None] + own[:, None]) / 2, divided)
    c = s[:, :, None] * turned  # u^T W M w of further rows w
    between = rest.mT @ rest
    q = c.shape[2]
    pairs = [(i, j) for i in range(q) for j in range(i)][:_PAIRS]
    total = torch.zeros_like(s)
    for i, j in pairs:
        x, y = c[:, :, i], c[:, :, j]
        same = (divided @ (x * y)[:, :, None])[:, :, 0] + by_a * between[:, i, j, None]
        total += 4 * (divided * x[:, None] * y[:, :, None] + same.diag_embed()).square().sum(dim=2)
    return total / max(len(pairs), 1)
