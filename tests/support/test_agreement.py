"""Negative controls: the comparison with the oracle fails where a partition is another one."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from oracles import splitting
from oracles.layers import RELU, Layer, Pool, layer, network
from support.agreement import assert_agrees, capture, match_cells, match_vertices
from support.strategies import BOX, random_network

import cpwl


def partition_of(layers: tuple[Layer, ...]) -> cpwl.Partition:
    return cpwl.subdivide(capture(layers), cpwl.polygon(BOX), progress=False)


@pytest.fixture(scope="module")
def case() -> tuple[cpwl.Partition, tuple[Layer, ...], list[splitting.Cell]]:
    layers = random_network(2, (4, 3))
    return partition_of(layers), layers, splitting.subdivide(layers, BOX)


def nudged(layers: tuple[Layer, ...], step: float) -> tuple[Layer, ...]:
    """Move the first bias."""
    first = layers[0]
    return (replace(first, bias=(first.bias[0] + Fraction(step), *first.bias[1:])), *layers[1:])


def test_a_partition_agrees_with_its_own_network(case) -> None:
    assert_agrees(*case)


def test_another_network_does_not_agree(case) -> None:
    partition, layers, _ = case
    other = nudged(layers, 1e-6)
    with pytest.raises(AssertionError):
        assert_agrees(partition, other, splitting.subdivide(other, BOX))


def test_a_network_of_other_combinatorics_does_not_agree_however_close() -> None:
    # three lines through one point, and one of them moved by one bit
    layers = network(layer([[1, 0], [0, 1], [1, 1]], [0, -0.25, -0.25]))
    first = layers[0]
    moved = math.nextafter(-0.25, -1)
    other = (replace(first, bias=(*first.bias[:2], Fraction(moved))),)
    partition = partition_of(layers)
    assert_agrees(partition, layers, splitting.subdivide(layers, BOX))
    with pytest.raises(AssertionError):
        assert_agrees(partition, other, splitting.subdivide(other, BOX))


def test_a_vertex_that_two_cells_do_not_share_is_noticed(case) -> None:
    partition, layers, cells = case
    corners = partition.cell_corners.copy()
    start = partition.cell_offsets[1]
    doubled = np.concatenate([partition.points, partition.points[corners[start : start + 1]]])
    corners[start] = len(partition.points)
    other = replace(partition, points=doubled, cell_corners=corners)
    match = match_cells(other, layers, cells)
    with pytest.raises(AssertionError):
        match_vertices(other, match, cells, pools=False)


def test_a_missing_neighbour_is_noticed(case) -> None:
    partition, layers, cells = case
    inner = np.flatnonzero((partition.facet_cells >= 0).all(axis=1))[0]
    sides = partition.facet_cells.copy()
    sides[inner, 1] = -1
    with pytest.raises(AssertionError):
        assert_agrees(replace(partition, facet_cells=sides), layers, cells)


def test_any_of_the_equal_winners_of_a_pool_matches() -> None:
    layers = network(layer([[1, 0], [1, 0], [0, 1]], [0] * 3, Pool(3)), layer([[1]], [0], RELU))
    cells = splitting.subdivide(layers, BOX)
    assert {cell.ties[0] for cell in cells} == {(0, 1), (2,)}
    assert sorted(match_cells(partition_of(layers), layers, cells)) == list(range(len(cells)))
