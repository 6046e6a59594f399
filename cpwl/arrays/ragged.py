"""Rows of different lengths, end to end in one array."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays.floats import Ints


class Ragged(NamedTuple):
    """Rows of different lengths, end to end: row i is ``items[offsets[i]:offsets[i + 1]]``."""

    offsets: Ints  # (n + 1,)
    items: NDArray[np.int32]


def prefix(count: NDArray) -> Ints:
    """Turn counts (along the first axis) into offsets: exclusive sums, then the total."""
    out = np.zeros((len(count) + 1, *count.shape[1:]), np.int64)
    np.cumsum(count, axis=0, out=out[1:])
    return out


def take_rows(ragged: Ragged, rows: Ints) -> tuple[Ints, NDArray]:
    """Return the sizes of chosen rows, and their items end to end."""
    sizes = np.diff(ragged.offsets)[rows]
    ends = np.cumsum(sizes)
    index = np.arange(int(sizes.sum())) + np.repeat(ragged.offsets[rows] - ends + sizes, sizes)
    return sizes, ragged.items[index]


def nbytes(record: object) -> int:
    """Sum the sizes of the arrays that a record holds."""
    return sum(x.nbytes for x in vars(record).values() if isinstance(x, np.ndarray))


def next_corner(offsets: Ints) -> Ints:
    """Return, for every corner of ragged loops, the position of the one after it."""
    following = np.arange(1, offsets[-1] + 1)
    following[offsets[1:] - 1] = offsets[:-1]
    return following


def fans(offsets: Ints) -> tuple[Ints, Ints]:
    """Cut loops into triangles (T, 3), fanned from their first corners; and the loop of each."""
    sizes = np.diff(offsets)
    loops = np.repeat(np.arange(len(sizes)), sizes - 2)
    # position i = 1..n-2 within the loop, for the triangle (0, i, i + 1)
    before = np.cumsum(sizes - 2) - (sizes - 2)
    middle = np.arange(len(loops)) - before[loops] + 1
    first = offsets[loops]
    return np.stack([first, first + middle, first + middle + 1], axis=1), loops
