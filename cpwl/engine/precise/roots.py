"""Where affine functions in higher precision vanish together, and the signs of others there.

On a cell the knots through a vertex are affine functions p with p(x*) = 0. At x0 + d, near x*, they
leave G (x* - x0 - d) = -p(x0 + d). With a float64 approximation X of the inverse of G and
alpha = |I - X G| < 1,

    |x* - x0 - d| <= |X| |p(x0 + d)| / (1 - alpha)

in the maximum norm, and no other point has p = 0: d is improved by Newton's steps, and the bound
covers what p is known within.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cpwl.arrays import EPS, UNIT_ROUNDOFF, Floats, Ints
from cpwl.engine.precise.expansion_kernels import UP

# Newton's step gains some 50 bits each time, up to the precision of p.
_STEPS = 3


class Affine(NamedTuple):
    """Affine functions (..., P + 1): values at a point, then derivatives; each with an error."""

    hi: Floats
    lo: Floats
    error: Floats


class Roots(NamedTuple):
    """Common zeros as steps hi + lo (n, P) from a point, known within ``radius`` (maximum norm)."""

    hi: Floats
    lo: Floats
    radius: Floats  # (n,) inf where there may be none, or several


def solve(functions: Affine, start: Floats) -> Roots:
    """Find the common zero of P functions (n, P, P + 1), from a step (n, P) near it."""
    hi, lo = start.copy(), np.zeros_like(start)
    slope, off = functions.hi[..., 1:], functions.error[..., 1:] + np.abs(functions.lo[..., 1:])
    dim = start.shape[1]
    with np.errstate(all="ignore"):  # inf and NaN prove nothing
        inverse = _inverse(slope)
        for _ in range(_STEPS):
            left, _ = evaluate(functions, hi[:, None], lo[:, None])
            hi, change = _two_sum(hi, -(inverse @ left.hi[..., None])[..., 0])
            hi, lo = _two_sum(hi, lo + change)
        left, _ = evaluate(functions, hi[:, None], lo[:, None])
        residual = (np.abs(left.hi) + np.abs(left.lo) + left.error) * UP
        rest = np.eye(dim) - inverse @ slope
        size = np.abs(inverse) @ (np.abs(slope) * (8 * EPS) + off)
        alpha = ((np.abs(rest) + size) * UP).sum(axis=-1).max(axis=-1) + 8 * EPS
        distance = (np.abs(inverse) @ residual[..., None])[..., 0].max(axis=-1) * UP
        radius = np.where(alpha < 0.5, distance / (1 - alpha) * UP, np.inf)
    return Roots(hi, lo, np.where(np.isfinite(radius), radius, np.inf))


def evaluate(functions: Affine, hi: Floats, lo: Floats) -> tuple[Affine, Floats]:
    """Values of functions (..., P + 1) at steps hi + lo (..., P), and slopes' magnitudes (...)."""
    high, low = functions.hi[..., 0], functions.lo[..., 0]
    off, small = functions.error[..., 0], np.abs(functions.lo[..., 0])
    slopes = np.zeros(np.broadcast_shapes(high.shape, hi.shape[:-1]))
    for d in range(hi.shape[-1]):
        g, g_low, g_off = (part[..., 1 + d] for part in functions)
        product, lost = _two_product(g, hi[..., d])
        others = g * lo[..., d], g_low * hi[..., d]
        high, carry = _two_sum(high, product)
        low = low + ((carry + lost) + (others[0] + others[1]))
        small = small + sum(map(np.abs, (carry, lost, *others)))
        reach = np.abs(hi[..., d]) + np.abs(lo[..., d])
        off = off + g_off * reach + np.abs(g_low * lo[..., d])
        slopes = slopes + np.abs(g) + np.abs(g_low) + g_off
    rounded = small * ((8 + 8 * hi.shape[-1]) * UNIT_ROUNDOFF) + 2.0**-1000
    high, low = _two_sum(high, low)
    return Affine(high, low, (off + rounded) * UP), slopes * UP


def minus(functions: Affine, knot: Floats) -> Affine:
    """Subtract numbers (...) from functions (..., P + 1)."""
    hi, lo, error = (part.copy() for part in functions)
    hi[..., 0], lost = _two_sum(hi[..., 0], -knot)
    lo[..., 0] += lost
    error[..., 0] = (error[..., 0] + 2 * UNIT_ROUNDOFF * np.abs(lo[..., 0])) * UP
    return Affine(hi, lo, error)


def values_at(functions: Affine, knot: Floats, roots: Roots, row: Ints) -> tuple[Floats, Floats]:
    """Values (n,) of functions (n, P + 1) minus knots at some roots, and bounds on their error."""
    with np.errstate(all="ignore"):
        value, slopes = evaluate(functions, roots.hi[row], roots.lo[row])
        high, low = _two_sum(value.hi, -knot)
        total = high + (low + value.lo)
        off = value.error + slopes * roots.radius[row]
        off = off + (np.abs(total) + np.abs(low) + np.abs(value.lo)) * (4 * EPS)
    return total, np.where(np.isnan(off), np.inf, off * UP)


def between(roots: Roots, start: Roots, stop: Roots) -> tuple[Floats, Floats, Floats]:
    """Where roots lie between others, as fractions hi + lo (n,) of the way, and their errors."""
    axis = np.argmax(np.abs(stop.hi - start.hi), axis=1)[:, None]
    with np.errstate(all="ignore"):
        part, way = (_difference(x, start, axis) for x in (roots, stop))
        hi = part.hi / way.hi
        product, lost = _two_product(hi, way.hi)
        terms = part.hi - product, -lost, part.lo, -hi * way.lo
        rest = (terms[0] + terms[1]) + (terms[2] + terms[3])
        rounded = sum(map(np.abs, terms)) * (8 * UNIT_ROUNDOFF)
        hi, lo = _two_sum(hi, rest / way.hi)
        off = rounded + part.radius + (np.abs(hi) + np.abs(lo)) * way.radius
        off = off / (np.abs(way.hi) * (1 - 4 * EPS) - way.radius) + 4 * EPS * np.abs(lo)
        off = off * UP + 2.0**-1000
        known = np.isfinite(off) & (np.abs(way.hi) * (1 - 8 * EPS) > way.radius)
    return hi, lo, np.where(known, off, np.inf)


def _difference(a: Roots, b: Roots, axis: Ints) -> Roots:
    """Coordinates of a - b (n,), normalised."""
    (a_hi, a_lo), (b_hi, b_lo) = (
        [np.take_along_axis(part, axis, 1)[:, 0] for part in x[:2]] for x in (a, b)
    )
    hi, lost = _two_sum(a_hi, -b_hi)
    low = a_lo - b_lo
    small = np.abs(low) + np.abs(lost)
    hi, lo = _two_sum(hi, lost + low)
    return Roots(hi, lo, (a.radius + b.radius + 4 * UNIT_ROUNDOFF * small) * UP)


def _inverse(matrices: Floats) -> Floats:
    """Invert (n, P, P) approximately; NaN where that fails."""
    if matrices.shape[-1] == 1:
        return 1 / matrices
    if matrices.shape[-1] == 2:
        (a, b), (c, d) = np.moveaxis(matrices, (-2, -1), (0, 1))
        turned = np.stack([np.stack([d, -b], -1), np.stack([-c, a], -1)], -2)
        return turned / (a * d - b * c)[..., None, None]
    out = np.full_like(matrices, np.nan)
    for k, matrix in enumerate(matrices):
        try:
            out[k] = np.linalg.inv(matrix)
        except np.linalg.LinAlgError:
            continue
    return out


def _two_sum(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Sum, and what it rounds off."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _two_product(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Product, and what it rounds off; tiny products lose something below 2^-1000."""
    p = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    lost = ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low
    return p, lost


def _halves(a: Floats) -> tuple[Floats, Floats]:
    c = 134217729.0 * a
    high = c - (c - a)
    return high, a - high
