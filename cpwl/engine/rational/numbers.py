"""Rational vectors: integers over one denominator, and float64 numbers as integers.

Numbers of one vector share a denominator q 2^shift: q comes from the point at which a network is
evaluated, 2^shift from the float64 coefficients, which are integers times powers of two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from flint import fmpq, fmpz
from numpy.typing import ArrayLike

Number = float | fmpq  # a float64 number, or a breakpoint of a wave that is none


class Vector(NamedTuple):
    """Entries ``numbers[i] / (q 2^shift)`` of a flat tensor."""

    numbers: list[fmpz]
    q: fmpz
    shift: int

    def minus(self, i: int, value: Number) -> fmpq:
        """Entry minus a number."""
        return fmpq(self.numbers[i], self.q << self.shift) - exact(value)

    def compare(self, i: int, value: Number) -> int:
        """Sign of the entry minus a number."""
        return compare(self.numbers[i], self.q, self.shift, value)

    def lifted(self, shift: int) -> list[fmpz]:
        """Numbers over q 2^shift with a larger shift."""
        more = shift - self.shift
        return [n << more for n in self.numbers] if more else self.numbers

    def plus(self, constants: Constants) -> Vector:
        """Add float64 numbers."""
        shift = max(self.shift, constants.shift)
        one = self.q << (shift - constants.shift)
        pairs = zip(self.lifted(shift), constants.numbers, strict=True)
        return Vector([n + c * one for n, c in pairs], self.q, shift)


class Constants(NamedTuple):
    """float64 numbers ``numbers[i] / 2^shift``."""

    numbers: list[fmpz]
    shift: int

    def over(self, q: fmpz) -> Vector:
        """Bring the numbers over another denominator."""
        return Vector([n * q for n in self.numbers], q, self.shift)


def exact(value: Number) -> fmpq:
    """Return the rational number that a float64 is."""
    if isinstance(value, fmpq):
        return value
    return fmpq(*float(value).as_integer_ratio())


def integers(values: ArrayLike) -> Constants:
    """Write float64 numbers as integers over the smallest power of two."""
    mantissa, exponent = np.frexp(np.asarray(values, np.float64).reshape(-1))
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    used = whole != 0
    zeros = np.frexp((whole & -whole).astype(np.float64))[1] - 1  # that a number ends in
    whole >>= np.where(used, zeros, 0)
    power = (exponent - 53 + zeros).astype(np.int64)
    lowest = min(int(power[used].min()), 0) if used.any() else 0
    lift = np.where(used, power - lowest, 0)
    both = zip(whole.tolist(), lift.tolist(), strict=True)
    return Constants([fmpz(w << up) for w, up in both], -lowest)


def aligned(vectors: list[Vector]) -> list[Vector]:
    """Bring vectors to one denominator."""
    most = max(x.shift for x in vectors)
    return [Vector(x.lifted(most), x.q, most) for x in vectors]


def compare(number: fmpz, q: fmpz, shift: int, value: Number) -> int:
    """Sign of number / (q 2^shift) - value."""
    if isinstance(value, fmpq):
        difference = number * value.q - ((value.p * q) << shift)
    elif value == 0.0:
        difference = number
    elif np.isinf(value):
        return -1 if value > 0 else 1
    else:
        p, d = value.as_integer_ratio()
        difference = number * d - ((p * q) << shift)
    return int(difference > 0) - int(difference < 0)
