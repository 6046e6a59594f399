"""Kernels that read finished lattices: rows laid end to end, vertices and cells of faces."""

from __future__ import annotations

import numpy as np
from numba import uint64

from cpwl.arrays import njit


@njit(cache=True, nogil=True)
def pack_rows(start, size, items, offsets, out):
    """Copy ragged rows, wherever they lie, end to end."""
    for f in range(offsets.shape[0] - 1):
        at = offsets[f]
        for i in range(start[f], start[f] + size[f]):
            out[at] = items[i]
            at += 1


@njit(cache=True, nogil=True)
def sort_rows(offsets, items):
    """Sort every ragged row; rows are short."""
    for f in range(offsets.shape[0] - 1):
        _sort(items, offsets[f], offsets[f + 1])


@njit(cache=True, nogil=True)
def _sort(items, low, high):
    """Sort ``items[low:high]`` by insertion with falling gaps."""
    n = high - low
    gap = 1
    while gap < n // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(low + gap, high):
            x = items[i]
            j = i - gap
            while j >= low and items[j] > x:
                items[j + gap] = items[j]
                j -= gap
            items[j + gap] = x
        gap //= 3


@njit(cache=True, nogil=True)
def collect_corners(start, stop, offsets, items, below_offsets, below, mark, sort, size, out):
    """List the vertices of faces from the vertices ``below`` of their boundaries.

    Writes row after row, and the ``size`` of each, from face ``start`` on as far as they surely
    fit; returns the first face that is left. ``mark`` (one entry a vertex) must hold no number of
    these faces.
    """
    at = 0
    for f in range(start, stop):
        most = 0
        for i in range(offsets[f], offsets[f + 1]):
            g = items[i]
            most += below_offsets[g + 1] - below_offsets[g]
        if at + most > out.shape[0]:
            return f
        begin = at
        for i in range(offsets[f], offsets[f + 1]):
            g = items[i]
            for k in range(below_offsets[g], below_offsets[g + 1]):
                v = below[k]
                if mark[v] != f:
                    mark[v] = f
                    out[at] = v
                    at += 1
        if sort:
            _sort(out, begin, at)
        size[f] = at - begin
    return stop


@njit(cache=True, nogil=True)
def facet_sides(offsets, items, facet_bit, patterns, sides):
    """Write the cells of every facet: first the one where the facet's bit is not set.

    On the boundary, where the bit is negative, the one cell comes first. ``sides`` holds -1.
    """
    for c in range(offsets.shape[0] - 1):
        for i in range(offsets[c], offsets[c + 1]):
            bit = facet_bit[items[i]]
            side = 0
            if bit >= 0:
                word = patterns[c, bit >> 6]
                side = np.int64((word >> uint64(bit & 63)) & uint64(1))
            sides[items[i], side] = c
