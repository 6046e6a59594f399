"""Small array helpers that the engine's modules share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Ragged(NamedTuple):
    """Rows of different lengths, end to end: row i is ``items[offsets[i]:offsets[i + 1]]``."""

    offsets: NDArray[np.int64]  # (n + 1,)
    items: NDArray[np.int32]


def prefix(count: NDArray) -> NDArray[np.int64]:
    """Turn counts (along the first axis) into offsets: exclusive sums, then the total."""
    out = np.zeros((len(count) + 1, *count.shape[1:]), np.int64)
    np.cumsum(count, axis=0, out=out[1:])
    return out


def take_rows(ragged: Ragged, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray]:
    """Return the sizes of chosen rows, and their items end to end."""
    sizes = np.diff(ragged.offsets)[rows]
    ends = np.cumsum(sizes)
    index = np.arange(int(sizes.sum())) + np.repeat(ragged.offsets[rows] - ends + sizes, sizes)
    return sizes, ragged.items[index]


def pack_row(flags: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Pack a row of flags into 64-bit words, lowest bit first."""
    padded = np.zeros(-(-len(flags) // 64) * 64, np.bool_)
    padded[: len(flags)] = flags
    return np.packbits(padded, bitorder="little").view("<u8").astype(np.uint64)


def padded(values: NDArray, dtype: type) -> NDArray:
    """Fill up to a multiple of 64 entries, one for each bit of a packed row, with -1."""
    out = np.full(-(-len(values) // 64) * 64, -1, dtype)
    out[: len(values)] = values
    return out


def nbytes(record: object) -> int:
    """Sum the sizes of the arrays that a record holds."""
    return sum(x.nbytes for x in vars(record).values() if isinstance(x, np.ndarray))
