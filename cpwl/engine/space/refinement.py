"""Refinement of a polytope stage by stage, as a face lattice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cpwl.arrays import Floats, Ints, padded
from cpwl.domain import Domain
from cpwl.engine.bounds import Bounds
from cpwl.engine.columns import Columns, block_rows, read_columns, unit_range
from cpwl.engine.residuals import can_tighten
from cpwl.engine.space import lattice as lattices
from cpwl.engine.space.cutting import split
from cpwl.engine.space.lattice import Lattice, RefinedLattice
from cpwl.engine.space.merging import merge_contested
from cpwl.engine.space.tightening import side_planes, tighten
from cpwl.engine.work import TooLargeError, Work, require_few, units_at

# Error bounds of vertices, as a share of the domain's extent. TIGHTEN_ABOVE: bound the vertex anew
# from the residuals of its knots. That takes a look at all incidences and P + 1 forward passes at
# these vertices, so it is to be rarer than in the plane, where the value is 1e-9. Of 3-8-8-8-8-8-8
# and 4-7-7-7-7, with weights of twice the usual size, 28 and 7 signs go to rational arithmetic,
# none at 1e-9, 98 and 29 at 1e-7. Other values change the last bits of the vertices of such
# networks.
_TIGHTEN_ABOVE = 1e-8


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
    largest = _TIGHTEN_ABOVE * float(np.ptp(corners.points, axis=0).max())
    base = np.zeros(network.num_units, np.int32)
    bit_unit = np.empty(0, np.int32)
    undecided = broken = 0
    for stage in range(network.num_stages):
        first = int(network.stage_offsets[stage])
        try:
            seen = _look(work, stage, current, bounds)
            room = work.memory - lattices.nbytes(current)
            made = split(current, seen.values, seen.columns, seen.evaluate, work.arbiter, room)
        except TooLargeError as error:
            return RefinedLattice(
                lattice=current, bit_unit=bit_unit, base=base, undecided=undecided, broken=broken,
                stages=stage, needed=error.needed,
            )  # fmt: skip
        current = made.lattice
        undecided, broken = undecided + made.undecided, broken + made.broken
        unit = seen.columns.unit
        base[first : first + len(seen.base)] = seen.base
        np.add.at(base, first + unit[made.above], 1)
        bits = (first + unit[made.varies]).astype(np.int32)
        bit_unit = np.concatenate([bit_unit, padded(bits, np.int32)])
        more = stage + 1 < network.num_stages and work.arbiter.exact
        if more and can_tighten(network, stage + 1):
            current = tighten(current, network, bounds, stage + 1, sides, bit_unit, base, largest)
        current = merge_contested(current, network, stage, bit_unit, base, work.pool)
        work.report(1 / network.num_stages, len(current.patterns))
        require_few(work, stage, len(current.patterns))
    return RefinedLattice(
        lattice=current, bit_unit=bit_unit, base=base, undecided=undecided, broken=broken,
        stages=network.num_stages, needed=0,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Seen:
    """One stage seen from the vertices of a lattice."""

    columns: Columns  # those that may vary
    values: Floats  # (V, K)
    base: Ints  # (n_stage,) piece of each unit where none of the columns is positive
    evaluate: Callable[[Floats], Floats]


def _look(work: Work, stage: int, lattice: Lattice, bounds: Bounds) -> _Seen:
    """Evaluate a stage at all vertices, in blocks, and pick the columns that may vary."""
    points, error = lattice.points, lattice.error
    bound = bounds.stage(stage)
    size = block_rows(work.network, stage, work.memory // 2)
    blocks = [slice(a, a + size) for a in range(0, len(points), size)]
    n_units = len(bound.slack)

    # all units' values are kept if they take a small part of the memory, otherwise computed twice
    room = work.memory - lattices.nbytes(lattice)
    held: list[Floats] | None = [] if 32 * len(points) * n_units <= room else None
    low, high = np.full(n_units, np.inf), np.full(n_units, -np.inf)
    surely_low, surely_high = high.copy(), low.copy()  # of what is known for certain
    for block in blocks:
        values = units_at(work, stage, points[block])
        block_low, block_high = unit_range(values, work.pool)
        np.minimum(low, block_low, out=low)
        np.maximum(high, block_high, out=high)
        spread = np.multiply.outer(error[block], bound.lipschitz)
        np.maximum(surely_low, (values + spread).max(axis=0), out=surely_low)
        np.minimum(surely_high, (values - spread).min(axis=0), out=surely_high)
        if held is not None:
            held.append(values)
    bounds.give(stage, low, high, error.max())

    columns, base = read_columns(
        work.network, stage, bound, (low, high), float(error.max()), proven=work.arbiter.exact
    )
    above = surely_high[columns.unit] - columns.knot > columns.slack
    below = surely_low[columns.unit] - columns.knot < -columns.slack
    np.add.at(base, columns.unit[above], 1)
    columns = columns.take(np.flatnonzero(~above & ~below))
    needed = 8 * len(points) * len(columns.unit)
    if needed > room:
        raise TooLargeError(needed)

    def evaluate(points: Floats) -> Floats:
        return units_at(work, stage, points)[:, columns.unit] - columns.knot

    values = np.empty((len(points), len(columns.unit)))
    for i, block in enumerate(blocks):
        if held is None:
            values[block] = evaluate(points[block])
        else:
            values[block] = held[i][:, columns.unit] - columns.knot
    return _Seen(columns, values, base, evaluate)
