"""Exact partition of the neighbourhood V_z of a latent: its cells, its knots, and their folds.

A *knot* of V_z is what `approx.knots` counts there: a breakpoint of a unit that is passed inside
V_z, or a window of a max-pooling whose winner changes. It *folds* if it lies in more than one
hyperplane.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import cpwl
from cpwl.arrays import Floats, Ints, Ragged, take_rows
from cpwl.network.program import held_switching

_POOLINGS = ("max_pool", "adaptive_max_pool", "amax", "amin")
_FLAT = 1e-7  # vertices so near to a hyperplane, in radii, lie in it
_CELLS = 64  # up to which slopes are taken in every one
_VALUES = 2**22  # of switching functions held at a time


class Structure(NamedTuple):
    """What the units of a network are to `approx.knots`.

    Attributes
    ----------
    stage : (units,) int64
        Stage of each unit; of a match, that of the first round of its window.
    window : (units,) int64
        Number of the window that the unit is a match of, or -1.
    """

    stage: Ints
    window: Ints


class Neighbourhood(NamedTuple):
    """The exact side of one V_z.

    Attributes
    ----------
    cells, knots, folds : int
        Cells, knots, and knots that fold; -1 where V_z was not enumerated.
    fold_radius : float
        The radius from which on V_z has a fold: for P <= 2 as it is, otherwise the radius of this
        V_z if anything folds in it; inf if nothing does, NaN where it was not enumerated.
    proven : bool
        Whether the theorem of this section's measurement says that jvp and hull are exact here.
    """

    cells: int
    knots: int
    folds: int
    fold_radius: float
    proven: bool


NOT_ENUMERATED = Neighbourhood(-1, -1, -1, math.nan, False)


def structure(network: cpwl.Network) -> Structure:
    """Sort the units into scalar ones and the matches of pooling windows."""
    stage = np.repeat(np.arange(network.num_stages), np.diff(network.stage_offsets))
    match = np.zeros(network.num_units, bool)
    for group in network.groups:
        if group.kind in _POOLINGS:
            match[group.first_unit : group.first_unit + math.prod(group.shape)] = True
    parent, _, child = network.contests.T
    links = coo_array((np.ones(len(parent), bool), (parent, child)), (len(stage),) * 2)
    label = connected_components(links, directed=False)[1].astype(np.int64)
    first = np.full(int(label.max(initial=-1)) + 1, network.num_stages)
    np.minimum.at(first, label, stage)
    return Structure(np.where(match, first[label], stage), np.where(match, label, -1))


def zaslavsky(knots: int, dim: int) -> int:
    """Return the largest number of cells that hyperplanes cut a `dim`-dimensional space into."""
    return sum(math.comb(knots, i) for i in range(dim + 1))


def neighbourhood(
    network: cpwl.Network,
    units: Structure,
    z: Floats,
    radius: float,
    basis: Floats,
    memory: int,
) -> Neighbourhood:
    """Enumerate V_z = {z + c @ basis : |c|_1 <= radius}.

    Not enumerated if `memory` does not suffice for all of its cells.
    """
    domain = cpwl.cross_polytope(z, radius, basis)
    partition = cpwl.subdivide(network, domain, memory=memory, progress=False)
    if not partition.status.complete:
        return NOT_ENUMERATED
    inner = np.flatnonzero((partition.facet_cells >= 0).all(axis=1))
    passed, owner = _passed(partition, inner, units)
    knots = _knots(passed, owner, partition.facet_unit[inner], units)
    folded = [facets for rows in knots.T if _folds(partition, facets := inner[rows], radius)]
    first = math.inf
    for facets in folded:
        first = min(first, _fold_radius(partition, facets, radius))
    proven = _proven(partition, owner, units, z, radius, basis)
    return Neighbourhood(partition.num_cells, knots.shape[1], len(folded), first, proven)


def _passed(
    partition: cpwl.Partition, inner: Ints, units: Structure
) -> tuple[NDArray[np.bool_], Ints]:
    """Tell which breakpoints are passed at each inner facet, (F, K), and whose they are, (K,)."""
    below, above = partition.facet_cells[inner].T
    differ = partition.patterns[below] ^ partition.patterns[above]
    some = np.bitwise_or.reduce(differ, axis=0)
    bits = np.arange(64 * len(some))
    bits = bits[(some[bits // 64] >> (bits % 64).astype(np.uint64)) & np.uint64(1) > 0]
    passed = (differ[:, bits // 64] >> (bits % 64).astype(np.uint64)) & np.uint64(1) > 0
    return passed, partition.bit_unit[bits].astype(np.int64)


def _knots(
    passed: NDArray[np.bool_],
    owner: Ints,
    named: NDArray[np.int32],
    units: Structure,
) -> NDArray[np.bool_]:
    """Tell which knots are passed at each inner facet, (F, knots).

    A window's matches are one knot. They count at facets that a match gave their name: at others
    an earlier unit bends, and where candidates were tied before (as zeros behind a ReLU are) the
    match is decided by it without a knot of its own.
    """
    window = units.window[owner]
    scalar = passed[:, window < 0]
    here = units.window[named] >= 0
    numbers = np.unique(window[window >= 0])
    pools = [passed[:, window == number].any(axis=1) & here for number in numbers]
    columns = np.stack([*scalar.T, *pools], axis=1) if len(owner) else scalar
    return columns[:, columns.any(axis=0)]


def _folds(partition: cpwl.Partition, facets: Ints, radius: float) -> bool:
    """Whether the facets lie in more than one hyperplane."""
    points = partition.points[np.unique(_corners(partition, facets))]
    if len(points) <= partition.dim:
        return False
    off = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)[-1]
    return bool(off > _FLAT * radius * math.sqrt(len(points)))


def _fold_radius(partition: cpwl.Partition, facets: Ints, radius: float) -> float:
    """Return the least radius at which a knot that folds has facets in two hyperplanes.

    That is the distance of the nearest facet outside of the hyperplane of the nearest of all: of
    any two facets in different hyperplanes one is not in that one.
    """
    if partition.dim > 2:
        return radius
    points = partition.points[_corners(partition, facets)].reshape(-1, partition.dim, partition.dim)
    if partition.dim == 1:
        return float(np.sort(np.abs(points[:, 0, 0]))[1])
    away = segment_distances(points[:, 0], points[:, 1])
    nearest = int(away.argmin())
    start, end = points[nearest]
    length = np.hypot(*(end - start))
    normal = np.array([start[1] - end[1], end[0] - start[0]]) / length
    # the direction of a short segment is as uncertain as its ends are
    reach = np.linalg.norm(points - start, axis=-1) / length
    off = np.abs((points - start) @ normal) > radius * (_FLAT + 0.01 * _FLAT * reach)
    return float(away[off.any(axis=1)].min(initial=radius))


def segment_distances(a: Floats, b: Floats) -> Floats:
    """Return the least |x|_1 on each segment from a to b, both (n, 2)."""
    # |x|_1 is convex and linear between the ends and the places where a coordinate is zero
    step = b - a
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = np.nan_to_num(np.clip(-a / step, 0, 1), nan=0.0)
    share = np.concatenate([np.zeros((len(a), 1)), np.ones((len(a), 1)), zero], axis=1)
    places = a[:, None] + share[..., None] * step[:, None]
    return np.abs(places).sum(axis=-1).min(axis=1)


def _corners(partition: cpwl.Partition, facets: Ints) -> NDArray[np.int32]:
    """List the vertices of facets, end to end."""
    return take_rows(Ragged(partition.facet_offsets, partition.facet_corners), facets)[1]


def _proven(
    partition: cpwl.Partition,
    owner: Ints,
    units: Structure,
    z: Floats,
    radius: float,
    basis: Floats,
) -> bool:
    """Whether the theorem of this section's measurement holds for every unit of the network."""
    network = partition.network
    assert network is not None
    own = np.repeat(np.arange(network.num_stages), np.diff(network.stage_offsets))
    first = int(own[owner].min(initial=network.num_stages))
    # up to there switching functions are affine on V_z; of deeper ones windows are not looked at
    if bool((units.stage[units.window >= 0] > first).any()):
        return False
    deeper = range(first + 1, network.num_stages)
    if not deeper:
        return True
    if partition.num_cells > _CELLS or any(map(network.stage_is_periodic, deeper)):
        return False
    here, slope = _slopes(partition, z, basis)
    for stage in deeper:
        knots = network.knots(stage)
        unit = knots.unit + network.stage_offsets[stage]
        scalar = units.window[unit] < 0
        away = np.abs(here[unit] - knots.value)
        # rounding can only make the test harder to pass
        if bool((scalar & (away < (1 + 1e-6) * radius * slope[unit])).any()):
            return False
    return True


def _slopes(partition: cpwl.Partition, z: Floats, basis: Floats) -> tuple[Floats, Floats]:
    """Return every switching function at z, and its largest slope along the basis in any cell."""
    network = partition.network
    assert network is not None
    program, stages = network.program, network.num_stages
    center = torch.from_numpy(z)[None]
    here = held_switching(program, center, network.pieces(center), stages)[0].numpy()
    # switching functions with the units held are affine: unit steps give their slopes
    places = torch.cat([center, center + torch.from_numpy(basis)])
    slope = np.zeros(network.num_units)
    step = max(1, _VALUES // (len(places) * network.num_units))
    for start in range(0, partition.num_cells, step):
        held = torch.from_numpy(partition.pieces(slice(start, start + step)))
        cells = len(held)
        found = held_switching(
            program,
            places.repeat(cells, *(1 for _ in z.shape)),
            held.repeat_interleave(len(places), dim=0),
            stages,
        ).unflatten(0, (cells, len(places)))
        moved = (found[:, 1:] - found[:, :1]).abs().amax(dim=(0, 1))
        slope = np.maximum(slope, moved.numpy())
    return here, slope
