"""Integers of many bits as remainders, which float64 matrix products multiply without rounding.

An integer X is held by its remainders r_i = X mod p_i, i < n, of primes p_i: sums and products of
integers are those of their remainders, prime by prime. With |r_i| <= R and K R^2 <= 2^52 a sum of K
products is an integer below 2^53, and so are all partial sums: float64 holds them exactly, in
whatever order they are added up. X is found again by the Chinese remainder theorem,

    X / M = sum_i c_i / p_i - k,   M = p_1 ... p_n,   c_i = r_i (M / p_i)^-1 mod p_i,

where |X| <= M / 4 makes the integer k unambiguous.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import isqrt

import numpy as np
from flint import fmpz
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Fractions of 1 / p_i: so many digits of so many bits. A sum of n <= 256 products of digits and
# remainders is below 2^(22 + 22 + 8).
_DIGITS, _DIGIT_BITS = 6, 22
_MOST_PRIMES = 256
# Remainders are at most p / 2 + 8: a quotient that is rounded in float64 may be one too far.
_LARGEST_PRIME = 2**23 - 64
APPROXIMATE = 2.0**-47
"""Relative error of `Residues.approximate`, beside the absolute one."""


class Residues:
    """Primes, and what turns remainders into integers and back.

    Parameters
    ----------
    terms : int
        Largest number of products in a sum.
    bits : int
        Of the largest integer that is to be found again.

    Raises
    ------
    OverflowError
        More than 256 primes are needed.
    """

    def __init__(self, terms: int, bits: int) -> None:
        largest = min(2 * (isqrt(2**52 // max(terms, 1)) - 8) - 1, _LARGEST_PRIME)
        self.primes: list[int] = []
        product = 1
        for number in range(largest | 1, 2**12, -2):
            if product.bit_length() > bits + 3:
                break
            if fmpz(number).is_prime():
                self.primes.append(number)
                product *= number
        if len(self.primes) > _MOST_PRIMES or product.bit_length() <= bits + 3:
            raise OverflowError(f"{len(self.primes)} primes for {bits} bits")
        self.products = list(itertools.accumulate(self.primes, int.__mul__))
        self._p = np.array(self.primes, np.float64)
        self._inverse: dict[int, Floats] = {}
        self._digits = np.array(
            [
                [
                    (2 ** (_DIGIT_BITS * _DIGITS) // p >> _DIGIT_BITS * (_DIGITS - 1 - d))
                    % 2**_DIGIT_BITS
                    for p in self.primes
                ]
                for d in range(_DIGITS)
            ],
            np.float64,
        )

    def __len__(self) -> int:
        return len(self.primes)

    def reduced(self, values: Floats) -> Floats:
        """Reduce integers (n, ...) up to 2^52 in magnitude, in place: |r_i| <= p_i / 2 + 8."""
        whole = np.empty(values.shape[1:])
        for rows, p in zip(values, self.primes, strict=False):  # one after the other, in the cache
            np.multiply(rows, 1 / p, out=whole)
            np.rint(whole, out=whole)
            whole *= p
            rows -= whole  # both are integers up to 2^53: no rounding
        return values

    def of(self, values: Floats, shift: int) -> Floats:
        """Remainders (n, ...) of the integers values * 2^shift."""
        mantissa, exponent = np.frexp(values)
        whole = np.ldexp(mantissa, 53).astype(np.int64)
        up = np.where(whole == 0, 0, exponent.astype(np.int64) - 53 + shift)
        whole >>= np.minimum(np.maximum(-up, 0), 62)
        up = np.maximum(up, 0)
        out = np.empty((len(self.primes), *values.shape))
        for i, p in enumerate(self.primes):
            powers = np.array([pow(2, k, p) for k in range(int(up.max(initial=0)) + 1)], np.int64)
            out[i] = whole % p * powers[up] % p
        return self.reduced(out)

    def powers(self, up: int) -> Floats:
        """Remainders (n,) of 2^up."""
        return self.reduced(np.array([pow(2, up, p) for p in self.primes], np.float64))

    def needed(self, bits: int) -> int:
        """How many primes determine integers of so many bits."""
        for n, product in enumerate(self.products, 1):
            if product.bit_length() > bits + 3:
                return n
        raise OverflowError(f"{len(self.primes)} primes for {bits} bits")

    def _factors(self, n: int) -> Floats:
        """(M / p_i)^-1 mod p_i."""
        if n not in self._inverse:
            whole = self.products[n - 1]
            found = [pow(whole // p, -1, p) for p in self.primes[:n]]
            self._inverse[n] = self.reduced(np.array(found, np.float64))
        return self._inverse[n]

    def approximate(self, remainders: NDArray[np.floating], shift: int) -> tuple[Floats, Floats]:
        """Give X / 2^shift for integers X (n, ...) in float64, |X| <= M / 4, and its error bound.

        Zero is told exactly: its error is 0. Otherwise the error is at most `APPROXIMATE` times the
        value, and some 2^-100 M.
        """
        n = len(remainders)
        flat = remainders.reshape(n, -1).astype(np.float64)
        zero = ~flat.any(axis=0)
        flat *= self._factors(n)[:, None]
        self.reduced(flat)
        turns = np.rint((1 / self._p[:n]) @ flat)
        digits = self._digits[:, :n] @ flat
        for d in range(_DIGITS - 1, 0, -1):
            carried = np.rint(digits[d] * 2.0**-_DIGIT_BITS)
            digits[d] -= carried * 2.0**_DIGIT_BITS
            digits[d - 1] += carried
        digits[0] -= turns * 2.0**_DIGIT_BITS
        total = np.zeros(flat.shape[1])
        for d in range(_DIGITS):
            total += np.ldexp(digits[d], -_DIGIT_BITS * (d + 1))
        unit = Fraction(self.products[n - 1], 2**shift)
        scale = float(unit)
        total *= scale
        # 1 / p_i is off by less than a unit in its last digit
        lost = float(unit * (n << _DIGIT_BITS)) * 2.0 ** -(_DIGIT_BITS * _DIGITS)
        off = np.where(zero, 0.0, np.abs(total) * APPROXIMATE + lost * 1.001 + 2.0**-1000)
        total[zero] = 0.0
        shape = remainders.shape[1:]
        return total.reshape(shape), off.reshape(shape)

    def integers(self, remainders: Floats) -> list[fmpz]:
        """Integers of remainders (n, m), |X| <= M / 4."""
        n = len(remainders)
        whole = fmpz(self.products[n - 1])
        half = whole // 2
        parts = [whole // p for p in self.primes[:n]]
        factors = self._factors(n)[:, None]
        found = []
        for column in self.reduced(remainders.astype(np.float64) * factors).T.tolist():
            total = sum((part * int(c) for part, c in zip(parts, column, strict=True)), fmpz(0))
            total %= whole
            found.append(total - whole if total > half else total)
        return found


def lowest_shift(values: Floats) -> int:
    """Return the least shift >= 0 that makes all values * 2^shift integers."""
    mantissa, exponent = np.frexp(values[values != 0])
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    low = np.frexp((whole & -whole).astype(np.float64))[1] - 1
    return int(max(0, (53 - exponent - low).max(initial=0)))
