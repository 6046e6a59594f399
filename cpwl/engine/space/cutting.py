"""Cutting a lattice by the columns of one stage, column after column.

A column is affine on every cell, so its signs at the vertices decide everything: an edge with ends
of opposite sign gets a vertex, and a face of dimension k with vertices on both sides is cut along a
new face of dimension k - 1, whose boundary is known from the cuts of the face's own boundary. No
coordinate is looked at in dimension 2 and above, so that a vertex on more knots than the dimension,
a knot along a face and knots that coincide are ordinary cases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import EPS, Floats, unpack
from cpwl.engine.columns import Columns
from cpwl.engine.space import cutting_kernels as kernels
from cpwl.engine.space.lattice import Lattice
from cpwl.engine.space.workspace import (
    BATCH,
    Judge,
    Sweep,
    close_sweep,
    errors_of,
    open_sweep,
    reserve,
    rows_of,
    signs_of,
)
from cpwl.engine.work import TooLargeError

# A new vertex is computed exactly, and rounded, if it is likely to be off by more than the first
# share of the domain's extent or the second share of its distance from the origin, or cannot be
# proven to be off by less than the third share of the extent. The proof's bounds are pessimistic by
# many orders of magnitude, but suffice to decide signs.
_WELL_PLACED = 2e-12
_SAME_DIGITS = 1e-9
_WELL_KNOWN = 1e-2


class Split(NamedTuple):
    """A lattice cut by the columns of a stage."""

    lattice: Lattice  # its patterns have 64 * ceil(sum(varies) / 64) bits more
    varies: NDArray[np.bool_]  # (K,) positive somewhere, not everywhere: the columns with a bit
    above: NDArray[np.bool_]  # (K,) the columns that are positive everywhere
    undecided: int
    broken: int


def split(
    lattice: Lattice,
    values: Floats,
    columns: Columns,
    evaluate: Callable[[Floats], Floats],
    judge: Judge,
    room: int,
) -> Split:
    """Cut a lattice by the columns of one stage.

    Parameters
    ----------
    lattice : Lattice
        The columns are affine on each of its cells.
    values : (V, K)
        The columns' values (unit minus knot) at the vertices.
    evaluate : callable
        Gives the values (n, K) at points (n, P).
    judge : Judge
        Decides the signs that float64 does not.
    room : int
        Bytes that the work may take, with the values and the result.

    Raises
    ------
    TooLargeError
        The work would take more; nothing has been allocated that does not fit. `needed` is a guess
        at what all of the stage's columns would take.

    Notes
    -----
    Cost: every new face is made once, from its boundary, and for every column one look at two
    words of each face.
    """
    sweep = open_sweep(lattice, values, columns, evaluate, judge, room)
    pos, neg = _decide_all(sweep)
    anywhere, everywhere = np.bitwise_or.reduce(pos), np.bitwise_and.reduce(pos)
    total = len(columns.unit)
    varies, above = (unpack(x)[:total] for x in (anywhere & ~everywhere, everywhere))
    for batch in range(len(anywhere)):
        _start_batch(sweep, batch, pos[:, batch], neg[:, batch])
        first, last = BATCH * batch, min(BATCH * (batch + 1), total)
        for column in first + np.flatnonzero(varies[first:last]):
            try:
                _cut(sweep, int(column))
            except TooLargeError as error:
                share = _growth_to_come(sweep, len(lattice.patterns), int(column), total)
                raise TooLargeError(int(share * error.needed)) from None
        cells = sweep.levels[-1]
        n = cells.count
        sweep.words[:n, batch] = cells.pos[:n] & ~cells.neg[:n]
    undecided, broken = sweep.undecided, sweep.broken
    return Split(close_sweep(sweep, lattice.patterns, varies), varies, above, undecided, broken)


def _growth_to_come(sweep: Sweep, cells_before: int, done: int, total: int) -> float:
    """Guess how many times as many cells there will be: they grow as (m + columns) ** P."""
    dim = len(sweep.levels)
    so_far = (sweep.levels[-1].count / cells_before) ** (1 / dim)
    if so_far == 1:
        return 1.0
    offset = done / (so_far - 1)
    return ((offset + total) / (offset + done)) ** dim


# --- signs at the vertices ---------------------------------------------------------------------


def _decide_all(sweep: Sweep) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Decide all columns at the vertices of before the stage; words (V, batches)."""
    v = sweep.vertices
    pos, neg = np.empty((2, v.count, sweep.words.shape[1]), np.uint64)
    for batch in range(pos.shape[1]):
        _decide(sweep, batch, 0)
        pos[:, batch], neg[:, batch] = v.pos, v.neg
    return pos, neg


def _decide(sweep: Sweep, batch: int, first: int) -> None:
    """Decide a batch of columns at the vertices from number ``first`` on."""
    v = sweep.vertices
    shift = BATCH * batch - v.dropped
    if kernels.decide(signs_of(v), shift, errors_of(sweep, batch), first, v.count):
        _ask(sweep, batch, first)


def _ask(sweep: Sweep, batch: int, first: int) -> None:
    """Have the signs decided that float64 left open, at the vertices from number ``first`` on."""
    v, columns = sweep.vertices, sweep.columns
    row, bit = np.nonzero(unpack(v.unsure[first : v.count, None]))
    row += first
    column = BATCH * batch + bit
    unit, knot = columns.unit[column], columns.knot[column]
    if sweep.judge.exact:
        sign = sweep.judge.signs(v.names[row], columns.stage, unit, knot)
    else:
        value = v.values[row, column - v.dropped]
        tolerance = columns.tolerance[column] + v.rounds[row] * sweep.rounding[column]
        sign = np.sign(value) * (np.abs(value) > tolerance)
        sweep.undecided += len(row)
    word = np.uint64(1) << bit.astype(np.uint64)
    for target, chosen in ((v.pos, sign > 0), (v.neg, sign < 0)):
        np.bitwise_or.at(target, row[chosen], word[chosen])


def _start_batch(
    sweep: Sweep, batch: int, start_pos: NDArray[np.uint64], start_neg: NDArray[np.uint64]
) -> None:
    """Set the sign words of all faces to those of a batch of columns."""
    v = sweep.vertices
    n = len(start_pos)
    v.pos[:n], v.neg[:n] = start_pos, start_neg
    _decide(sweep, batch, n)
    lower_pos, lower_neg = v.pos, v.neg
    for level in sweep.levels:
        kernels.gather_words(
            level.start, level.size, level.items, lower_pos, lower_neg, 0, level.count,
            level.pos, level.neg,
        )  # fmt: skip
        lower_pos, lower_neg = level.pos, level.neg
    signed = v.pos[: v.count] | v.neg[: v.count]
    sweep.touched = ~int(np.bitwise_and.reduce(signed))


# --- one column --------------------------------------------------------------------------------


def _cut(sweep: Sweep, column: int) -> None:
    """Cut everything that has vertices on both sides of a column."""
    batch, bit = divmod(column, BATCH)
    v, levels = sweep.vertices, sweep.levels
    found, sizes = [], []
    for level in reversed(levels):
        n, size = kernels.find_split(
            level.pos, level.neg, level.size, level.count, bit, level.found
        )
        if n == 0 and level is levels[-1]:
            return
        found.insert(0, level.found[:n])
        sizes.insert(0, size)
    touching = bool(sweep.touched >> bit & 1)
    reserve(sweep, column, found, sizes, touching)

    before = [v.count, *(level.count for level in levels)]
    careful, broken = not sweep.judge.exact, 0
    made = [0, len(found[0])]  # split faces of each dimension
    _cut_edges(sweep, column, found[0])
    for k in range(2, len(levels) + 1):
        level, lower = levels[k - 1], levels[k - 2]
        # vertices have signs, but no boundary
        bottom = rows_of(levels[k - 3]) if k > 2 else rows_of(lower)._replace(pos=v.pos, neg=v.neg)
        n, broken, level.end, lower.end = kernels.cut_faces(
            found[k - 1], bit, k, touching, careful,
            rows_of(level), before[k], level.end,
            rows_of(lower), before[k - 1], before[k - 1] + made[k - 1], lower.end,
            bottom, before[k - 2] + made[k - 2],
        )  # fmt: skip
        made.append(n)
        level.count += n
        lower.count += n
        if k == 2:
            kernels.span_lines(
                before[1] + made[1], lower.count, lower.items, lower.flat, v.mark, sweep.line
            )
    sweep.broken += broken  # those of the last dimension, the cells

    dim = len(levels)
    whole = [
        rows if n == len(rows) else rows[level.place[rows] >= 0]
        for rows, n, level in zip(found, made[1:], levels, strict=True)
    ]
    facets = before[dim - 1]  # from here on: positive parts, then cuts of cells
    cuts = facets + made[dim - 1]
    if dim > 1:
        sweep.bit[facets:cuts] = sweep.bit[whole[dim - 2]]
    sweep.bit[cuts : cuts + made[dim]] = sweep.first_bit + column
    new = slice(before[dim], levels[-1].count)
    sweep.words[new, :batch] = sweep.words[whole[-1], :batch]
    for level, rows in zip(levels, found, strict=True):
        level.place[rows] = kernels.WHOLE


def _cut_edges(sweep: Sweep, column: int, found: NDArray[np.int32]) -> None:
    """Put a vertex on every split edge, have its signs decided, and cut the edges."""
    batch, bit = divmod(column, BATCH)
    v, edges, columns = sweep.vertices, sweep.levels[0], sweep.columns
    first, last = v.count, v.count + len(found)
    unsure, touched = kernels.place_vertices(
        found, bit, sweep.line, edges.pos, edges.neg, BATCH * batch - v.dropped,
        errors_of(sweep, batch), first, signs_of(v),
    )  # fmt: skip
    v.count = last
    v.names[first:last] = v.mark[first:last] = -1
    sweep.touched |= int(touched)
    if sweep.judge.exact:
        n = len(found)
        v.names[first:last] = np.arange(n) + sweep.judge.add(
            v.names[sweep.line[found]], columns.stage,
            np.full(n, columns.unit[column]), np.full(n, columns.knot[column]),
        )  # fmt: skip
        size = np.abs(v.points[first:last]).max(axis=1)
        poor = v.likely[first:last] > np.minimum(_WELL_PLACED * sweep.extent, _SAME_DIGITS * size)
        poor |= ~(v.error[first:last] <= _WELL_KNOWN * sweep.extent)
        if poor.any():
            rows = first + np.flatnonzero(poor)
            v.points[rows] = points = sweep.judge.points(v.names[rows])
            size = np.abs(points).max(axis=1) * np.sqrt(points.shape[1])
            v.error[rows] = v.likely[rows] = EPS * size + 2.0**-1000
            v.rounds[rows] = 0
            v.values[rows] = sweep.evaluate(points)[:, v.dropped :]
    if unsure:
        _ask(sweep, batch, first)
    n, edges.count = edges.count, edges.count + len(found)
    kernels.cut_edges(
        found, bit, first, v.pos, v.neg, n, edges.items, edges.pos, edges.neg, edges.place
    )
    sweep.line[n : edges.count] = sweep.line[found]
    edges.start[n : edges.count] = 2 * np.arange(n, edges.count)
    edges.size[n : edges.count] = 2
    edges.flat[n : edges.count] = edges.flat[found]
    edges.place[n : edges.count] = kernels.WHOLE
    edges.end = 2 * edges.count
