"""Rows of flags packed into 64-bit words, bit j of a row in bit j % 64 of word j // 64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays.floats import Ints


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


def unpack(words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Unpack rows of words, lowest bit first: (..., W) -> (..., 64 W)."""
    data = np.ascontiguousarray(words).astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(data, axis=-1, bitorder="little").astype(np.bool_)


def last_difference(patterns: NDArray[np.uint64], sides: NDArray) -> Ints:
    """Return the last bit in which the patterns of pairs of cells (n, 2) differ."""
    last = np.zeros(len(sides), np.int64)
    word = np.zeros((len(sides), 1), np.uint64)
    for w in range(patterns.shape[1]):
        differ = patterns[sides[:, 0], w] ^ patterns[sides[:, 1], w]
        last[differ != 0] = w
        word[differ != 0, 0] = differ[differ != 0]
    return 64 * last + 63 - np.argmax(unpack(word)[:, ::-1], axis=1)
