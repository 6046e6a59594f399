"""The place of a proof: where its domain lies among the inputs, compared exactly and in words."""

from __future__ import annotations

from fractions import Fraction
from math import inf

import numpy as np
from numpy.typing import NDArray

from cpwl.proof.cells import ExactDomain, integers

_SHOWN = 6  # entries of a vector, corners of a polygon


def independent(basis: NDArray[np.float64]) -> bool:
    """Whether one or two axes (P, E) span P dimensions, in exact arithmetic."""
    rows, _ = integers(basis)
    dots = [[sum(a * b for a, b in zip(p, q, strict=True)) for q in rows] for p in rows]
    if len(rows) == 1:
        return dots[0][0] > 0
    return dots[0][0] * dots[1][1] > dots[0][1] ** 2


def embedded(domain: ExactDomain) -> set[tuple[Fraction, ...]]:
    """Return the corners as inputs; they say which set the domain is, whatever its coordinates."""
    origin = [Fraction(x) for x in domain.origin.tolist()]
    basis = [[Fraction(x) for x in row] for row in domain.basis.tolist()]
    found = set()
    for corner in domain.corners:
        point = origin
        for s, row in zip(corner, basis, strict=True):
            point = [x + s * b for x, b in zip(point, row, strict=True)]
        found.add(tuple(point))
    return found


def same(a: ExactDomain, b: ExactDomain) -> bool:
    """Whether two domains are the same set of inputs."""
    if len(a.origin) != len(b.origin) or len(a.corners) != len(b.corners):
        return False
    slices = np.array_equal(a.origin, b.origin) and np.array_equal(a.basis, b.basis)
    return set(a.corners) == set(b.corners) if slices else embedded(a) == embedded(b)


def in_words(domain: ExactDomain) -> str:
    """Describe a domain and its slice, rounded to six digits."""
    axes = [sorted({corner[k] for corner in domain.corners}) for k in range(len(domain.basis))]
    if all(len(axis) == 2 for axis in axes) and len(domain.corners) == 2 ** len(axes):
        shape = " x ".join(f"[{_number(low)}, {_number(high)}]" for low, high in axes)
    else:
        listed = [_vector(corner) for corner in domain.corners[:_SHOWN]]
        more = len(domain.corners) - _SHOWN
        shape = f"the polygon {', '.join(listed)}{f' and {more} corners more' * (more > 0)}"
    size = len(domain.origin)
    whole = np.array_equal(domain.basis, np.eye(size)) if len(domain.basis) == size else False
    if whole and not domain.origin.any():
        return shape
    basis = ", ".join(_vector(row) for row in domain.basis.tolist())
    return f"{shape} of the slice through {_vector(domain.origin.tolist())} along {basis}"


def nearest(x: Fraction) -> float:
    """Round a fraction; one beyond float64 is infinite."""
    try:
        return float(x)
    except OverflowError:
        return inf if x > 0 else -inf


def shown(x: Fraction, below: int = 2**128) -> str:
    """Write a fraction, or what it is about where it has larger numbers."""
    if max(abs(x.numerator), x.denominator) < below:
        return str(x)
    return f"about {nearest(x):.6g}"


def _number(x: float | Fraction) -> str:
    return f"{nearest(x) if isinstance(x, Fraction) else x:.6g}"


def _vector(values: tuple[Fraction, ...] | list[float]) -> str:
    rest = ", ..." if len(values) > _SHOWN else ""
    return f"({', '.join(_number(x) for x in values[:_SHOWN])}{rest})"
