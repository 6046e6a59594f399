"""Rows of flags packed into 64-bit words, bit j of a row in bit j % 64 of word j // 64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
