"""Kernels on the values of columns at vertices: ranges, signs, and what float64 leaves in doubt."""

from __future__ import annotations

import numpy as np
from numba import uint64

from cpwl.arrays import kernel


@kernel
def column_range(values, low, high, defect):
    """Smallest and largest entry of each column, inf and -inf where there are no rows.

    ``defect`` is NaN in a column that holds inf or NaN and 0 in all others.
    """
    low[:] = np.inf
    high[:] = -np.inf
    defect[:] = 0.0
    for r in range(values.shape[0]):
        for j in range(values.shape[1]):
            v = values[r, j]
            low[j] = v if v < low[j] else low[j]
            high[j] = v if v > high[j] else high[j]
            defect[j] += v - v


@kernel
def pack_signs(values, error, unit, knot, slack, lipschitz, tolerance, start, stop, pos, neg):
    """Pack the signs of ``values[:, unit[k]] - knot[k]``.

    In doubt is what lies within ``slack[k] + lipschitz[k] * error[row]`` of zero; it is taken as
    zero where it is within ``tolerance[k]``. Returns how many values are in doubt.
    """
    near = 0
    count = unit.shape[0]
    row = np.empty(count)  # gathered first, so that the rest needs no branches
    for r in range(start, stop):
        for k in range(count):
            row[k] = values[r, unit[k]] - knot[k]
        off = error[r]
        for w in range(pos.shape[1]):
            p = uint64(0)
            n = uint64(0)
            first = 64 * w
            for k in range(min(64, count - first)):
                v = row[first + k]
                doubt = slack[first + k] + lipschitz[first + k] * off
                most = tolerance[first + k]
                zero = most if most < doubt else doubt
                p |= uint64(v > zero) << uint64(k)
                n |= uint64(v < -zero) << uint64(k)
                near += abs(v) <= doubt
            pos[r, w] = p
            neg[r, w] = n
    return near


@kernel
def list_doubts(values, error, unit, knot, slack, lipschitz, rows, columns):
    """List the rows and columns of the values in doubt, and return how many; see `pack_signs`.

    Nothing is written beyond the room that there is.
    """
    n = 0
    for r in range(values.shape[0]):
        for k in range(unit.shape[0]):
            if abs(values[r, unit[k]] - knot[k]) <= slack[k] + lipschitz[k] * error[r]:
                if n < rows.shape[0]:
                    rows[n] = r
                    columns[n] = k
                n += 1
    return n
