"""Extreme rays of polyhedral cones, in whole numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from flint import fmpq_mat, fmpz_mat
from numpy.typing import NDArray

from cpwl.arrays import unpack

Row = tuple[int, ...]

_PAIRS = 1 << 18  # looked at together: 2 MiB for every 64 rows


class Rays(NamedTuple):
    """Extreme rays of a cone, and which rows are zero on each."""

    rays: list[Row]
    tight: NDArray[np.bool_]  # (rays, rows)


def whole(numbers: Iterable[Fraction]) -> Row:
    """Return the numbers times the positive factor that makes them whole and coprime."""
    exact = list(numbers)
    scale = math.lcm(*(x.denominator for x in exact))
    return _coprime([int(x * scale) for x in exact])


def independent(rows: Sequence[Row]) -> list[int]:
    """Return the first rows that are linearly independent and span all rows, by number."""
    if not any(map(any, rows)):
        return []
    echelon, _, rank = fmpz_mat([list(column) for column in zip(*rows, strict=True)]).rref()
    return [next(j for j in range(len(rows)) if echelon[i, j]) for i in range(rank)]


def extreme_rays(rows: Sequence[Row]) -> Rays:
    """Return the extreme rays of the cone of all x with row . x >= 0 for every row.

    Parameters
    ----------
    rows : sequence of (n,) whole numbers
        Distinct and of rank n, so that the cone is pointed. It may be just {0} (no rays), or have
        no interior.

    Notes
    -----
    The double description method (Motzkin et al. 1953) with the combinatorial test of adjacency
    (Fukuda and Prodon 1996), which needs no genericity: two rays span a face of dimension 2 if the
    rows that are zero on both are zero on no third ray. Cost: for each row, the pairs of a ray
    that it cuts off and one that it keeps.
    """
    n = len(rows[0])
    start = independent(rows)
    rays = _dual_basis([rows[i] for i in start])
    words = -(-len(rows) // 64)
    masks = np.zeros((n, words), np.uint64)
    for j, i in enumerate(start):
        masks[np.arange(n) != j] |= _bit(i, words)
    for i in sorted(set(range(len(rows))) - set(start), key=lambda i: rows[i]):
        values = [sum(a * x for a, x in zip(rows[i], ray, strict=True)) for ray in rays]
        signs = np.array([(value > 0) - (value < 0) for value in values])
        kept = np.flatnonzero(signs >= 0)
        new: list[Row] = []
        new_masks: list[NDArray[np.uint64]] = []
        for p, q in _adjacent(masks, np.flatnonzero(signs > 0), np.flatnonzero(signs < 0), n - 2):
            new.append(_coprime(_combined(values[p], rays[q], -values[q], rays[p])))
            new_masks.append(masks[p] & masks[q] | _bit(i, words))
        masks[signs == 0] |= _bit(i, words)
        rays = [rays[k] for k in kept] + new
        masks = np.array([*masks[kept], *new_masks], np.uint64).reshape(-1, words)
        if not rays:
            break
    return Rays(rays, unpack(masks)[:, : len(rows)])


def _adjacent(
    masks: NDArray[np.uint64],
    positive: NDArray[np.intp],
    negative: NDArray[np.intp],
    needed: int,
) -> Iterator[tuple[int, int]]:
    """Yield the pairs of a positive and a negative ray that span a face of dimension 2."""
    step = max(1, _PAIRS // max(1, len(negative)))
    for first in range(0, len(positive), step):
        ps = positive[first : first + step]
        common = masks[ps][:, None] & masks[negative]
        # a face of dimension 2 lies on that many independent rows
        enough = np.bitwise_count(common).sum(axis=2) >= needed
        for p, q in zip(*np.nonzero(enough), strict=True):
            shared = common[p, q]
            if np.count_nonzero(((masks & shared) == shared).all(axis=1)) == 2:
                yield int(ps[p]), int(negative[q])


def _bit(i: int, words: int) -> NDArray[np.uint64]:
    """Return a packed row of which bit i alone is set."""
    row = np.zeros(words, np.uint64)
    row[i // 64] = np.uint64(1) << np.uint64(i % 64)
    return row


def _dual_basis(rows: list[Row]) -> list[Row]:
    """Return rays x_j with rows[i] . x_j = 0 for i != j and > 0 for i = j."""
    columns = fmpq_mat(fmpz_mat([list(row) for row in rows])).inv().transpose().tolist()
    return [whole(Fraction(int(x.p), int(x.q)) for x in column) for column in columns]


def _combined(a: int, x: Sequence[int], b: int, y: Sequence[int]) -> list[int]:
    """Return a x + b y."""
    return [a * s + b * t for s, t in zip(x, y, strict=True)]


def _coprime(row: Sequence[int]) -> Row:
    """Divide a row by the greatest common divisor of its entries."""
    divisor = math.gcd(*row)
    return tuple(x // divisor for x in row) if divisor > 1 else tuple(row)
