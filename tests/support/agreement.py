"""Whether a partition is the one that the rational oracle finds, cell for cell."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from oracles import splitting
from oracles.bodies import Body, Corners, domain_of, exact_of
from oracles.homogeneous import Row, rational
from oracles.layers import Layer, Pool, Scalar, to_torch
from scipy.optimize import linear_sum_assignment

import cpwl
from cpwl.checks.report import CheckReport
from cpwl.network.capture.tracing import export as export_module
from cpwl.network.network import UnitGroup

CLOSE = 1e-11


_EXPORTED: dict[object, torch.export.ExportedProgram] = {}


def capture(layers: Sequence[Layer]) -> cpwl.Network:
    """Return the engine's network of a description.

    `Network.from_torch` with one part remembered: torch.export, which takes longer than all else
    together, is given a module of the same architecture only once. The parameters are put in
    afterwards; `from_torch` compares the result with the module as always.
    """
    shape = tuple((len(x.weight[0]), len(x.bias), x.units, x.inputs) for x in layers)

    def export(module: torch.nn.Module, input_shape: tuple[int, ...]) -> object:
        if shape not in _EXPORTED:
            _EXPORTED[shape] = export_module(module, input_shape)
        _EXPORTED[shape].state_dict.update(module.state_dict())
        return _EXPORTED[shape]

    inputs = len(layers[0].weight[0])
    with mock.patch("cpwl.network.network.export", export):
        return cpwl.Network.from_torch(to_torch(tuple(layers)), (inputs,))


def subdivide_and_compare(
    layers: Sequence[Layer],
    domain: Corners | Body,
    *,
    thin: bool = False,
    magnitude: float = 1.0,
    share: float = 1e-13,
    **options: int,
) -> cpwl.Partition:
    """Subdivide, check, compare with the oracle, and return the partition.

    `thin` allows cells so thin that float64 cannot tell that they are there; `magnitude` is the
    size of what the network adds up, next to which the entries of its maps are rounded; `share` of
    the domain's volume is what a cell's may be off by.
    """
    partition = cpwl.subdivide(capture(layers), domain_of(domain), progress=False, **options)
    assert partition.status.complete
    assert partition.status.exact
    assert_agrees(
        partition, layers, splitting.subdivide(layers, exact_of(domain)), magnitude, share
    )
    assert_checked(partition, thin=thin)
    return partition


def assert_checked(partition: cpwl.Partition, *, thin: bool = False) -> CheckReport:
    """Require every check to pass, and that no cell is too thin to tell."""
    report = cpwl.check(partition).require()
    assert thin or report.flat_cells == 0, str(report)
    return report


def assert_agrees(
    partition: cpwl.Partition,
    layers: Sequence[Layer],
    cells: Sequence[splitting.Cell],
    magnitude: float = 1.0,
    share: float = 1e-13,
) -> None:
    """Compare cells, patterns, vertices, faces and adjacency exactly, then points and maps.

    Cells are matched by their patterns and vertices by the cells that they belong to, so that no
    tolerance decides what corresponds to what.
    """
    assert partition.num_cells == len(cells)
    match = match_cells(partition, layers, cells)
    assert sorted(match) == list(range(len(cells)))
    inner = partition.facet_cells[(partition.facet_cells >= 0).all(1)]
    pairs = {(min(a, b), max(a, b)) for a, b in np.array(match)[inner].tolist()}
    assert pairs == splitting.adjacency(cells)

    # ties that change nothing are no knots, and cells need not meet face to face then
    pools = any(isinstance(one.units, Pool) for one in layers)
    names, alias = match_vertices(partition, match, cells, pools)
    if pools:
        _assert_facets_hold_all_that_is_common(partition)
    else:
        _assert_same_faces(partition, match, names, alias, cells)
    _assert_same_volumes(partition, match, cells, share)
    _assert_same_maps(partition, match, cells, magnitude)


def match_cells(
    partition: cpwl.Partition, layers: Sequence[Layer], cells: Sequence[splitting.Cell]
) -> list[int]:
    """Return the oracle's number of every cell of the partition, by their patterns."""
    assert partition.network is not None
    pieces = partition.pieces()
    columns: list[NDArray[np.int32]] = []
    compared, start = [], 0
    for index, one in enumerate(layers):
        groups = [g for g in partition.network.groups if layer_of(g.name) == index]
        if groups:
            columns += _pieces_of(one, [pieces[:, _units(g)] for g in groups])
            compared += range(start, start + one.width)
        start += one.width
    # pools may name any of the winners that are equal on the whole cell
    exact = defaultdict(list)
    scalar = [j for j, i in enumerate(compared) if all(len(cell.ties[i]) == 1 for cell in cells)]
    for number, cell in enumerate(cells):
        exact[tuple(cell.pattern[compared[j]] for j in scalar)].append(number)
    match = []
    for row in zip(*columns, strict=True) if columns else [()] * len(cells):
        found = [
            number
            for number in exact[tuple(row[j] for j in scalar)]
            if all(row[j] in cells[number].ties[i] for j, i in enumerate(compared))
        ]
        assert len(found) == 1, f"the oracle has {len(found)} cells with the pattern {row}"
        match += found
    return match


def layer_of(name: str) -> int:
    """Return the layer that a group of units belongs to: units.3.pool is in layer 3."""
    return int(name.split("/")[0].split(".")[1])


def _units(group: UnitGroup) -> slice:
    return slice(group.first_unit, group.first_unit + math.prod(group.shape))


def _pieces_of(one: Layer, groups: list[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
    """Return each unit's pieces; of pools the winners, which the matches between pairs decide."""
    if isinstance(one.units, Scalar):
        (pieces,) = groups
        return list(pieces.T)
    shape = (len(groups[0]), one.width)
    rows = [np.full(shape, i) for i in range(one.units.size)]
    for matches in groups:  # one round after the other; the odd one passes to the next
        won = matches.reshape(*shape, -1)
        pairs = zip(rows[0::2], rows[1::2], strict=False)
        winners = [np.where(won[..., i] > 0, a, b) for i, (a, b) in enumerate(pairs)]
        rows = winners + rows[2 * len(winners) :]
    (last,) = rows
    return list(last.T)


def match_vertices(
    partition: cpwl.Partition, match: list[int], cells: Sequence[splitting.Cell], pools: bool
) -> tuple[list[Row], dict[Row, Row]]:
    """Match the vertices by the cells that they belong to; those of the same cells by distance.

    Returns the exact coordinates of every vertex, and for each exact vertex the one that stands for
    all those of the same cells that lie too close to it to be told apart by distance.
    """
    exact = defaultdict(list)
    for corner, known in _cells_of_corners(cells, pools).items():
        exact[frozenset(known)].append(corner)
    ours = defaultdict(list)
    for vertex, row in enumerate(_cells_of_vertices(partition)):
        ours[frozenset(match[cell] for cell in row)].append(vertex)
    assert {k: len(v) for k, v in ours.items()} == {k: len(v) for k, v in exact.items()}

    names: list[Row] = [()] * len(partition.points)
    alias: dict[Row, Row] = {}
    reach = np.abs(partition.domain.corners).max()
    for key, vertices in ours.items():
        there = np.array([[float(x) for x in rational(corner)] for corner in exact[key]])
        first = (np.abs(there[:, None] - there).max(axis=-1) <= 1e3 * CLOSE * reach).argmax(axis=1)
        alias |= {corner: exact[key][j] for corner, j in zip(exact[key], first, strict=True)}
        distance = np.abs(partition.points[vertices][:, None] - there).max(axis=-1)
        for i, j in zip(*linear_sum_assignment(distance), strict=True):
            assert distance[i, j] <= CLOSE * reach
            names[vertices[i]] = alias[exact[key][j]]
    return names, alias


def _cells_of_corners(cells: Sequence[splitting.Cell], pools: bool) -> dict[Row, set[int]]:
    """Return the cells that have each corner; with pools also those that have it on a side."""
    found: dict[Row, set[int]] = defaultdict(set)
    for number, cell in enumerate(cells):
        for corner in cell.shape.corners:
            found[corner].add(number)
    if pools:
        float_corners = [np.array(cell.corners, dtype=float) for cell in cells]
        low = np.array([corners.min(axis=0) for corners in float_corners]) - 1e-6
        high = np.array([corners.max(axis=0) for corners in float_corners]) + 1e-6
        for corner, known in found.items():
            point = np.array(rational(corner), dtype=float)
            near = np.flatnonzero(((low <= point) & (point <= high)).all(axis=1))
            known |= {n for n in near.tolist() if cells[n].shape.holds(corner)}
    return found


def _cells_of_vertices(partition: cpwl.Partition) -> list[list[int]]:
    """List the cells of each vertex."""
    found: list[list[int]] = [[] for _ in partition.points]
    for cell, corners in enumerate(_rows(partition.cell_offsets, partition.cell_corners)):
        for vertex in corners:
            found[vertex].append(cell)
    return found


def _rows(offsets: NDArray[np.int64], items: NDArray[np.int32]) -> list[list[int]]:
    return [part.tolist() for part in np.split(items, offsets[1:-1])]


def _assert_same_faces(
    partition: cpwl.Partition,
    match: list[int],
    names: list[Row],
    alias: dict[Row, Row],
    cells: Sequence[splitting.Cell],
) -> None:
    """Compare the facets of every cell and the faces of every dimension, by their vertices."""

    def listed(faces: Iterable[Iterable[int]]) -> Counter[tuple[Row, ...]]:
        return Counter(tuple(sorted(names[vertex] for vertex in face)) for face in faces)

    def exact(faces: Iterable[Iterable[Row]]) -> Counter[tuple[Row, ...]]:
        return Counter(tuple(sorted(alias[corner] for corner in face)) for face in faces)

    facets = _rows(partition.facet_offsets, partition.facet_corners)
    rows = _rows(partition.cell_facet_offsets, partition.cell_facets)
    for mine, theirs in zip(rows, match, strict=True):
        assert listed(facets[i] for i in mine) == exact(
            cells[theirs].shape.faces(partition.dim - 1)
        )
    faces = [{vertex} for vertex in range(len(names))]
    for dim, level in enumerate(partition.skeleton, 1):
        faces = [set().union(*(faces[side] for side in row)) for row in _rows(*level)]
        expected = {face for cell in cells for face in cell.shape.faces(dim)}
        assert listed(faces) == exact(expected)


def _assert_facets_hold_all_that_is_common(partition: cpwl.Partition) -> None:
    """Compare the vertices on all facets between two cells with those that belong to both."""
    between: dict[tuple[int, int], set[int]] = defaultdict(set)
    rows = _rows(partition.facet_offsets, partition.facet_corners)
    for (a, b), row in zip(partition.facet_cells.tolist(), rows, strict=True):
        if min(a, b) >= 0:
            between[min(a, b), max(a, b)] |= set(row)
    corners = list(map(set, _rows(partition.cell_offsets, partition.cell_corners)))
    for (a, b), vertices in between.items():
        assert vertices == corners[a] & corners[b]


def _assert_same_volumes(
    partition: cpwl.Partition, match: list[int], cells: Sequence[splitting.Cell], share: float
) -> None:
    exact = np.array([_volume(cells[theirs].shape) for theirs in match])
    slack = CLOSE * exact + share * exact.sum()
    assert (np.abs(cpwl.volumes(partition) - exact) <= slack).all()


def _volume(shape: splitting.Solid) -> float:
    exact = isinstance(shape, splitting.Shape) or shape.dim < 5
    return float(shape.volume) if exact else shape.rounded_volume()


def _assert_same_maps(
    partition: cpwl.Partition, match: list[int], cells: Sequence[splitting.Cell], magnitude: float
) -> None:
    maps = [np.concatenate(part) for part in zip(*cpwl.affine_maps(partition), strict=True)]
    for matrix, offset, theirs in zip(*maps, match, strict=True):
        exact = [np.array(part, dtype=float) for part in cells[theirs].affine]
        scale = max(magnitude, *(np.abs(part).max(initial=0) for part in exact))
        assert np.abs(matrix - exact[0]).max() <= CLOSE * scale
        assert np.abs(offset - exact[1]).max() <= CLOSE * scale


def pattern_set(partition: cpwl.Partition, units: NDArray[np.int64] | None = None) -> set[bytes]:
    """Return the pieces of every cell as a set, optionally of some units only."""
    pieces = partition.pieces()
    return {row.tobytes() for row in (pieces if units is None else pieces[:, units])}


def sampled_patterns(module: torch.nn.Sequential, points: torch.Tensor) -> NDArray[np.int32]:
    """Return which ReLUs of Linear, ReLU, ..., Linear are positive, (n, units), by running it."""
    found, values = [], points
    with torch.no_grad():
        for part in module.double():
            if isinstance(part, torch.nn.ReLU):
                found.append((values > 0).int())
            values = part(values)
    return torch.cat(found, 1).numpy()
