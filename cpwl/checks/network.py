"""Checks of a partition against its network, on a sample of its facets and cells."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from cpwl.affine import affine_maps
from cpwl.arrays import EPS, Floats, Ints
from cpwl.checks.findings import SMALLEST, Log, Tolerances
from cpwl.checks.plane import Differences
from cpwl.domain import Domain
from cpwl.network import Knots, Network
from cpwl.network.program import error_analysis, output_bound, rounding_noise
from cpwl.partition import Partition

# Times the change of an output by a few random roundings.
_NOISE_AT_MOST = 256.0


def choose(items: Ints, count: int, random: np.random.Generator) -> Ints:
    """Choose `count` of the items, ascending; all of them if there are no more."""
    if len(items) <= count:
        return items
    return np.sort(random.choice(items, size=count, replace=False, shuffle=False))


def sample_facets(
    partition: Partition, others: Differences, count: int, random: np.random.Generator
) -> Ints:
    """Choose inner facets, and as many again of those across which several units change."""
    inner = np.flatnonzero((partition.facet_cells >= 0).all(1))
    several = choose(np.unique(others.facet), count, random)
    return np.union1d(choose(inner, count, random), several)


def check_knots(
    partition: Partition, facets: Ints, others: Differences, log: Log, tolerances: Tolerances
) -> float:
    """Check that every unit that changes across a facet is at its breakpoint along it.

    Returns the largest distance in units of the bound on its rounding error. Units whose piece has
    no effect on one of the two cells (the lost half of a maximum) may change freely.
    """
    network = _network(partition)
    chosen = np.isin(others.facet, facets)
    facet = np.concatenate([facets, others.facet[chosen]])
    unit = np.concatenate([partition.facet_unit[facets].astype(np.int64), others.unit[chosen]])
    worst, wrong, idle = 0.0, [], []
    for stage in range(network.num_stages):
        first, last = (int(x) for x in network.stage_offsets[stage : stage + 2])
        here = np.flatnonzero((first <= unit) & (unit < last))
        here = here[np.argsort(facet[here], kind="stable")]
        for rows in _runs(len(here), _sample_bytes(partition, stage), log):
            mine, own = facet[here[rows]], unit[here[rows]]
            pieces = partition.pieces(partition.facet_cells[mine].reshape(-1).astype(np.int64))
            lost = _without_effect(network, pieces)
            row = np.arange(len(mine))
            lost = lost[2 * row, own] | lost[2 * row + 1, own]
            idle.append(mine[lost & (own == partition.facet_unit[mine])])
            lower = np.minimum(pieces[2 * row, own], pieces[2 * row + 1, own])
            off = _knot_distance(partition, stage, mine, own - first, lower, tolerances)
            off[lost] = 0.0
            worst = max(worst, float(off.max(initial=0.0)))
            wrong.append(mine[~(off <= tolerances.knots)])
    nothing = [np.empty(0, np.int64)]
    log.add(
        "units that change across a facet vanish there",
        "facet", len(facets), np.unique(np.concatenate(nothing + wrong)),
    )  # fmt: skip
    log.add(
        "facets belong to units that matter",
        "facet", len(facets), np.unique(np.concatenate(nothing + idle)),
    )  # fmt: skip
    return worst


def _knot_distance(
    partition: Partition,
    stage: int,
    facets: Ints,
    units: Ints,
    lower: NDArray[np.int32],
    tolerances: Tolerances,
) -> Floats:
    """Distance of units (n,) from the breakpoint above piece `lower` on facets (n,), at corners.

    In units of what rounding makes of it: in the unit, in its breakpoint and in the corner.
    """
    network = _network(partition)
    ends = _facet_corners(partition, facets)
    z = _latents(partition, partition.points[ends.reshape(-1)])
    before = network.preactivations(z, stage).numpy()
    bound = np.maximum(_rounding(partition, z, stage), 1e-300)
    knots = _knots(network, stage, before, 2 * tolerances.knots * bound)
    place = lower - knots.base[units]
    first, last = (np.searchsorted(knots.unit, units, side=side) for side in ("left", "right"))
    known = (place >= 0) & (place < last - first)
    value = np.zeros(len(units))
    value[known] = knots.value[(first + place)[known]]
    own = before.reshape(*ends.shape, -1)[np.arange(len(units)), :, units]
    rounding = bound[units] + 2 * EPS * np.abs(value)
    off = np.abs(own - value[:, None]).max(axis=1) / rounding
    off[~known] = np.inf
    return off


def _facet_corners(partition: Partition, facets: Ints) -> Ints:
    """Return the corners of facets (n, k), the shorter rows filled up with their first corner."""
    offsets = partition.facet_offsets
    sizes = offsets[facets + 1] - offsets[facets]
    place = np.arange(int(sizes.max(initial=1)))
    place = offsets[facets][:, None] + np.where(place < sizes[:, None], place, 0)
    return partition.facet_corners[place].astype(np.int64)


def check_continuity(partition: Partition, facets: Ints, log: Log, tolerances: Tolerances) -> float:
    """Check that the maps on both sides of a facet agree at its corners; return the worst error."""
    outputs = int(np.prod(_network(partition).output_shape, dtype=np.int64))
    errors, scales = [np.empty(0)], [np.empty(0)]
    for rows in _runs(len(facets), 48 * outputs * (partition.dim + 1), log):
        mine = facets[rows]
        cells = partition.facet_cells[mine].astype(np.int64)
        ends = np.repeat(partition.points[_facet_corners(partition, mine)], 2, axis=0)
        value, scale = _evaluate_maps(partition, cells.reshape(-1), ends)
        value = value.reshape(len(mine), 2, -1)
        errors.append(np.abs(value[:, 0] - value[:, 1]).max(axis=-1, initial=0.0))
        scales.append(scale.reshape(len(mine), 2).max(axis=1))
    relative = _relative(partition, np.concatenate(errors), np.concatenate(scales))
    most = _values_tolerance(partition, tolerances)
    log.add("maps agree on facets", "facet", len(facets), facets[~(relative <= most)])
    return float(relative.max(initial=0.0))


def check_centres(
    partition: Partition, cells: Ints, log: Log, tolerances: Tolerances
) -> tuple[float, int]:
    """Check pattern and map of cells against the network at the mean of their corners.

    Returns the worst relative error of the output and the number of units too near a breakpoint.
    """
    network = _network(partition)
    centres = _centres(partition, cells)
    undecided, wrong = 0, []
    for stage in range(network.num_stages):
        first, last = (int(x) for x in network.stage_offsets[stage : stage + 2])
        for rows in _runs(len(cells), _sample_bytes(partition, stage), log):
            z = _latents(partition, centres[rows])
            pieces = partition.pieces(cells[rows])
            least, most = _possible_pieces(partition, z, stage, tolerances)
            matter = ~_without_effect(network, pieces)[:, first:last]
            own = pieces[:, first:last]
            undecided += int(((least < most) & matter).sum())
            bad = matter & ((own < least) | (own > most))
            wrong.append(cells[rows][bad.any(axis=1)])
    failed = np.unique(np.concatenate([np.empty(0, np.int64), *wrong]))
    log.add("patterns are the network's at the centres", "cell", len(cells), failed)

    outputs = int(np.prod(network.output_shape, dtype=np.int64))
    errors, scales = [np.empty(0)], [np.empty(0)]
    each = 24 * outputs * (partition.dim + 1) + _sample_bytes(partition)
    for rows in _runs(len(cells), each, log):
        value, scale = _evaluate_maps(partition, cells[rows], centres[rows][:, None, :])
        z = _latents(partition, centres[rows])
        expected = network(z).numpy().reshape(len(value), -1)
        errors.append(np.abs(value[:, 0] - expected).max(axis=-1, initial=0.0))
        scales.append(scale)
    relative = _relative(partition, np.concatenate(errors), np.concatenate(scales))
    wrong = cells[~(relative <= _values_tolerance(partition, tolerances))]
    log.add("maps are the network's at the centres", "cell", len(cells), wrong)
    return float(relative.max(initial=0.0)), undecided


def _possible_pieces(
    partition: Partition, z: torch.Tensor, stage: int, tolerances: Tolerances
) -> tuple[Ints, Ints]:
    """Least and greatest piece of every unit that rounding leaves open, (n, n_stage) each."""
    network = _network(partition)
    before = network.preactivations(z, stage).numpy()
    slack = tolerances.knots * _rounding(partition, z, stage)
    knots = _knots(network, stage, before, slack)
    rounding = tolerances.knots * 2 * EPS * np.abs(knots.value)
    units = np.arange(before.shape[1])
    first = np.searchsorted(knots.unit, units)
    sure, possible = (_keys(knots.unit, knots.value + off) for off in (rounding, -rounding))
    least = np.searchsorted(sure, _keys(units, before - slack), side="left")
    most = np.searchsorted(possible, _keys(units, before + slack), side="right")
    return knots.base + least - first, knots.base + most - first


def _keys(units: Ints, values: Floats) -> NDArray[np.complex128]:
    """Return numbers that numpy orders by unit first, then by value."""
    keys = np.empty(values.shape, np.complex128)
    keys.real, keys.imag = units, values
    return keys


def _knots(network: Network, stage: int, values: Floats, within: Floats) -> Knots:
    """Breakpoints of a stage; of a periodic one those within (n_stage,) of values (n, n_stage)."""
    if not network.stage_is_periodic(stage):
        return network.knots(stage)
    low, high = values.min(axis=0), values.max(axis=0)
    spread = within + 64 * EPS * np.maximum(np.abs(low), np.abs(high))
    return network.knots(stage, low - spread, high + spread)


def _rounding(partition: Partition, z: torch.Tensor, stage: int) -> Floats:
    """Bound the rounding error of a stage, (n_stage,), at z and anywhere between the corners.

    A vertex is as exact as the edge that it was placed on is long, so that the magnitudes at the
    vertex alone would not do.
    """
    everywhere = torch.cat([z, _latents(partition, partition.domain.corners)])
    program, error = _network(partition).program, _input_error(partition)
    return error_analysis.rounding_errors(program, everywhere, stage, error)[1].numpy()


def _input_error(partition: Partition) -> torch.Tensor:
    """How far the rounding of vertices and of their embedding moves a latent, (1, *input_shape)."""
    place = partition.domain.slice
    extent = np.abs(partition.domain.corners).max(axis=0)
    size = np.abs(place.origin) + np.tensordot(extent, np.abs(place.basis), 1)
    return torch.from_numpy(EPS * size[None])


def _without_effect(network: Network, pieces: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Mark the units (n, num_units) that lost their half of a tournament on these pieces."""
    lost = np.zeros(pieces.shape, np.bool_)
    if len(network.contests):
        parent, piece, child = network.contests.T
        row, contest = np.nonzero(pieces[:, parent] == piece)
        lost[row, child[contest]] = True
    return lost


def _evaluate_maps(partition: Partition, cells: Ints, at: Floats) -> tuple[Floats, Floats]:
    """Return A s + b (n, k, D) of cells at points (n, k, P), and the scale of their values (n,).

    The scale is the largest |A| e + |b| with e the domain's extent: a point next to 0 is rounded as
    coarsely as the corners it came from.
    """
    extent = np.abs(partition.points).max(axis=0)
    values, scales = [], []
    start = 0
    for A, b in affine_maps(partition, cells):
        s = at[start : start + len(b)]
        start += len(b)
        values.append(s @ A.swapaxes(1, 2) + b[:, None])
        scales.append((np.abs(A) @ extent + np.abs(b)).max(axis=-1, initial=0.0))
    return np.concatenate(values), np.concatenate(scales)


def _relative(partition: Partition, errors: Floats, scales: Floats) -> Floats:
    """Errors relative to the scales, of which none counts as less than 1/1000 of the largest.

    Where a map is small because what some layer adds up cancels, its rounding error is not: errors
    within `_NOISE_AT_MOST` times what rounding does at some vertices, and within the bound on it,
    do not count.
    """
    network = _network(partition)
    some = partition.points[:: len(partition.points) // 256 + 1]
    z = _latents(partition, np.concatenate([partition.domain.corners, some]))
    bound = float(output_bound(network.program, z, _input_error(partition)).max())
    rounding = min(2 * bound, _NOISE_AT_MOST * rounding_noise(network.program, z))
    floor = max(1e-3 * float(scales.max(initial=0.0)), SMALLEST)
    return np.maximum(errors - rounding, 0.0) / np.maximum(scales, floor)


def coarseness(domain: Domain) -> float:
    """How much coarser vertices are than their coordinates, where latents have larger entries.

    A vertex is where float64 finds it: at a latent that is rounded by eps times its own size.
    """
    basis = domain.slice.basis.reshape(domain.dim, -1)
    unit = 2.0 ** -np.frexp(np.abs(basis).max())[1]
    extent = np.maximum(np.abs(domain.corners).max(axis=0), 1e-300)
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.abs(domain.slice.origin).reshape(-1) * unit + extent @ np.abs(basis * unit)
        moved = size @ np.abs(np.linalg.pinv(basis * unit))
        share = np.nan_to_num(moved, nan=np.inf).max() / extent.max()
    return float(np.clip(share, 1.0, 2.0**40))


def _values_tolerance(partition: Partition, tolerances: Tolerances) -> float:
    """Tolerance of outputs: positions that are coarser than it make values as coarse."""
    return max(tolerances.values, tolerances.geometry * EPS * coarseness(partition.domain))


def _centres(partition: Partition, cells: Ints) -> Floats:
    """Mean of the corners of the cells, (n, P)."""
    starts = partition.cell_offsets[cells]
    sizes = partition.cell_offsets[cells + 1] - starts
    firsts = np.cumsum(sizes) - sizes
    corner = np.repeat(starts - firsts, sizes) + np.arange(int(sizes.sum()))
    z = partition.points[partition.cell_corners[corner]]
    return np.add.reduceat(z, firsts, axis=0) / sizes[:, None]


def _latents(partition: Partition, s: Floats) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(partition.domain.slice.embed(s)))


def _sample_bytes(partition: Partition, stage: int | None = None) -> int:
    """Estimate the peak memory of one sample: activations and the pieces of two cells."""
    network = _network(partition)
    stages = range(network.num_stages) if stage is None else (stage,)
    return 16 * network.num_units + max((network.bytes_per_sample(s) for s in stages), default=0)


def _runs(count: int, bytes_each: int, log: Log) -> Iterator[slice]:
    """Cut range(count) into slices that keep to the limit on bytes."""
    size = max(1, log.limits.bytes // max(1, bytes_each))
    return (slice(start, start + size) for start in range(0, count, size))


def _network(partition: Partition) -> Network:
    """Return the network that a caller has made sure is there."""
    assert partition.network is not None
    return partition.network
