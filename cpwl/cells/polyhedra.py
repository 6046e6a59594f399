"""Cells as intersections of half-spaces and as hulls of vertices, in float64 or as fractions.

The facets of a cell are the partition's own, so that no half-space is redundant. Each lies on a
knot: on both sides of it the unit's switching function is the same affine function of the slice
coordinates, once all units are held on the pieces of one side.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from cpwl.arrays import Floats, Ints, Ragged, prefix, take_rows
from cpwl.cells.inequalities import HalfSpaces
from cpwl.domain import anticlockwise, extreme_rays, whole
from cpwl.network.program import Triangle, held_switching
from cpwl.partition import cell_indices, require_complete, require_network
from cpwl.proof import knot_rows

if TYPE_CHECKING:
    from cpwl.domain import Domain
    from cpwl.network import Network
    from cpwl.partition import Partition

_BUDGET = 128 * 2**20
# Planes that are no further apart, as a share of the domain's size, are told apart in rational
# arithmetic where the network allows it. Vertices and knots carry errors of some 1e-15.
_DOUBTFUL = 1e-9


def halfspaces(
    partition: Partition,
    cells: ArrayLike | slice | None = None,
    *,
    exact: bool = False,
    progress: bool = True,
) -> list[HalfSpaces]:
    """Return the half-spaces that bound cells: one for each facet, none redundant.

    Parameters
    ----------
    partition : Partition
        With its network.
    cells : (n,) index array, boolean mask or slice, optional
        Which cells, in the order wanted; all of them by default.
    exact : bool
        Rational coefficients (`fractions.Fraction`) instead of float64 ones. A row is then the
        unit's switching function minus its breakpoint, or its negative, not scaled; that of a side
        has whole numbers.
    progress : bool
        Show a bar where exact coefficients take longer than a second.

    Returns
    -------
    list of HalfSpaces
        One for each cell: A s <= b in slice coordinates s; knots first, then the domain's sides.

    Raises
    ------
    ValueError
        Cells that do not exist, a partition loaded without its network, or with `exact` a network
        whose affine operations are no matrices of at most 2^20 coefficients.
    PartitionError
        An incomplete partition.

    Notes
    -----
    In latent coordinates: with ``N = A @ numpy.linalg.pinv(basis)`` for the slice's basis
    (P, E), flattened, they are ``N z <= b + N @ origin``, which bound the latents whose projection
    to the slice lies in the cell.

    Neighbours have opposite rows of the same coefficients, to the last bit. In float64 the
    coefficients carry the rounding of one forward pass; `exact` ones are those of the network's
    float64 weights, without any.

    Cost: P + 1 forward passes for each facet; 30 microseconds a cell for 2-64-64-64-3. With `exact`
    one pass of rational arithmetic for each facet and a double description of each cell, 0.7 ms
    there.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 3]))
    >>> (cell,) = cpwl.halfspaces(partition, [0])
    >>> cell.A.tolist(), cell.b.tolist(), cell.unit.tolist()
    ([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [-1.0, 0.0]], [0.0, 0.0, 1.0, 1.0], [0, 1, -1, -1])
    """
    return [bounds for bounds, _ in _polyhedra(partition, cells, exact, progress)]


def vertices(
    partition: Partition,
    cells: ArrayLike | slice | None = None,
    *,
    exact: bool = False,
    progress: bool = True,
) -> list[NDArray[Any]]:
    """Return the vertices of cells.

    Parameters
    ----------
    partition : Partition
        With its network, if `exact`.
    cells : (n,) index array, boolean mask or slice, optional
        Which cells, in the order wanted; all of them by default.
    exact : bool
        The points where the exact half-spaces meet (`fractions.Fraction`), instead of float64.
    progress : bool
        As for `halfspaces`.

    Returns
    -------
    list of (k, P) ndarray
        One for each cell, in slice coordinates: anticlockwise for P = 2. `Slice.embed` gives the
        latents.

    Raises
    ------
    ValueError, PartitionError
        Cells that do not exist; with `exact` as for `halfspaces`.

    Notes
    -----
    Without `exact` these are rows of `Partition.points`. Where max-pooling has joined cells (P >=
    3), vertices of neighbours within the faces of a cell are among them; `exact` leaves them out.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.Sequential(torch.nn.Linear(1, 1)), (1,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1.0], [0.1]))
    >>> cpwl.vertices(partition)[0].tolist()
    [[-1.0], [0.1]]
    >>> cpwl.vertices(partition, exact=True)[0][1, 0]
    Fraction(3602879701896397, 36028797018963968)
    """
    if exact:
        return [corners for _, corners in _polyhedra(partition, cells, True, progress)]
    index = cell_indices(partition, cells)
    sizes, corners = take_rows(Ragged(partition.cell_offsets, partition.cell_corners), index)
    return [partition.points[corners[a:b]] for a, b in pairwise(prefix(sizes).tolist())]


class _Planes(NamedTuple):
    """Rows [a, b] of knots (a s <= b on the unit's lower piece), then of the domain's sides."""

    facet: Ints  # (K,) one that lies on the knot
    rows: Floats  # (K + sides, P + 1) with |a| = 1
    unit: Ints  # (K + sides,) -1 for sides
    sides: NDArray[Any]  # (sides, P + 1) exactly, in whole numbers


class _Conditions(NamedTuple):
    """Which planes bound which of n cells, cell by cell: knots first, then sides."""

    offsets: Ints  # (n + 1,)
    plane: Ints  # (M,)
    turned: NDArray[np.bool_]  # (M,) whether the cell is on the unit's upper piece
    doubtful: NDArray[np.bool_]  # (n,) whether rounding leaves open which of them are facets


def _polyhedra(
    partition: Partition, cells: ArrayLike | slice | None, exact: bool, progress: bool
) -> Iterator[tuple[HalfSpaces, NDArray[Any]]]:
    """Yield the half-spaces of each cell, and with `exact` its vertices."""
    require_complete(partition)
    network = require_network(partition)
    if exact and not network.matrices.complete:
        raise ValueError(
            "Expected a network whose affine operations fit into matrices, for exact coefficients, "
            f"got one where {network.matrices.reason}. Leave `exact` out for float64."
        )
    planes, conditions = _conditions(partition, cell_indices(partition, cells))
    precise = conditions.doubtful & network.matrices.complete | exact
    fractions = _fractions(partition, planes, conditions, precise, progress)
    stage = np.searchsorted(network.stage_offsets, planes.unit, side="right") - 1
    bar = tqdm(precise.tolist(), desc="cells", unit="cell", delay=1, disable=not progress)
    corners = np.empty((0, partition.dim))
    for k, decided in enumerate(bar):
        mine = slice(*conditions.offsets[k : k + 2])
        plane, turned = conditions.plane[mine], conditions.turned[mine, None]
        rows = np.where(turned, -planes.rows[plane], planes.rows[plane]) + 0.0
        kept = np.arange(len(rows))
        if decided:
            forms = np.where(turned, -fractions[plane], fractions[plane])
            kept, corners = _facets(forms)
            rows = forms if exact else rows
        elif conditions.doubtful[k]:
            kept = np.unique(_same_planes(partition.domain, rows).argmax(axis=1))
        A, b = rows[kept, :-1], rows[kept, -1]
        yield HalfSpaces(A, b, planes.unit[plane[kept]], stage[plane[kept]]), corners


def _conditions(partition: Partition, index: Ints) -> tuple[_Planes, _Conditions]:
    """Find the planes that bound cells, in float64."""
    network, domain = require_network(partition), partition.domain
    listed = Ragged(partition.cell_facet_offsets, partition.cell_facets)
    sizes, facets = take_rows(listed, index)
    owner = np.repeat(np.arange(len(index)), sizes)
    inner = partition.facet_unit[facets] >= 0
    chosen, place = np.unique(facets[inner], return_inverse=True)
    rows, below = _knots(partition, chosen)

    rays, tight = extreme_rays([whole((Fraction(1), *c)) for c in domain.exact_corners])
    sides = np.array([[*(-x for x in ray[1:]), ray[0]] for ray in rays], object)
    near = _sides_near(partition, facets[~inner], _normalised(sides), tight.argmax(axis=1))
    doubtful = np.zeros(len(index), bool)
    doubtful[owner[~inner][near.sum(axis=1) > 1]] = True
    facet, side = np.nonzero(near)
    beside = np.unique(np.stack([owner[~inner][facet], side]), axis=1)

    every = np.concatenate([owner[inner], beside[0]])
    order = np.argsort(every, kind="stable")
    offsets = prefix(np.bincount(every, minlength=len(index)))
    plane = np.concatenate([place, len(chosen) + beside[1]])[order]
    turned = np.zeros(len(plane), bool)
    turned[: len(place)] = index[owner[inner]] != below[place]
    turned = turned[order]
    unit = np.full(len(chosen) + len(sides), -1)
    unit[: len(chosen)] = partition.facet_unit[chosen]
    planes = _Planes(chosen, np.concatenate([rows, _normalised(sides)]), unit, sides)
    if partition.dim > 2 and len(network.contests):  # cells may be joined
        for k, (a, b) in enumerate(pairwise(offsets.tolist())):
            mine = np.where(turned[a:b, None], -1, 1) * planes.rows[plane[a:b]]
            doubtful[k] |= _same_planes(domain, mine).sum() > b - a
    return planes, _Conditions(offsets, plane, turned, doubtful)


def _knots(partition: Partition, facets: Ints) -> tuple[Floats, Ints]:
    """Return [a, b] for the knots of facets (n,), and the cell where a s <= b of the two."""
    network = require_network(partition)
    rows, below = np.empty((len(facets), partition.dim + 1)), np.empty(len(facets), np.int64)
    stages = range(network.num_stages)
    each = 4 * network.num_units + max(map(network.bytes_per_sample, stages), default=0)
    for run in _runs(len(facets), (partition.dim + 1) * each):
        pieces, lower, below[run] = _pieces_beside(partition, facets[run])
        units = partition.facet_unit[facets[run]].astype(np.int64)
        rows[run] = _float_rows(network, partition.domain, pieces, units, lower)
    return rows, below


def _fractions(
    partition: Partition,
    planes: _Planes,
    conditions: _Conditions,
    cells: NDArray[np.bool_],
    progress: bool,
) -> NDArray[Any]:
    """Return the rows of the planes exactly, as far as some of the cells need them."""
    table = np.empty((len(planes.unit), partition.dim + 1), object)
    count = len(planes.facet)
    table[count:] = planes.sides
    needed = np.unique(conditions.plane[np.repeat(cells, np.diff(conditions.offsets))])
    needed = needed[needed < count]
    network, place = require_network(partition), partition.domain.slice
    for run in _runs(len(needed), 8 * network.num_units):
        mine = needed[run]
        pieces, lower, _ = _pieces_beside(partition, planes.facet[mine])
        table[mine] = knot_rows(network, place, pieces, planes.unit[mine], lower, progress=progress)
        table[mine, -1] *= -1
    return table


def _pieces_beside(partition: Partition, facets: Ints) -> tuple[NDArray[np.int32], Ints, Ints]:
    """Return patterns (n, num_units) that make the unit of each facet what it is there.

    Also its lower piece there, and the cell that is on it. A pattern is that of one of the two
    cells; but of a match between two winners the other cell knows the second one.
    """
    network = require_network(partition)
    units = partition.facet_unit[facets].astype(np.int64)
    cells = partition.facet_cells[facets].astype(np.int64)
    pieces, others = (partition.pieces(column) for column in cells.T)
    row = np.arange(len(facets))
    here, there = pieces[row, units], others[row, units]
    parent, piece, child = network.contests.T.astype(np.int64)
    keys = 2 * parent + piece
    order = np.argsort(keys, kind="stable")
    first, last = (np.searchsorted(keys[order], 2 * units + here, x) for x in ("left", "right"))
    starts = prefix(last - first)
    match = np.repeat(row, last - first)
    lost = child[order[np.arange(len(match)) + (first - starts[:-1])[match]]]
    pieces[match, lost] = others[match, lost]
    lower = np.minimum(here, there).astype(np.int64)
    return pieces, lower, np.where(here < there, *cells.T)


def _float_rows(
    network: Network, domain: Domain, pieces: NDArray[np.int32], units: Ints, lower: Ints
) -> Floats:
    """Return [a, b] in float64 with |a| = 1, from the units' values at P + 1 points."""
    low, high = domain.corners.min(axis=0), domain.corners.max(axis=0)
    centre, reach = low / 2 + high / 2, high / 2 - low / 2
    points = np.concatenate([centre[None], centre + np.diag(reach)])
    z = torch.from_numpy(np.ascontiguousarray(domain.slice.embed(points)))
    n, k = len(units), len(points)
    batch = z.repeat((n,) + (1,) * (z.ndim - 1))
    given = torch.from_numpy(np.repeat(pieces, k, axis=0))
    stages = int(np.searchsorted(network.stage_offsets, units.max(initial=0), side="right"))
    values = held_switching(network.program, batch, given, stages).numpy()
    values = values[np.arange(n * k), np.repeat(units, k)].reshape(n, k)
    a = (values[:, 1:] - values[:, :1]) / reach
    knot = _breakpoints(network, units, lower)
    b = knot - values[:, 0] + a @ centre
    return _normalised(np.column_stack([a, b]))


def _breakpoints(network: Network, units: Ints, lower: Ints) -> Floats:
    """Return the breakpoint of each unit above its piece `lower`."""
    found = np.empty(len(units))
    for heads in network.program.heads:
        for head in heads:
            first = network.program.first_unit[head.step, head.round]
            mine = (units >= first) & (units < first + head.units)
            bend = network.program.steps[head.step].nonlinearity
            assert bend is not None
            if isinstance(bend, Triangle):
                found[mine] = bend.knot(torch.from_numpy(lower[mine] + 1)).numpy()
            elif mine.any():
                table = np.stack([x.numpy().reshape(-1) for x in bend.breaks(head.round)])
                found[mine] = table[lower[mine], units[mine] - first]
    return found


def _sides_near(partition: Partition, facets: Ints, sides: Floats, on: Ints) -> NDArray[np.bool_]:
    """Return the sides of the domain that facets (n,) of its boundary may lie on, (n, sides).

    `on` is a corner of each side. Where rational arithmetic cannot choose, the nearest alone.
    """
    corners = partition.domain.corners
    sizes, vertex = take_rows(Ragged(partition.facet_offsets, partition.facet_corners), facets)
    off = np.empty((len(facets), len(sides)))
    for column, normal, corner in zip(off.T, sides[:, :-1], corners[on], strict=True):
        height = np.abs((partition.points[vertex] - corner) @ normal)
        column[:] = np.maximum.reduceat(height, prefix(sizes)[:-1]) if len(facets) else 0.0
    near = off <= off.min(axis=1, keepdims=True)
    if require_network(partition).matrices.complete:
        near |= off <= _DOUBTFUL * np.abs(corners).max()
    return near


def _same_planes(domain: Domain, rows: Floats) -> NDArray[np.bool_]:
    """Return which of a cell's planes float64 does not tell apart, (m, m)."""
    scaled = rows / np.append(np.ones(domain.dim), np.abs(domain.corners).max())
    return np.abs(scaled[:, None] - scaled).max(axis=2) <= _DOUBTFUL


def _facets(rows: NDArray[Any]) -> tuple[Ints, NDArray[Any]]:
    """Return which of the exact half-spaces a s <= b are facets, each once, and the vertices."""
    forms = [whole([b, *(-x for x in a)]) for *a, b in rows.tolist()]
    distinct = {form: i for i, form in reversed(list(enumerate(forms)))}
    rays, tight = extreme_rays(list(distinct))
    # a facet's vertices are no part of those on any other plane
    within = (tight[:, :, None] <= tight[:, None]).all(axis=0)
    kept = np.array(list(distinct.values()))[~np.any(within & ~within.T, axis=1)]
    corners = tuple(sorted(tuple(Fraction(x, ray[0]) for x in ray[1:]) for ray in rays))
    if len(corners[0]) == 2:
        corners = anticlockwise(corners)
    return np.sort(kept), np.array(corners, object)


def _normalised(rows: NDArray[Any]) -> Floats:
    """Return rows [a, b] in float64, divided by |a|."""
    scaled = (rows / np.abs(rows[:, :-1]).max(axis=1, keepdims=True)).astype(np.float64)
    return scaled / np.linalg.norm(scaled[:, :-1], axis=1, keepdims=True) + 0.0


def _runs(count: int, bytes_each: int) -> Iterator[slice]:
    """Cut range(count) into slices that fit the memory budget."""
    size = max(1, _BUDGET // max(1, bytes_each))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
