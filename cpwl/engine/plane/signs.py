"""One stage of the network seen from the vertices of a complex.

Every column (a unit and one of its breakpoints) is evaluated once at every vertex, in blocks that
fit the memory budget; what remains is one sign a vertex and column, packed, and the places where
columns cross the edges. A sign is decided here and nowhere else: by float64 where a rigorous bound
on its error allows it, and otherwise by the arbiter, in rational arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cpwl.arrays import (
    EPS,
    Floats,
    Ints,
    in_parallel,
    pack_row,
    pattern_kernels,
    prefix,
    unpack_row,
)
from cpwl.engine import column_kernels
from cpwl.engine.bounds import Bounds
from cpwl.engine.columns import Columns
from cpwl.engine.plane import edge_kernels
from cpwl.engine.plane.doubts import Decisions
from cpwl.engine.rational import Arbiter, Vertices
from cpwl.network import Network

# Larger blocks gain nothing in BLAS, leave the caches, and have their pages mapped anew each time.
_MOST_BYTES = 2**26
_MOST_ROWS = 16384
_FEWEST_ROWS = 64
# What layers before the last carry over stays below its bound by this factor and more.
_PESSIMISM = 64
# The rigorous bound grows with depth much faster than errors do. Where a network is too large for
# rational arithmetic, zero is what lies within this many times the last layer's part of the bound.
_CARRIED_OVER = 16.0


@dataclass(frozen=True, eq=False)
class StageSigns:
    """Signs of a stage's varying columns at the vertices, and their crossings with the edges."""

    unit: Ints  # (K,) unit of each column, counted within the stage
    value: Floats  # (K,) the column's breakpoint
    piece: Ints  # (K,) piece of the unit below it
    base: Ints  # (n_stage,) piece of each unit where none of its columns is positive
    pos: NDArray[np.uint64]  # (V, ceil(K / 64)) packed: the column is positive at the vertex
    neg: NDArray[np.uint64]  # likewise negative
    offsets: Ints  # (E + 1,) crossings of each edge
    column: NDArray[np.int32]  # (X,) which column crosses
    where: Floats  # (X,) position as a fraction of the edge, ascending
    spread: Floats  # (X,) bound on the position's error
    blur: Floats  # (X,) what rounding can really do to it
    fresh: NDArray[np.bool_]  # (X,) False: in the same point as the crossing before
    undecided: int  # values within the bound that were taken as float64 has them


class _Crossings(NamedTuple):
    """Crossings of some edges; entries as in `StageSigns`."""

    per_edge: Ints
    column: NDArray[np.int32]
    where: Floats
    spread: Floats
    blur: Floats
    fresh: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Block:
    """What is kept of one block of vertices: packed signs on the columns that vary in it."""

    rows: Ints
    kept: Ints
    positive: NDArray[np.bool_]  # sign of the columns that are not kept
    pos: NDArray[np.uint64]
    neg: NDArray[np.uint64]
    edges: Ints
    crossings: _Crossings


@np.errstate(over="ignore")  # an infinite bound leaves the sign to rational arithmetic
def stage_signs(
    network: Network,
    stage: int,
    embed: Callable[[Floats], torch.Tensor],
    vertices: Vertices,
    edges: NDArray[np.int32],
    bounds: Bounds,
    arbiter: Arbiter,
    memory: int,
    pool: ThreadPoolExecutor,
) -> StageSigns:
    """Evaluate a stage at all vertices.

    Parameters
    ----------
    embed : callable
        Maps (n, P) slice coordinates to the (n, *input_shape) float64 batch that the network takes.
    vertices, edges : V vertices, (E, 2)
        The complex so far; the stage is affine on each of its cells.
    bounds : Bounds
        Knows the ranges of the stages before; is given this one's.
    memory : int
        Bytes that the blocks may take.

    Notes
    -----
    With more than one block the vertices are swept in the order of their first coordinate; the
    values at a vertex stay until the last of its edges has been seen, so that nothing is evaluated
    twice and only the vertices along the front are held.
    """
    points = vertices.points
    n_units = int(network.stage_offsets[stage + 1] - network.stage_offsets[stage])
    bound = bounds.stage(stage)

    per_row = network.bytes_per_sample(stage) + 16 * n_units
    size = int(min(_MOST_ROWS, max(_FEWEST_ROWS, min(memory, _MOST_BYTES) // per_row)))

    def values_at(rows: Ints) -> torch.Tensor:
        return network.preactivations(embed(points[rows]), stage)

    reach = None, None
    if network.stage_is_periodic(stage):
        low, high = _range_of_units(values_at, len(points), size, n_units, pool)
        # wider, so that a unit that only touches a knot has it too, wherever the domain ends
        margin = bound.slack + 1e-9 * (1 + np.maximum(np.abs(low), np.abs(high)))
        reach = low - margin, high + margin
    knots = network.knots(stage, *reach)
    rounding = 2 * EPS * np.abs(knots.value)
    slack = bound.slack[knots.unit] + rounding
    if arbiter.exact:
        tolerance = np.full(len(slack), np.inf)
    else:
        tolerance = _CARRIED_OVER * bound.fresh[knots.unit] + rounding
    # The rounding error of a sum of n terms is some sqrt(n) times smaller than its bound (Higham
    # and Mary, A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 2019),
    # and the partial sums as much smaller than the sum of magnitudes in the bound.
    noise = np.maximum(bound.fresh[knots.unit], slack / _PESSIMISM) / bound.terms
    lipschitz = bound.lipschitz[knots.unit]
    every = Columns(knots.unit, knots.value, slack, lipschitz, tolerance, noise)
    decide = Decisions(arbiter, stage, every)

    sweep = _plan_sweep(points, edges, in_one=len(points) <= size)
    blocks: list[_Block] = []
    lowest, highest = np.full(n_units, np.inf), np.full(n_units, -np.inf)
    ever_positive = np.zeros(len(knots.unit), np.bool_)
    always_positive = np.ones(len(knots.unit), np.bool_)
    row_of = np.empty(len(points), np.int64)
    held = np.empty(0, np.int64)
    held_values = np.empty((0, n_units))
    first_edge = 0
    for start in range(0, len(points), size):
        stop = min(start + size, len(points))
        new = sweep.order[start:stop]
        rows = np.concatenate([held, new])
        row_of[rows] = np.arange(len(rows))
        values = values_at(new).numpy()
        low, high = _extremes(held_values, values, pool)
        np.minimum(lowest, low, out=lowest)
        np.maximum(highest, high, out=highest)
        error = vertices.error[rows]
        low, high = (x[knots.unit] - knots.value for x in (low, high))
        doubt = every.slack + every.slope * error.max()
        kept = np.flatnonzero((low <= doubt) & (high >= -doubt))
        positive = low > doubt
        pos, neg = _pack(held_values, values, error, every.take(kept), pool, decide)
        if decide.waiting:
            decide.settle(kept, vertices.names[rows], held_values, values, error, pos, neg)
        last_edge = int(np.searchsorted(sweep.edge_end, stop))
        mine = sweep.edge_order[first_edge:last_edge]
        first_edge = last_edge
        crossings = _cross(
            row_of[edges[mine]], pos, neg, held_values, values, error, every.take(kept), pool,
            lambda e, crossing, kept=kept, mine=mine: decide.order(
                vertices.names[edges[mine[e]]], kept, crossing
            ),
        )  # fmt: skip
        new_pos, new_neg = pos[len(held) :], neg[len(held) :]
        ever_positive |= positive
        ever_positive[kept] |= unpack_row(np.bitwise_or.reduce(new_pos, axis=0), len(kept))
        everywhere = positive.copy()
        everywhere[kept] = unpack_row(np.bitwise_and.reduce(new_pos, axis=0), len(kept))
        always_positive &= everywhere
        crossings = crossings._replace(column=kept[crossings.column].astype(np.int32))
        blocks.append(_Block(new, kept, positive, new_pos, new_neg, mine, crossings))
        still, also = (sweep.last_use[x] >= stop for x in (held, new))
        held = np.concatenate([held[still], new[also]])
        held_values = np.concatenate([held_values[still], values[also]])

    margin = bound.slack + bound.lipschitz * vertices.error.max()
    bounds.give(stage, lowest - margin, highest + margin)
    active = np.flatnonzero(ever_positive & ~always_positive)
    first_of_unit = np.searchsorted(knots.unit, knots.unit)
    piece = knots.base[knots.unit] + np.arange(len(knots.unit)) - first_of_unit
    base = knots.base.copy()
    np.add.at(base, knots.unit[always_positive], 1)
    offsets, crossings = _join_crossings(blocks, len(edges))
    pos, neg = _assemble(blocks, active, len(points), pool)
    position = np.empty(len(knots.unit), np.int32)
    position[active] = np.arange(len(active))
    return StageSigns(
        knots.unit[active], knots.value[active], piece[active], base, pos, neg,
        offsets, position[crossings.column], *crossings[2:], decide.undecided,
    )  # fmt: skip


class _Sweep(NamedTuple):
    """Order in which vertices are evaluated, and when edges are done and vertices not needed."""

    order: Ints  # (V,) vertices
    last_use: Ints  # (V,) last place in the order at which an edge needs the vertex
    edge_order: Ints  # (E,) edges by the place of their later end
    edge_end: Ints  # (E,) that place, ascending


def _plan_sweep(points: Floats, edges: NDArray[np.int32], *, in_one: bool) -> _Sweep:
    """Sweep along the first coordinate; in any order if all vertices come in one block."""
    if in_one:
        never = np.full(len(points), -1)
        at_once = np.zeros(len(edges), np.int64)
        return _Sweep(np.arange(len(points)), never, np.arange(len(edges)), at_once)
    order = np.argsort(points[:, 0], kind="stable")
    place = np.empty(len(points), np.int64)
    place[order] = np.arange(len(points))
    end = place[edges].max(axis=1)
    last_use = np.full(len(points), -1)
    np.maximum.at(last_use, edges.reshape(-1), np.repeat(end, 2))
    edge_order = np.argsort(end, kind="stable")
    return _Sweep(order, last_use, edge_order, end[edge_order])


def _pack(
    held: Floats,
    values: Floats,
    error: Floats,
    columns: Columns,
    pool: ThreadPoolExecutor,
    decide: Decisions,
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Pack the signs of all rows; what is in doubt is zero until it is settled."""
    words = (len(columns.unit) + 63) // 64
    pos = np.empty((len(held) + len(values), words), np.uint64)
    neg = np.empty_like(pos)
    new_pos, new_neg = pos[len(held) :], neg[len(held) :]
    of_held = column_kernels.pack_signs(
        held, error[: len(held)], *columns[:5], 0, len(held), pos, neg
    )
    of_new = in_parallel(
        pool,
        lambda a, b: column_kernels.pack_signs(
            values, error[len(held) :], *columns[:5], a, b, new_pos, new_neg
        ),
        len(values),
        nanoseconds=2 * len(columns.unit),
    )
    decide.found(of_held, sum(of_new))
    return pos, neg


Order = Callable[[int, NDArray[np.int32]], tuple[NDArray, NDArray, NDArray] | None]


def _cross(
    ends: Ints,
    pos: NDArray[np.uint64],
    neg: NDArray[np.uint64],
    held: Floats,
    values: Floats,
    error: Floats,
    columns: Columns,
    pool: ThreadPoolExecutor,
    exactly: Order,
) -> _Crossings:
    """List the crossings of edges, given by the rows of their ends."""
    count = np.empty(len(ends), np.int64)
    in_parallel(
        pool,
        lambda a, b: edge_kernels.count_crossings(ends, pos, neg, a, b, count),
        len(ends),
        nanoseconds=5 * pos.shape[1],
    )
    offsets = prefix(count)
    column = np.empty(offsets[-1], np.int32)
    where, spread, change = np.empty((3, offsets[-1]), np.float64)
    fresh = np.empty(offsets[-1], np.bool_)
    doubtful = np.empty(len(ends), np.bool_)
    in_parallel(
        pool,
        lambda a, b: edge_kernels.place_crossings(
            ends, pos, neg, held, values, error, *columns[:5], offsets, a, b,
            column, where, spread, change, fresh, doubtful,
        ),
        count + 1,
        nanoseconds=30 + 5 * pos.shape[1],
    )  # fmt: skip
    blur = columns.noise[column] / np.maximum(change, 2.0**-1000)
    for e in np.flatnonzero(doubtful).tolist():
        span = slice(offsets[e], offsets[e + 1])
        settled = exactly(e, column[span])
        if settled is not None:
            order, where[span], fresh[span] = settled
            column[span] = column[span][order]
            spread[span] = blur[span] = 2 * EPS
    return _Crossings(count, column, where, spread, blur, fresh)


def _extremes(held: Floats, values: Floats, pool: ThreadPoolExecutor) -> tuple[Floats, Floats]:
    """Smallest and largest value of every unit, refusing values that are not finite."""

    def work(rows: Floats) -> Floats:
        out = np.empty((3, values.shape[1]))
        column_kernels.column_range(rows, *out)
        return out

    parts = in_parallel(pool, lambda a, b: work(values[a:b]), len(values), values.shape[1])
    low, high, defect = np.stack([*parts, work(held)], axis=1)
    if np.isnan(defect).any():
        raise FloatingPointError(
            "Expected finite pre-activations on the whole domain, got inf or NaN: the network "
            "overflows float64 there. Choose a smaller domain or rescale the weights."
        )
    return low.min(axis=0), high.max(axis=0)


def _range_of_units(
    values_at: Callable[[Ints], torch.Tensor],
    n_points: int,
    size: int,
    n_units: int,
    pool: ThreadPoolExecutor,
) -> tuple[Floats, Floats]:
    """Range of every unit over all vertices, hence over the domain."""
    low = np.full(n_units, np.inf)
    high = np.full(n_units, -np.inf)
    for start in range(0, n_points, size):
        rows = np.arange(start, min(start + size, n_points))
        values = values_at(rows).numpy()
        block_low, block_high = _extremes(values[:0], values, pool)
        low, high = np.minimum(low, block_low), np.maximum(high, block_high)
    return low, high


def _assemble(
    blocks: list[_Block], active: Ints, n_points: int, pool: ThreadPoolExecutor
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Bring the packed signs of all blocks onto the columns that vary anywhere; uses them up."""
    words = (len(active) + 63) // 64
    pos = np.empty((n_points, words), np.uint64)
    neg = np.empty_like(pos)
    while blocks:
        block = blocks.pop()
        target = np.searchsorted(active, block.kept)
        varies = target < len(active)
        varies[varies] = active[target[varies]] == block.kept[varies]
        target[~varies] = -1  # touched zero in this block, but is positive nowhere
        constant = np.ones(len(active), np.bool_)
        constant[target[varies]] = False
        above = block.positive[active]
        for packed, fill, out in (
            (block.pos, constant & above, pos),
            (block.neg, constant & ~above, neg),
        ):
            spread = np.empty((len(block.rows), words), np.uint64)
            word_fill = pack_row(fill)
            in_parallel(
                pool,
                lambda a, b, s=packed, t=target, f=word_fill, o=spread: pattern_kernels.spread_bits(
                    s, t, f, a, b, o
                ),
                len(block.rows),
                nanoseconds=2 * len(active),
            )
            out[block.rows] = spread
    return pos, neg


def _join_crossings(blocks: list[_Block], n_edges: int) -> tuple[Ints, _Crossings]:
    """Bring the crossings of all blocks into the order of the edges; the offsets, and all else."""
    edge = np.concatenate([b.edges for b in blocks])
    count = np.concatenate([b.crossings.per_edge for b in blocks])
    per_edge = np.empty(n_edges, np.int64)
    per_edge[edge] = count
    offsets = prefix(per_edge)
    # crossing i of the concatenation belongs at offsets[its edge] + its place within the edge
    within = np.arange(offsets[-1]) - np.repeat(prefix(count)[:-1], count)
    target = np.repeat(offsets[edge], count) + within

    def joined(name: str) -> NDArray:
        part = np.concatenate([getattr(b.crossings, name) for b in blocks])
        out = np.empty_like(part)
        out[target] = part
        return out

    column, where, spread, blur, fresh = map(joined, _Crossings._fields[1:])
    return offsets, _Crossings(per_edge, column, where, spread, blur, fresh)
