"""Damaged partitions, and networks small enough to damage in every place."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

import cpwl
from bridges.networks.toys import random_mlp
from cpwl import CertificateError

BOX = cpwl.box([-10, -10], [10, 10])


@cache
def small() -> cpwl.Partition:
    """Return 2-8-8-3 on the box: enough cells for every kind of damage."""
    captured = cpwl.Network.from_torch(random_mlp((2, 8, 8, 3)), (2,))
    return cpwl.subdivide(captured, BOX, progress=False)


def failure(partition: cpwl.Partition) -> CertificateError:
    """Return how a damaged partition fails; its message names the cell that the error does."""
    with pytest.raises(CertificateError) as failed:
        cpwl.certify(partition, progress=False)
    error = failed.value
    start = "Expected " if error.cell is None else f"cell {error.cell}: expected "
    assert str(error).startswith(start)
    assert ", got " in str(error)
    return error


def loop(p: cpwl.Partition, cell: int) -> NDArray:
    """Return the corners of a cell."""
    return p.cell_corners[p.cell_offsets[cell] : p.cell_offsets[cell + 1]]


def sides(p: cpwl.Partition, cell: int) -> NDArray:
    """Return the facets of a cell."""
    return p.cell_facets[p.cell_offsets[cell] : p.cell_offsets[cell + 1]]


def with_cells(
    p: cpwl.Partition, loops: list[NDArray], facets: list[NDArray], patterns: NDArray, **rest
) -> cpwl.Partition:
    """Return the partition with other cells."""
    offsets = np.cumsum([0, *map(len, loops)])
    return replace(
        p, cell_offsets=offsets, cell_facet_offsets=offsets, patterns=patterns,
        cell_corners=np.concatenate(loops).astype(np.int32),
        cell_facets=np.concatenate(facets).astype(np.int32), **rest,
    )  # fmt: skip


def cells_of(p: cpwl.Partition) -> tuple[list[NDArray], list[NDArray]]:
    """Return corners and facets of all cells."""
    numbers = range(p.num_cells)
    return [loop(p, c) for c in numbers], [sides(p, c) for c in numbers]


def flipped(p: cpwl.Partition, cell: int, bit: int) -> cpwl.Partition:
    """Return the partition with one bit of one pattern changed."""
    patterns = p.patterns.copy()
    patterns[cell, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return replace(p, patterns=patterns)


def bit_of(p: cpwl.Partition, unit: int) -> int:
    """Return the first bit of a unit."""
    return int(np.flatnonzero(p.bit_unit == unit)[0])


def inner_facets(p: cpwl.Partition) -> NDArray:
    """Return the facets with a cell on both sides."""
    return np.flatnonzero((p.facet_cells >= 0).all(axis=1))


def marked(p: cpwl.Partition, facet: int, at: float) -> cpwl.Partition:
    """Return the partition with an inner facet split in two at some part of it."""
    a, b = p.facet_points[facet].tolist()
    middle, count = len(p.points), len(p.facet_unit)
    loops, facets = cells_of(p)
    for cell, start in zip(p.facet_cells[facet].tolist(), (a, b), strict=True):
        slot = int(np.flatnonzero(facets[cell] == facet)[0])
        assert loops[cell][slot] == start
        loops[cell] = np.insert(loops[cell], slot + 1, middle)
        order = (facet, count) if start == a else (count, facet)
        facets[cell] = np.insert(np.delete(facets[cell], slot), [slot, slot], order)
    ends = np.concatenate([p.facet_points, [[middle, b]]])
    ends[facet] = a, middle
    point = (1 - at) * p.points[a] + at * p.points[b]
    return with_cells(
        p, loops, facets, p.patterns, points=np.concatenate([p.points, point[None]]),
        facet_cells=np.concatenate([p.facet_cells, p.facet_cells[facet][None]]),
        facet_unit=np.append(p.facet_unit, p.facet_unit[facet]),
        facet_corners=ends.ravel(), facet_offsets=2 * np.arange(count + 2),
    )  # fmt: skip
