"""Contests of max-pooling: bits without effect on the outputs, and cells of equal patterns."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import in_parallel, pattern_kernels


def clear_lost(
    patterns: NDArray[np.uint64],
    contests: NDArray[np.int32],
    bit_unit: NDArray[np.int32],
    base: NDArray[np.int32],
    pool: ThreadPoolExecutor,
) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """Clear the bits of units that have no effect; see `merge_contested` for the arguments.

    Returns the units that may have been cleared, and the patterns.
    """
    bit_of = np.full(len(base), -1, np.int64)
    used = np.flatnonzero(bit_unit >= 0)
    bit_of[bit_unit[used]] = used
    parent, piece, child = contests.T
    matters = (bit_of[child] >= 0) & ((bit_of[parent] >= 0) | (base[parent] == piece))
    parent, piece, child = parent[matters], piece[matters], child[matters]
    if len(child) == 0:
        return child, patterns
    patterns = patterns.copy()
    in_parallel(
        pool,
        lambda a, b: pattern_kernels.clear_lost(
            patterns, bit_of[parent], piece, bit_of[child], a, b
        ),
        len(patterns),
        nanoseconds=2 * len(child),
    )
    return child, patterns


def same_pattern(patterns: NDArray[np.uint64], a: NDArray, b: NDArray) -> NDArray[np.bool_]:
    """Compare the patterns of pairs of cells, a word at a time to save memory."""
    same = np.ones(len(a), np.bool_)
    for word in range(patterns.shape[1]):
        same &= patterns[a, word] == patterns[b, word]
    return same
