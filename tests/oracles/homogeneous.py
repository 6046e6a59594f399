"""Integer arithmetic on homogeneous coordinates, shared by the rational oracles.

A point is a row (x, ..., w) with w > 0 that stands for (x / w, ...); a form is a row (a, ..., c)
that stands for a x + ... + c. The sign of a form at a point is the sign of an integer dot product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

Row = tuple[int, ...]
Point = tuple[Fraction, ...]


def dot(form: Row, point: Row) -> int:
    """Return the form at the point, times the point's last entry."""
    return sum(map(int.__mul__, form, point))


def sign(value: int) -> int:
    """Return -1, 0 or 1."""
    return (value > 0) - (value < 0)


def normal(point: Row) -> Row:
    """Bring a point to lowest terms and a positive last entry."""
    common = math.gcd(*point)
    common = common if point[-1] > 0 else -common
    return tuple(x // common for x in point)


def lowest(form: Row) -> Row:
    """Bring a form to lowest terms; its signs stay."""
    common = math.gcd(*form)
    return tuple(x // common for x in form)


def primitive(form: Row) -> Row:
    """Bring a form to lowest terms and a positive first non-zero entry: its zero set's name."""
    leading = next(x for x in form if x)
    return lowest(form) if leading > 0 else lowest(tuple(-x for x in form))


def integers(values: Sequence[Fraction]) -> tuple[Row, int]:
    """Integers over the least common denominator."""
    common = math.lcm(*(x.denominator for x in values))
    return tuple(int(x * common) for x in values), common


def homogeneous(point: Sequence[int | float | Fraction]) -> Row:
    """Return a point of rationals in homogeneous coordinates."""
    return integers([Fraction(x) for x in (*point, 1)])[0]


def rational(point: Row) -> Point:
    """Return the rational coordinates of a point."""
    return tuple(Fraction(x, point[-1]) for x in point[:-1])


def echelon(rows: Sequence[Row]) -> tuple[list[list[int]], int]:
    """Eliminate without fractions (Bareiss); return the non-zero rows and the swaps' sign."""
    table = [list(row) for row in rows]
    before, turned, done = 1, 1, 0
    for column in range(len(table[0]) if table else 0):
        pivot = next((i for i in range(done, len(table)) if table[i][column]), None)
        if pivot is None:
            continue
        if pivot != done:
            table[done], table[pivot] = table[pivot], table[done]
            turned = -turned
        top = table[done]
        for i in range(done + 1, len(table)):
            here = table[i][column]
            table[i] = [
                (top[column] * x - here * y) // before for x, y in zip(table[i], top, strict=True)
            ]
        before, done = top[column], done + 1
    return table[:done], turned


def rank(rows: Sequence[Row]) -> int:
    """Return the rank of integer rows."""
    return len(echelon(rows)[0])


def determinant(rows: Sequence[Row]) -> int:
    """Return the determinant of a square table of integers."""
    table, turned = echelon(rows)
    return turned * table[-1][-1] if len(table) == len(rows) else 0
