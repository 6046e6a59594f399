"""The domain's sides as affine functions, exactly."""

from __future__ import annotations

import numpy as np
from flint import fmpq, fmpz

from cpwl.arrays import EPS, Floats
from cpwl.engine.precise import Affine


class Sides:
    """Functions that vanish on the sides: values at the origin of the slice, and slopes.

    Parameters
    ----------
    corners : list of points
        Anticlockwise, side i from corner i to the next; in one dimension the sides are the two.

    Attributes
    ----------
    precise : Affine of (sides, P + 1)
        In about 106 bits.
    bits : (sides,)
        Bits of the largest slope, of the multiple that has whole coefficients.
    """

    def __init__(self, corners: list[tuple[fmpq, ...]]) -> None:
        rows = []
        for a, b in zip(corners, [*corners[1:], corners[0]], strict=True):
            slope = [fmpq(1)] if len(a) == 1 else [a[1] - b[1], b[0] - a[0]]
            rows.append([-sum((s * x for s, x in zip(slope, a, strict=True)), fmpq(0)), *slope])
        self._rows = rows
        self.precise = Affine(*np.moveaxis(np.array([list(map(_parts, r)) for r in rows]), 2, 0))
        self._whole = [_whole(row) for row in rows]
        sizes = [sum(abs(int(s)) for s in row[1:]) for row in self._whole]
        self.bits = np.array([float(size.bit_length()) for size in sizes])

    def at(self, side: int, point: Floats) -> list[tuple[float, float, float]]:
        """Value at a point and slopes of a side's function, each as hi, lo and error."""
        value, *slope = self._rows[side]
        for s, x in zip(slope, point.tolist(), strict=True):
            value += s * fmpq(*x.as_integer_ratio())
        return [_parts(number) for number in (value, *slope)]

    def remainders(self, p: int) -> Floats:
        """Whole coefficients (sides, P + 1) modulo a prime, between -p / 2 and p / 2."""
        found = np.array([[int(number % p) for number in row] for row in self._whole])
        return np.where(found > p // 2, found - p, found).astype(np.float64)


def _whole(row: list[fmpq]) -> list[fmpz]:
    """Multiply by the common denominator."""
    over = fmpz(1)
    for number in row:
        over = over.lcm(number.q)
    return [number.p * (over // number.q) for number in row]


def _parts(number: fmpq) -> tuple[float, float, float]:
    """Write a number as hi + lo within an error, which is infinite where float64 ends."""
    try:
        hi = int(number.p) / int(number.q)
    except OverflowError:
        return np.inf, 0.0, np.inf
    rest = number - fmpq(*hi.as_integer_ratio())
    lo = int(rest.p) / int(rest.q)
    return hi, lo, abs(lo) * EPS
