"""Kernels on numbers hi + lo with a bound on their error: slices, sums and products.

What is rounded on the way is bounded as it happens: an operation on the low parts rounds by at most
UNIT_ROUNDOFF times its result, and nothing else is rounded (Knuth's sum and Dekker's product give
their own errors, see Ogita, Rump and Oishi, Accurate sum and dot product, SIAM J. Sci. Comput.
2005). Numbers that are exactly zero keep the bound 0, and products of two float64 numbers have it:
constants behind dead units, a slope times a bias, are then known to be equal.
"""

from __future__ import annotations

from math import ldexp

import numpy as np

from cpwl.arrays import UNIT_ROUNDOFF, inlined, kernel

# For what is rounded in computing the bounds themselves.
UP = 1 + 2.0**-40
# What products of tiny numbers may lose below the smallest one, but none that is beyond SMALL.
LOST = 2.0**-1000
SMALL = 2.0**-900


@inlined
def two_sum(a, b):
    """Sum, and what it rounds off."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@inlined
def two_product(a, b):
    """Product, and what it rounds off."""
    p = a * b
    c = 134217729.0 * a
    a_high = c - (c - a)
    a_low = a - a_high
    c = 134217729.0 * b
    b_high = c - (c - b)
    b_low = b - b_high
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


@kernel
def largest(hi, error, top, off):
    """Largest magnitude and largest error bound of each row; NaN counts as infinite."""
    for r in range(hi.shape[0]):
        t, e = 0.0, 0.0
        for i in range(hi.shape[1]):
            x = abs(hi[r, i])
            if not x <= t:
                t = x if x == x else np.inf
            if not error[r, i] <= e:
                e = error[r, i] if error[r, i] == error[r, i] else np.inf
        top[r], off[r] = t, e


@kernel
def cut(hi, lo, error, exponent, bits, slices, carried):
    """Cut numbers below 2^exponent[row] into integers of so many bits.

    ``slices[s]`` times 2^(exponent - bits + 1 - bits s), summed over s, is the number but for what
    is cut off; ``carried`` is that, and the error that the number has, from above. It is positive
    wherever the number is not exactly zero.
    """
    n_slices = slices.shape[0]
    for r in range(hi.shape[0]):
        first = exponent[r] - bits + 1
        mark = ldexp(1.0, exponent[r] - bits * n_slices - 20)
        for i in range(hi.shape[1]):
            high, low = hi[r, i], lo[r, i]
            if high == 0.0 and low == 0.0:
                for s in range(n_slices):
                    slices[s, r, i] = 0.0
                carried[r, i] = error[r, i]
                continue
            for s in range(n_slices):
                unit = ldexp(1.0, first - bits * s)
                m = np.rint(high / unit)
                slices[s, r, i] = m
                high, low = two_sum(high - m * unit, low)
            carried[r, i] = ((abs(high) + abs(low)) + error[r, i] + mark) * UP


@kernel
def join(pairs, level, exponent, bits, offset, values, passed, unseen, hi, lo, error):
    """Add up products of slices: the product of all slices, an offset, and the error of both.

    Parameters
    ----------
    pairs : (n, R, N) integers
        Sums of products of slices, those of the lowest weight first.
    level : (n,)
        Their weights, as numbers of slices below the first.
    exponent : (R,)
        Of the weight of level 0.
    offset : (N,), added to the first ``values`` rows
    passed : (R, N)
        What comes in with the data, and what was cut off it; zero where all data are exactly zero.
    unseen : (R,)
        What pairs that were left out may amount to.
    """
    n_pairs = pairs.shape[0]
    scale = np.empty(n_pairs)
    for r in range(hi.shape[0]):
        for p in range(n_pairs):
            scale[p] = ldexp(1.0, exponent[r] - bits * level[p])
        for i in range(hi.shape[1]):
            high, low, rounded = 0.0, 0.0, 0.0
            for p in range(n_pairs):
                high, e = two_sum(high, pairs[p, r, i] * scale[p])
                low += e
                rounded += abs(low)
            if r < values:
                high, e = two_sum(high, offset[i])
                low += e
                rounded += abs(low)
            hi[r, i], lo[r, i] = two_sum(high, low)
            off = rounded * UNIT_ROUNDOFF
            if passed[r, i] != 0.0:
                off += passed[r, i] + unseen[r]
            error[r, i] = off * UP


@kernel
def scale(hi, lo, error, factor, offset, values, out_hi, out_lo, out_error):
    """Multiply by factors, and add offsets to the first ``values`` rows.

    Row r takes row r mod B of the factors and offsets (B, N).
    """
    for r in range(hi.shape[0]):
        k = r % factor.shape[0]
        shifts = r < values
        for i in range(hi.shape[1]):
            f = factor[k, i]
            if f == 0.0:
                high, low, off = 0.0, 0.0, 0.0
            elif f == 1.0:
                high, low, off = hi[r, i], lo[r, i], error[r, i]
            else:
                high, e = two_product(hi[r, i], f)
                small = lo[r, i] * f
                low, lost = two_sum(e, small)
                off = error[r, i] * abs(f) + (abs(small) * UNIT_ROUNDOFF + abs(lost))
                if lo[r, i] != 0.0 or (hi[r, i] != 0.0 and not abs(high) > SMALL):
                    off += LOST
                off *= UP
            if shifts and offset[k, i] != 0.0:
                high, e = two_sum(high, offset[k, i])
                low, lost = two_sum(low, e)
                off = (off + abs(lost)) * UP
            out_hi[r, i], out_lo[r, i] = two_sum(high, low)
            out_error[r, i] = off


@inlined
def sum_of(a_hi, a_lo, a_error, b_hi, b_lo, b_error):
    """Add two numbers."""
    high, e = two_sum(a_hi, b_hi)
    small, lost = two_sum(a_lo, b_lo)
    low, more = two_sum(e, small)
    high, low = two_sum(high, low)
    return high, low, (a_error + b_error + (abs(lost) + abs(more))) * UP


@kernel
def add(a_hi, a_lo, a_error, b_hi, b_lo, b_error, sign, hi, lo, error):
    """Add flat numbers: a + sign b."""
    for i in range(hi.shape[0]):
        hi[i], lo[i], error[i] = sum_of(
            a_hi[i], a_lo[i], a_error[i], sign * b_hi[i], sign * b_lo[i], b_error[i]
        )


@kernel
def differences(x_hi, x_lo, x_error, first, second, hi, lo, error):
    """Subtract entries of rows: row r takes those that row r mod B of ``first``, (B, N), names."""
    for r in range(hi.shape[0]):
        b = r % first.shape[0]
        for i in range(hi.shape[1]):
            j, k = first[b, i], second[b, i]
            hi[r, i], lo[r, i], error[r, i] = sum_of(
                x_hi[r, j], x_lo[r, j], x_error[r, j], -x_hi[r, k], -x_lo[r, k], x_error[r, k]
            )


@kernel
def play(hi, lo, pieces, unit, sides, final, largest, winners, ties):
    """Play tournaments on B cells; nodes are the entries of a row, then the matches.

    Parameters
    ----------
    hi, lo : (R, N)
        Values at B points, then B derivatives each.
    pieces, unit : (B, num_units), (M,)
        Pieces of the network's units, and which of these the matches are.
    sides, final : (2, M), (W,)
        The nodes that meet in each match, and the last ones.
    winners : (B, W)
        Entries that win.
    ties : (B,)
        Matches on the upper piece whose sides are equal in all rows.
    """
    count, size = pieces.shape[0], hi.shape[1]
    node = np.arange(size + unit.shape[0])
    for b in range(count):
        for m in range(unit.shape[0]):
            j, k = node[sides[0, m]], node[sides[1, m]]
            upper = pieces[b, unit[m]] > 0
            node[size + m] = j if upper == largest else k
            if upper and hi[b, j] == hi[b, k]:
                level = 1
                for r in range(b, hi.shape[0], count):
                    if hi[r, j] != hi[r, k] or lo[r, j] != lo[r, k]:
                        level = 0
                ties[b] += level
        for w in range(final.shape[0]):
            winners[b, w] = node[final[w]]


@kernel
def near_knots(hi, error, case, step, radius, ends, pieces, leads, rows, columns):
    """List the units whose float64 value at a root may lie outside its piece or on its ends.

    Exact zeros on the upper end are left out, and leads that are exactly zero.

    Parameters
    ----------
    hi, error : (B, P + 1, U)
        Affine functions on cells, see `Held`.
    case, step, radius : (n,), (n, P), (n,)
        The roots.
    ends, pieces, leads : (U, m), (B, U), (U,)
        Ends of all pieces, those of the cells, and what is to be at least zero instead.
    rows, columns : (m,)
        Room for the list; nothing is written beyond it.

    Returns
    -------
    int
        Number of roots and units.
    """
    dim, found = step.shape[1], 0
    for r in range(step.shape[0]):
        b = case[r]
        for u in range(hi.shape[2]):
            low, high = ends[u, pieces[b, u]], ends[u, pieces[b, u] + 1]
            if leads[u]:
                low, high = 0.0, np.inf
            value, size, off, slope = hi[b, 0, u], abs(hi[b, 0, u]), error[b, 0, u], 0.0
            for d in range(dim):
                change = hi[b, 1 + d, u] * step[r, d]
                value += change
                size += abs(change)
                off += error[b, 1 + d, u] * abs(step[r, d])
                slope += abs(hi[b, 1 + d, u]) + error[b, 1 + d, u]
            inside = (low < 0.0 or leads[u]) and high >= 0.0
            if size == 0.0 and slope == 0.0 and off == 0.0 and inside:
                continue
            off += slope * radius[r] + 16 * UNIT_ROUNDOFF * size
            above, below = value - low, high - value
            if above > off * UP and below > off * UP:
                continue
            if found < rows.shape[0]:
                rows[found], columns[found] = r, u
            found += 1
    return found
