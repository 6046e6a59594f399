"""One stage of the network seen from the vertices of a complex.

Every column is evaluated once at every vertex, in blocks that fit the memory; what remains is one
sign for each vertex and column, packed, and the places where columns cross the edges. A sign is
decided here and nowhere else: by float64 where a rigorous bound on its error allows it, and
otherwise exactly, many at once (`Meetings`) or by the arbiter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import (
    EPS,
    Floats,
    Ints,
    in_parallel,
    pack_row,
    pattern_kernels,
    prefix,
    unpack,
)
from cpwl.engine import column_kernels
from cpwl.engine.bounds import Bounds
from cpwl.engine.columns import Columns, block_rows, read_columns, unit_range
from cpwl.engine.plane import edge_kernels
from cpwl.engine.plane.doubts import Decisions, Rows
from cpwl.engine.plane.live import Live
from cpwl.engine.plane.meetings import Meetings
from cpwl.engine.plane.questions import Questions
from cpwl.engine.rational import Vertices
from cpwl.engine.work import Work


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

    vertices: Ints
    low: Floats  # (n_stage,) range of the units in the block
    high: Floats
    kept: Ints
    positive: NDArray[np.bool_]  # sign of the columns that are not kept
    pos: NDArray[np.uint64]
    neg: NDArray[np.uint64]
    edges: Ints
    crossings: _Crossings


@np.errstate(over="ignore")  # an infinite bound leaves the sign to rational arithmetic
def stage_signs(
    work: Work,
    stage: int,
    vertices: Vertices,
    edges: NDArray[np.int32],
    bounds: Bounds,
    live: Live,
    questions: Questions | None = None,
    meetings: Meetings | None = None,
) -> StageSigns:
    """Evaluate a stage at all vertices.

    Parameters
    ----------
    vertices, edges : V vertices, (E, 2)
        The complex so far; the stage is affine on each of its cells.
    bounds : Bounds
        Knows the ranges of the stages before; is given this one's.
    live : Live
        Holds the tensors behind the stage before; is left with those behind this one.
    questions : Questions, optional
        Where what float64 has close to zero is to be decided in about 106 bits.
    meetings : Meetings, optional
        Where many signs are decided before the rest is left to rational arithmetic.

    Notes
    -----
    With more than one block the vertices are swept in the order of their first coordinate; the
    values at a vertex stay until the last of its edges has been seen, so that nothing is evaluated
    twice and only the vertices along the front are held.
    """
    network, n_points = work.network, len(vertices.points)
    bound = bounds.stage(stage)
    live.begin(stage, vertices)
    size = block_rows(network, stage, work.memory // 2)
    span = None
    if network.stage_is_periodic(stage):
        parts = (np.arange(a, min(a + size, n_points)) for a in range(0, n_points, size))
        span = _joint_range(unit_range(live.units(rows, last=False), work.pool) for rows in parts)
    error = float(vertices.error.max())
    columns, base = read_columns(network, stage, bound, span, error, proven=work.arbiter.exact)
    decide = Decisions(work.arbiter, columns, questions, meetings)
    blocks = list(_blocks(work, columns, vertices, edges, decide, size, live))

    low, high = _joint_range((block.low, block.high) for block in blocks)
    bounds.give(stage, low, high, error)
    sometimes, always = _positive(blocks, len(columns.unit))
    active = np.flatnonzero(sometimes & ~always)
    first_of_unit = np.searchsorted(columns.unit, columns.unit)
    piece = base[columns.unit] + np.arange(len(columns.unit)) - first_of_unit
    np.add.at(base, columns.unit[always], 1)
    offsets, crossings = _join_crossings(blocks, len(edges))
    pos, neg = _assemble(blocks, active, n_points, work.pool)
    position = np.empty(len(columns.unit), np.int32)
    position[active] = np.arange(len(active))
    return StageSigns(
        unit=columns.unit[active], value=columns.knot[active], piece=piece[active], base=base,
        pos=pos, neg=neg, offsets=offsets, column=position[crossings.column],
        where=crossings.where, spread=crossings.spread, blur=crossings.blur, fresh=crossings.fresh,
        undecided=decide.undecided,
    )  # fmt: skip


def _joint_range(ranges: Iterable[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Smallest and largest value of every unit over all blocks."""
    first, *others = ranges
    for one in others:
        first = np.minimum(first[0], one[0]), np.maximum(first[1], one[1])
    return first


def _positive(blocks: list[_Block], n_columns: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Flag the columns that are positive at some vertex, and at all of them."""
    sometimes, always = np.zeros(n_columns, np.bool_), np.ones(n_columns, np.bool_)
    for block in blocks:
        kept, everywhere = block.kept, block.positive.copy()
        everywhere[kept] = unpack(np.bitwise_and.reduce(block.pos, axis=0))[: len(kept)]
        always &= everywhere
        sometimes |= block.positive
        sometimes[kept] |= unpack(np.bitwise_or.reduce(block.pos, axis=0))[: len(kept)]
    return sometimes, always


def _blocks(
    work: Work,
    columns: Columns,
    vertices: Vertices,
    edges: NDArray[np.int32],
    decide: Decisions,
    size: int,
    live: Live,
) -> Iterator[_Block]:
    """Evaluate block after block, and hold the values that edges of later blocks need."""
    offsets, n_points = work.network.stage_offsets, len(vertices.points)
    sweep = _plan_sweep(vertices.points, edges, in_one=n_points <= size)
    row_of = np.empty(n_points, np.int64)
    held = np.empty(0, np.int64)
    held_values = np.empty((0, int(offsets[columns.stage + 1] - offsets[columns.stage])))
    for start in range(0, n_points, size):
        stop = min(start + size, n_points)
        new = sweep.order[start:stop]
        at = np.concatenate([held, new])
        row_of[at] = np.arange(len(at))
        values = live.units(new)
        rows = Rows(vertices.names[at], vertices.error[at], held_values, values)
        first, last = np.searchsorted(sweep.edge_end, [start, stop])
        mine = sweep.edge_order[first:last]
        yield _block(new, mine, rows, row_of[edges[mine]], columns, decide, work.pool)
        still, also = (sweep.last_use[x] >= stop for x in (held, new))
        held = np.concatenate([held[still], new[also]])
        held_values = np.concatenate([held_values[still], values[also]])


def _block(
    vertices: Ints,
    edges: Ints,
    rows: Rows,
    ends: Ints,
    columns: Columns,
    decide: Decisions,
    pool: ThreadPoolExecutor,
) -> _Block:
    """Decide the signs of a block of new vertices, and place the crossings of its edges.

    ``ends`` are the edges by the rows of their ends.
    """
    low, high = _joint_range(unit_range(values, pool) for _, values in rows.parts)
    lowest, highest = (x[columns.unit] - columns.knot for x in (low, high))
    doubt = columns.slack + columns.lipschitz * rows.error.max()
    kept = np.flatnonzero((lowest <= doubt) & (highest >= -doubt))
    chosen = columns if len(kept) == len(columns.unit) else columns.take(kept)
    pos, neg, in_doubt = _pack(rows, chosen, pool)
    decide.settle(kept, rows, in_doubt, pos, neg)
    crossings = _cross(edges, ends, pos, neg, rows, chosen, decide, kept, pool)
    new = slice(len(rows.held), None)
    return _Block(
        vertices=vertices, low=low, high=high, kept=kept, positive=lowest > doubt, pos=pos[new],
        neg=neg[new], edges=edges,
        crossings=crossings._replace(column=kept[crossings.column].astype(np.int32)),
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
    rows: Rows, columns: Columns, pool: ThreadPoolExecutor
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], list[int]]:
    """Pack the signs of all rows, and count the values in doubt in each part of them.

    What is in doubt is zero until it is settled.
    """
    pos, neg = np.empty((2, len(rows.error), (len(columns.unit) + 63) // 64), np.uint64)
    in_doubt = []
    for span, values in rows.parts:

        def pack(start: int, stop: int, span: slice = span, values: Floats = values) -> int:
            return column_kernels.pack_signs(
                values, rows.error[span], columns.unit, columns.knot, columns.slack,
                columns.lipschitz, columns.tolerance, start, stop, pos[span], neg[span],
            )  # fmt: skip

        found = in_parallel(pool, pack, len(values), nanoseconds=len(columns.unit))
        in_doubt.append(sum(found))
    return pos, neg, in_doubt


def _cross(
    edges: Ints,
    ends: Ints,
    pos: NDArray[np.uint64],
    neg: NDArray[np.uint64],
    rows: Rows,
    columns: Columns,
    decide: Decisions,
    kept: Ints,
    pool: ThreadPoolExecutor,
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
            ends, pos, neg, rows.held, rows.new, rows.error, columns.unit, columns.knot,
            columns.slack, columns.lipschitz, columns.tolerance, offsets, a, b,
            column, where, spread, change, fresh, doubtful,
        ),
        count + 1,
        nanoseconds=30 + 5 * pos.shape[1],
    )  # fmt: skip
    blur = columns.noise[column] / np.maximum(change, 2.0**-1000)
    wanted = np.flatnonzero(doubtful)
    spans = [slice(offsets[e], offsets[e + 1]) for e in wanted.tolist()]
    crossing = [kept[column[span]] for span in spans]
    orders = decide.order(edges[wanted], rows.names[ends[wanted]], crossing)
    for span, settled in zip(spans, orders, strict=True):
        if settled is not None:
            order, where[span], fresh[span] = settled
            column[span] = column[span][order]
            spread[span] = blur[span] = 2 * EPS
    return _Crossings(
        per_edge=count, column=column, where=where, spread=spread, blur=blur, fresh=fresh
    )


def _assemble(
    blocks: list[_Block], active: Ints, n_points: int, pool: ThreadPoolExecutor
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Bring the packed signs of all blocks onto the columns that vary anywhere."""
    if len(blocks) == 1 and np.array_equal(blocks[0].kept, active):
        return blocks[0].pos, blocks[0].neg
    words = (len(active) + 63) // 64
    pos, neg = np.empty((2, n_points, words), np.uint64)
    while blocks:  # block after block leaves the list, and the memory
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
            spread = np.empty((len(block.vertices), words), np.uint64)
            word_fill = pack_row(fill)
            in_parallel(
                pool,
                lambda a, b, s=packed, t=target, f=word_fill, o=spread: pattern_kernels.spread_bits(
                    s, t, f, a, b, o
                ),
                len(block.vertices),
                nanoseconds=2 * len(active),
            )
            out[block.vertices] = spread
    return pos, neg


def _join_crossings(blocks: list[_Block], n_edges: int) -> tuple[Ints, _Crossings]:
    """Bring the crossings of all blocks into the order of the edges; the offsets, and all else."""
    if len(blocks) == 1:  # in the order of the edges already
        crossings = blocks[0].crossings
        return prefix(crossings.per_edge), crossings
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

    return offsets, _Crossings(per_edge, *map(joined, _Crossings._fields[1:]))
