"""Working a domain of any dimension off stage by stage, as a face lattice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import EPS, Floats, Ints, padded, pattern_kernels
from cpwl.domain import Domain
from cpwl.engine import column_kernels
from cpwl.engine.bounds import Bounds, StageBounds
from cpwl.engine.space import lattice as lattices
from cpwl.engine.space.cutting import Columns, split
from cpwl.engine.space.lattice import Lattice, RefinedLattice
from cpwl.engine.space.merging import merge_contested
from cpwl.engine.space.tightening import side_planes, tighten
from cpwl.engine.work import TooLargeError, Work
from cpwl.network import Knots

# Blocks of vertices that are evaluated at once; larger ones only leave the caches.
_MOST_BYTES = 2**26
_MOST_ROWS = 16384
_FEWEST_ROWS = 64
# Where a network is too large for rational arithmetic, zero is what lies within this many times the
# last layer's part of the error bound.
_CARRIED_OVER = 16.0
# Error bounds of vertices larger than this share of the domain's extent are tightened before the
# next stage: smaller ones leave fewer signs in doubt than the second look costs.
_LOOK_AGAIN = 1e-8


def refine_lattice(work: Work, domain: Domain) -> RefinedLattice:
    """Subdivide a domain of any dimension by all stages, or by as many as fit into the memory.

    Notes
    -----
    Memory: the values of a stage's columns at its vertices, and about 60 bytes for each face of any
    dimension (2 ** P a cell) and 4 for each incidence.
    """
    network = work.network
    corners = work.arbiter.corners()
    current = lattices.whole(domain, corners)
    bounds = Bounds(network, domain.slice, corners.points)
    sides = side_planes(domain, corners)
    largest = _LOOK_AGAIN * float(np.ptp(corners.points, axis=0).max())
    base = np.zeros(network.num_units, np.int32)
    bit_unit = np.empty(0, np.int32)
    stage_of_contest = (
        np.searchsorted(network.stage_offsets, network.contests[:, 0], side="right") - 1
    )
    undecided = broken = 0

    def pieces_of(cells: Ints) -> NDArray[np.int32]:
        out = np.empty((len(cells), network.num_units), np.int32)
        pattern_kernels.unpack_pieces(current.patterns[cells], bit_unit, base, out)
        return out

    for stage in range(network.num_stages):
        first = int(network.stage_offsets[stage])
        try:
            seen = _look(work, stage, current, bounds)
            room = work.memory - lattices.nbytes(current)
            made = split(current, seen.values, seen.columns, seen.evaluate, work.arbiter, room)
        except TooLargeError as error:
            return RefinedLattice(current, bit_unit, base, undecided, broken, stage, error.needed)
        current = made.lattice
        undecided, broken = undecided + made.undecided, broken + made.broken
        unit = seen.columns.unit
        np.add.at(seen.base, unit[made.above], 1)
        base[first : first + len(seen.base)] = seen.base
        bits = (first + unit[made.varies]).astype(np.int32)
        bit_unit = np.concatenate([bit_unit, padded(bits, np.int32)])
        done = range(stage + 1)
        more = len(done) < network.num_stages and work.arbiter.exact
        if more and not any(map(network.stage_is_periodic, done)):
            current = tighten(
                current, network, bounds, len(done), sides, bit_unit, pieces_of, largest
            )
        contests = network.contests[stage_of_contest == stage]
        if len(contests):
            current = merge_contested(current, contests, bit_unit, base, work.pool)
        work.report(1 / network.num_stages, len(current.patterns))
    return RefinedLattice(current, bit_unit, base, undecided, broken, network.num_stages, 0)


@dataclass(frozen=True, eq=False)
class _Seen:
    """One stage seen from the vertices of a lattice."""

    columns: Columns  # those that may vary
    values: Floats  # (V, K)
    base: Ints  # (n_stage,) piece of each unit where none of the columns is positive
    evaluate: Callable[[Floats], Floats]


def _look(work: Work, stage: int, lattice: Lattice, bounds: Bounds) -> _Seen:
    """Evaluate a stage at all vertices, in blocks, and pick the columns that may vary."""
    network, points = work.network, lattice.points
    n_points = len(points)
    n_units = int(network.stage_offsets[stage + 1] - network.stage_offsets[stage])
    bound = bounds.stage(stage)
    per_row = network.bytes_per_sample(stage) + 16 * n_units
    size = int(min(_MOST_ROWS, max(_FEWEST_ROWS, min(work.memory // 2, _MOST_BYTES) // per_row)))
    blocks = [slice(a, min(a + size, n_points)) for a in range(0, n_points, size)]

    def units_at(points: Floats) -> Floats:
        return network.preactivations(work.embed(points), stage).numpy()

    # all units' values are kept if they take a small part of the memory, otherwise computed twice
    room = work.memory - lattices.nbytes(lattice)
    held: list[Floats] | None = [] if 32 * n_points * n_units <= room else None
    low, high = np.full(n_units, np.inf), np.full(n_units, -np.inf)
    surely_low, surely_high = high.copy(), low.copy()  # of what is known for certain
    for block in blocks:
        values = units_at(points[block])
        _extend(low, high, values)
        spread = np.multiply.outer(lattice.error[block], bound.lipschitz)
        np.maximum(surely_low, (values + spread).max(axis=0), out=surely_low)
        np.minimum(surely_high, (values - spread).min(axis=0), out=surely_high)
        if held is not None:
            held.append(values)
    margin = bound.slack + bound.lipschitz * lattice.error.max()
    bounds.give(stage, low - margin, high + margin)
    reach = None, None
    if network.stage_is_periodic(stage):
        # wider, so that a unit that only touches a knot has it too, wherever the domain ends
        margin = bound.slack + 1e-9 * (1 + np.maximum(np.abs(low), np.abs(high)))
        reach = low - margin, high + margin
    knots = network.knots(stage, *reach)
    columns = _columns(stage, knots, bound)

    above = surely_high[knots.unit] - knots.value > columns.slack
    below = surely_low[knots.unit] - knots.value < -columns.slack
    base = knots.base.copy()
    np.add.at(base, knots.unit[above], 1)
    kept = np.flatnonzero(~above & ~below)
    columns = _take(columns, kept)
    needed = 8 * n_points * len(kept)
    if needed > room:
        raise TooLargeError(needed)

    def evaluate(points: Floats) -> Floats:
        return units_at(points)[:, columns.unit] - columns.knot

    values = np.empty((n_points, len(kept)))
    for i, block in enumerate(blocks):
        if held is None:
            values[block] = evaluate(points[block])
        else:
            values[block] = held[i][:, columns.unit] - columns.knot
    return _Seen(columns, values, base, evaluate)


def _extend(low: NDArray, high: NDArray, values: Floats) -> None:
    """Extend ranges by the values of a block, refusing values that are not finite."""
    block_low, block_high, defect = np.empty((3, values.shape[1]))
    column_kernels.column_range(values, block_low, block_high, defect)
    if np.isnan(defect).any():
        raise FloatingPointError(
            "Expected finite pre-activations on the whole domain, got inf or NaN: the network "
            "overflows float64 there. Choose a smaller domain or rescale the weights."
        )
    np.minimum(low, block_low, out=low)
    np.maximum(high, block_high, out=high)


def _columns(stage: int, knots: Knots, bound: StageBounds) -> Columns:
    """Put the knots of a stage and what bounds the errors of its units together."""
    rounding = 2 * EPS * np.abs(knots.value)
    slack = bound.slack[knots.unit] + rounding
    tolerance = np.minimum(slack, _CARRIED_OVER * bound.fresh[knots.unit] + rounding)
    lipschitz = bound.lipschitz[knots.unit]
    return Columns(stage, knots.unit, knots.value, slack, lipschitz, tolerance)


def _take(columns: Columns, which: Ints) -> Columns:
    """Return some of the columns."""
    stage, unit, knot, slack, lipschitz, tolerance = columns
    return Columns(
        stage, unit[which], knot[which], slack[which], lipschitz[which], tolerance[which]
    )
