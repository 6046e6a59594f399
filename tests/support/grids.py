"""Partitions of boxes by axis-parallel planes in any dimension, built by hand.

They come with every array that the engine fills in, so that what is done with a partition can be
tested against formulas, and spoilt piece by piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations, pairwise, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import cpwl
from cpwl.arrays.bits import pack_row
from cpwl.arrays.ragged import Ragged, prefix
from cpwl.domain.corners import face_lattice
from cpwl.partition import Partition, Status


@cache
def grid(*cuts: tuple[float, ...], outputs: int = 7) -> Partition:
    """Return [-1, 1]^P cut at `cuts[i]` (ascending, inside) on axis i, with random outputs."""
    width = len(cuts) + sum(map(len, cuts))
    return grid_with(np.random.default_rng(width).standard_normal((outputs, width)), cuts)


def grid_with(last: NDArray[np.float64], cuts: Sequence[Sequence[float]]) -> Partition:
    """Return the grid for outputs `last` @ [z, ReLU(x_i - t) for t in cuts[i]]."""
    dim = len(cuts)
    network = cpwl.Network.from_torch(GridModule(last, cuts), (dim,))
    domain = cpwl.box([-1.0] * dim, [1.0] * dim)
    return _assemble(network, domain, [(-1.0, *own, 1.0) for own in cuts])


class GridModule(nn.Module):
    """A linear map of the input and of its ReLUs."""

    def __init__(self, last: NDArray[np.float64], cuts: Sequence[Sequence[float]]) -> None:
        super().__init__()
        axes = np.repeat(np.arange(len(cuts)), [len(own) for own in cuts])
        self.axes = torch.eye(len(cuts), dtype=torch.float64)[axes]
        self.cuts = torch.tensor([t for own in cuts for t in own], dtype=torch.float64)
        self.last = torch.as_tensor(last, dtype=torch.float64)

    def forward(self, z: Tensor) -> Tensor:
        """Evaluate."""
        bent = torch.relu(torch.nn.functional.linear(z, self.axes, -self.cuts))
        return torch.nn.functional.linear(torch.cat([z, bent], dim=1), self.last)


def _assemble(
    network: cpwl.Network, domain: cpwl.Domain, lines: list[tuple[float, ...]]
) -> Partition:
    """Number the faces of the grid, which are products of points and intervals, and list them."""
    dim = len(lines)
    faces: list[list[tuple[tuple[int, bool], ...]]] = [[] for _ in range(dim + 1)]
    for k in range(dim + 1):
        for long in combinations(range(dim), k):
            ranges = [
                [(i, axis in long) for i in range(len(own) - (axis in long))]
                for axis, own in enumerate(lines)
            ]
            faces[k] += product(*ranges)
    number = [{face: i for i, face in enumerate(level)} for level in faces]

    def ends(face):  # the faces of one dimension less: one axis shrinks to an end of its interval
        for axis, (i, long) in enumerate(face):
            for end in (i, i + 1) if long else ():
                yield (*face[:axis], (end, False), *face[axis + 1 :])

    def corners(face):
        return product(
            *([(i, False), (i + 1, False)] if long else [(i, False)] for i, long in face)
        )

    def ragged(rows) -> Ragged:
        rows = [sorted(row) for row in rows]
        items = np.array([x for row in rows for x in row], np.int32)
        return Ragged(prefix(np.array([len(row) for row in rows])), items)

    points = np.array([[own[i] for own, (i, _) in zip(lines, p, strict=True)] for p in faces[0]])
    boundaries = [
        ragged([number[k - 1][end] for end in ends(face)] for face in faces[k])
        for k in range(1, dim + 1)
    ]
    cell_corners = ragged([number[0][p] for p in corners(cell)] for cell in faces[dim])
    facet_corners = ragged([number[0][p] for p in corners(face)] for face in faces[dim - 1])
    first_unit = prefix(np.array([len(own) - 2 for own in lines]))
    facet_unit, facet_cells = [], []
    for face in faces[dim - 1]:
        (axis,) = (a for a, (_, long) in enumerate(face) if not long)
        end = face[axis][0]
        inside = 0 < end < len(lines[axis]) - 1
        facet_unit.append(first_unit[axis] + end - 1 if inside else -1)
        around = [(*face[:axis], (i, True), *face[axis + 1 :]) for i in (end - 1, end)]
        cells = [number[dim].get(cell, -1) for cell in around]
        facet_cells.append(cells if cells[0] >= 0 else cells[::-1])
    units = int(first_unit[-1])
    above = [
        [np.arange(len(own) - 2) < i for own, (i, _) in zip(lines, cell, strict=True)]
        for cell in faces[dim]
    ]
    patterns = [pack_row(np.concatenate(row)) for row in above]
    bit_unit = np.full(64 * len(patterns[0]), -1, np.int32)
    bit_unit[:units] = np.arange(units)
    return Partition(
        network,
        domain,
        points,
        *cell_corners,
        *boundaries[-1],
        *facet_corners,
        np.array(facet_cells, np.int32),
        np.array(facet_unit, np.int32),
        tuple(boundaries[:-1]),
        np.array(patterns),
        bit_unit,
        np.zeros(units, np.int32),
        Status(True, True, 0, 0, 0, 0, 1),
    )


def uncut(domain: cpwl.Domain) -> Partition:
    """Return a domain of dimension P >= 3 as one cell, without a network."""
    faces = face_lattice(domain.sides, len(domain.corners), domain.dim)
    sides = len(domain.sides)
    corners = np.arange(len(domain.corners), dtype=np.int32)
    return Partition(
        None,
        domain,
        domain.corners,
        prefix(np.array([len(corners)])),
        corners,
        *faces[-1],
        prefix(np.array([len(side) for side in domain.sides])),
        np.concatenate(domain.sides).astype(np.int32),
        np.tile(np.array([0, -1], np.int32), (sides, 1)),
        np.full(sides, -1, np.int32),
        faces[:-1],
        np.zeros((1, 0), np.uint64),
        np.empty(0, np.int32),
        np.empty(0, np.int32),
        Status(True, True, 0, 0, 0, 0, 0),
    )


def intervals(partition: Partition) -> NDArray[np.float64]:
    """Return the least and greatest coordinates (C, 2, P) of the cells' corners."""
    corners = [
        partition.points[partition.cell_corners[a:b]]
        for a, b in pairwise(partition.cell_offsets.tolist())
    ]
    return np.array([[own.min(axis=0), own.max(axis=0)] for own in corners])
