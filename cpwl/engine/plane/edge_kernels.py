"""Kernels that find and place crossings on edges, and cut the intervals of one dimension."""

from __future__ import annotations

import numpy as np
from numba import uint64

from cpwl.arrays import EPS, njit


@njit(cache=True, nogil=True, inline="always")
def _popcount(word):
    """Count the set bits of a 64-bit word."""
    word = word - ((word >> uint64(1)) & uint64(0x5555555555555555))
    word = (word & uint64(0x3333333333333333)) + ((word >> uint64(2)) & uint64(0x3333333333333333))
    word = (word + (word >> uint64(4))) & uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * uint64(0x0101010101010101)) >> uint64(56))


@njit(cache=True, nogil=True, inline="always")
def _lowest(word):
    """Give the index of the lowest set bit of a non-zero word."""
    return _popcount((word & (~word + uint64(1))) - uint64(1))


@njit(cache=True, nogil=True)
def count_crossings(ends, pos, neg, start, stop, count):
    """Count the columns that change sign strictly between the two ends (rows) of each edge."""
    for e in range(start, stop):
        a, b = ends[e, 0], ends[e, 1]
        n = 0
        for w in range(pos.shape[1]):
            n += _popcount((pos[a, w] & neg[b, w]) | (neg[a, w] & pos[b, w]))
        count[e] = n


@njit(cache=True, nogil=True)
def _sort_crossings(first, last, where, column, spread, change):
    """Sort the crossings of an edge along it."""
    gap = 1
    while gap < (last - first) // 3:  # shell sort: few crossings, but thousands on a domain's side
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(first + gap, last):
            k, t, d, c = column[i], where[i], spread[i], change[i]
            j = i - gap
            while j >= first and where[j] > t:
                column[j + gap], where[j + gap] = column[j], where[j]
                spread[j + gap], change[j + gap] = spread[j], change[j]
                j -= gap
            column[j + gap], where[j + gap], spread[j + gap], change[j + gap] = k, t, d, c
        gap //= 3


@njit(cache=True, nogil=True)
def place_crossings(
    ends, pos, neg, held, values, error, unit, shift, slack, slope, tolerance,
    offsets, start, stop, column, where, spread, change, fresh, doubtful,
):  # fmt: skip
    """List the crossings of each edge in order from its first end to its second.

    Rows count through ``held`` first and then through ``values``. ``where`` is the crossing's
    position as a fraction of the edge, known within ``spread``; ``change`` is by how much the
    column changes along the edge. ``fresh`` is False where a crossing cannot be told from one
    before it: these knots are taken to meet in one vertex, and the edge is marked as doubtful.
    """
    for e in range(start, stop):
        a, b = ends[e, 0], ends[e, 1]
        first = offsets[e]
        doubtful[e] = False
        if offsets[e + 1] == first:
            continue
        at_a = held[a] if a < held.shape[0] else values[a - held.shape[0]]
        at_b = held[b] if b < held.shape[0] else values[b - held.shape[0]]
        x = first
        for w in range(pos.shape[1]):
            word = (pos[a, w] & neg[b, w]) | (neg[a, w] & pos[b, w])
            while word != uint64(0):
                k = 64 * w + _lowest(word)
                word &= word - uint64(1)
                va = at_a[unit[k]] - shift[k]
                vb = at_b[unit[k]] - shift[k]
                error_a = min(slack[k] + slope[k] * error[a], tolerance[k])
                error_b = min(slack[k] + slope[k] * error[b], tolerance[k])
                sure = abs(va - vb) - error_a - error_b
                column[x] = k
                change[x] = abs(va - vb)
                if (va > 0) != (vb > 0) and sure > 0:
                    t = va / (va - vb)
                    where[x] = t
                    spread[x] = ((1 - t) * error_a + t * error_b) / sure + 2 * EPS
                else:  # the signs were decided otherwise
                    where[x] = 0.5
                    spread[x] = np.inf
                x += 1
        _sort_crossings(first, x, where, column, spread, change)
        reach = -np.inf
        for i in range(first, x):
            fresh[i] = where[i] - spread[i] > reach
            doubtful[e] |= not fresh[i] and i > first
            reach = max(reach, where[i] + spread[i])
        fresh[first] = True


@njit(cache=True, nogil=True)
def place_vertices(
    points, error, edge_points, first, offsets, where, spread, blur, fresh, column, scale,
    start, stop, out_points, out_error, out_edge, out_column, out_blur,
):  # fmt: skip
    """Place the new vertices of each edge, from its first end to its second.

    ``first[e]`` numbers the first new vertex of edge e in the outputs: coordinates, a bound on
    their error, the edge, the column, and by how much rounding can really move the vertex. Lengths
    are taken times ``scale``, a power of two, so that none overflows.
    """
    dim = points.shape[1]
    for e in range(start, stop):
        n = first[e]
        if n == first[e + 1]:
            continue
        a, b = edge_points[e, 0], edge_points[e, 1]
        length = 0.0
        far_a, far_b = 0.0, 0.0
        for d in range(dim):
            length += (scale * (points[b, d] - points[a, d])) ** 2
            far_a, far_b = max(far_a, abs(points[a, d])), max(far_b, abs(points[b, d]))
        length = np.sqrt(length) / scale + error[a] + error[b]
        for x in range(offsets[e], offsets[e + 1]):
            if not fresh[x]:
                continue
            t = where[x]
            for d in range(dim):
                out_points[n, d] = points[a, d] + t * (points[b, d] - points[a, d])
            off = (1 - t) * error[a] + t * error[b]
            out_error[n] = off + spread[x] * length + 2 * EPS * (far_a + far_b)
            out_edge[n], out_column[n] = e, column[x]
            out_blur[n] = blur[x] * length
            n += 1


@njit(cache=True, nogil=True)
def split_intervals(pos, neg, offsets, column, fresh, child, start, stop, bits):
    """Write the stage's bits of the pieces of each interval; ``child`` numbers its first piece."""
    for c in range(start, stop):
        f = child[c]
        for w in range(bits.shape[1]):
            # what crosses starts on the sign of the lower end, what does not has one sign
            crosses = (pos[c, w] & neg[c + 1, w]) | (neg[c, w] & pos[c + 1, w])
            bits[f, w] = (pos[c, w] & crosses) | ((pos[c, w] | pos[c + 1, w]) & ~crosses)
        for i in range(offsets[c], offsets[c + 1]):
            if fresh[i]:
                f += 1
                for w in range(bits.shape[1]):
                    bits[f, w] = bits[f - 1, w]
            bits[f, column[i] >> 6] ^= uint64(1) << uint64(column[i] & 63)
