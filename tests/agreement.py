"""Whether a partition is the one that the rational oracle finds, cell for cell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from unittest import mock

import numpy as np
import oracles
import torch
from layers import Layer, Scalar, to_torch
from numpy.typing import NDArray

import cpwl
from cpwl._capture import export as export_module
from cpwl.check import CheckReport

CLOSE = 1e-9


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
    with mock.patch("cpwl.network.export", export):
        return cpwl.Network.from_torch(to_torch(tuple(layers)), (inputs,))


def domain_of(corners: Sequence[Sequence[float]]) -> cpwl.Domain:
    """Return the engine's domain for a polygon or an interval."""
    if len(corners[0]) == 1:
        return cpwl.box([corners[0][0]], [corners[1][0]])
    return cpwl.polygon(corners)


def subdivide_and_compare(
    layers: Sequence[Layer], corners: Sequence[Sequence[float]], **options: int
) -> cpwl.Partition:
    """Subdivide, check, compare with the oracle, and return the partition."""
    partition = cpwl.subdivide(capture(layers), domain_of(corners), progress=False, **options)
    assert_checked(partition)
    assert_agrees(partition, layers, oracles.subdivide(layers, corners))
    return partition


def assert_checked(partition: cpwl.Partition) -> CheckReport:
    """Require every check to pass, and that no cell is too thin to tell."""
    report = cpwl.check(partition).require()
    assert report.flat_cells == 0, str(report)
    return report


def assert_agrees(
    partition: cpwl.Partition, layers: Sequence[Layer], cells: Sequence[oracles.Cell]
) -> None:
    """Compare counts, patterns, corners, volumes, maps and adjacency.

    Cells are matched by the pieces of the scalar units, and by place where pools leave several
    with the same.
    """
    assert partition.num_cells == len(cells)
    match = _match(partition, layers, cells)
    assert sorted(match) == list(range(len(cells)))

    maps = [np.concatenate(part) for part in zip(*cpwl.affine_maps(partition), strict=True)]
    volumes = cpwl.volumes(partition)
    for ours, theirs in enumerate(match):
        exact = cells[theirs]
        assert_same_corners(_loop(partition, ours), np.array(exact.corners, dtype=float))
        volume = float(exact.volume)
        assert abs(volumes[ours] - volume) <= CLOSE * max(1.0, volume)
        matrix, offset = (np.array(part, dtype=float) for part in exact.affine)
        scale = max(1.0, np.abs(matrix).max(initial=0), np.abs(offset).max(initial=0))
        assert np.abs(maps[0][ours] - matrix).max() <= CLOSE * scale
        assert np.abs(maps[1][ours] - offset).max() <= CLOSE * scale

    inner = partition.facet_cells[(partition.facet_cells >= 0).all(1)]
    pairs = {(min(a, b), max(a, b)) for a, b in np.array(match)[inner].tolist()}
    assert pairs == oracles.adjacency(cells)


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


def _match(
    partition: cpwl.Partition, layers: Sequence[Layer], cells: Sequence[oracles.Cell]
) -> list[int]:
    """Return the oracle's number of every cell of the partition."""
    units, places, start = [], [], 0
    network = partition.network
    assert network is not None
    for index, one in enumerate(layers):
        if isinstance(one.units, Scalar) and one.units.knots:
            (group,) = (g for g in network.groups if f"units.{index}" in g.name.split("/")[0])
            units += range(group.first_unit, group.first_unit + one.width)
            places += range(start, start + one.width)
        start += one.width
    exact = defaultdict(list)
    for index, cell in enumerate(cells):
        exact[tuple(cell.pattern[i] for i in places)].append(index)
    match = []
    for ours, key in enumerate(partition.pieces()[:, units].tolist()):
        candidates = exact[tuple(key)]
        assert candidates, f"the oracle has no cell with the pattern {key}"
        centre = _loop(partition, ours).mean(axis=0)
        match.append(max(candidates, key=lambda i: _depth(cells[i], centre)))
    return match


def _depth(cell: oracles.Cell, point: NDArray) -> float:
    """How far inside the cell a point is: its least distance from a side, negative outside."""
    corners = np.array(cell.corners, dtype=float)
    if corners.shape[1] == 1:
        return float(min(point[0] - corners[0, 0], corners[1, 0] - point[0]))
    return float(_heights(corners, point[None]).min())


def _heights(corners: NDArray, points: NDArray) -> NDArray:
    """Signed distances of points (n, 2) from the sides of an anticlockwise polygon, (n, sides)."""
    edges = np.roll(corners, -1, axis=0) - corners
    normals = np.column_stack([-edges[:, 1], edges[:, 0]])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return ((points[:, None] - corners) * normals).sum(-1)


def _loop(partition: cpwl.Partition, cell: int) -> NDArray[np.float64]:
    offsets = partition.cell_offsets
    return partition.points[partition.cell_corners[offsets[cell] : offsets[cell + 1]]]


def assert_same_corners(loop: NDArray, exact: NDArray) -> None:
    """Compare loops; the first may have corners of its neighbours on its sides."""
    distance = np.linalg.norm(loop[:, None] - exact[None], axis=-1)
    assert distance.min(axis=0).max() <= CLOSE
    extra = loop[distance.min(axis=1) > CLOSE]
    if len(extra):
        assert exact.shape[1] == 2
        heights = _heights(exact, extra)
        assert np.abs(heights.min(axis=1)).max() <= CLOSE
