"""The rational oracle in any dimension: closed forms, brute force, the 2-D oracle and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import polytopes, splitting
from oracles.bodies import bodies, cube
from oracles.brute import arrangement_cells, arrangement_faces, feasible_patterns
from oracles.homogeneous import homogeneous
from oracles.layers import ABS, RELU, Pool, layer, network, to_torch
from support.strategies import (
    ALL,
    BOX,
    SCALARS,
    architectures,
    degenerate_networks,
    domains,
    generic_networks,
    ordinary,
)


def moments(count: int, dim: int) -> tuple:
    """Hyperplanes in general position (t^dim + sum t^k x_k): every dim of them meet in a point.

    They meet where the x_k are the coefficients of prod (t - t_i).
    """
    rows = [[t**k for k in range(dim)] for t in range(1, count + 1)]
    return network(layer(rows, [t**dim for t in range(1, count + 1)]))


@pytest.mark.parametrize(("dim", "count"), [(1, 4), (2, 6), (3, 6), (4, 6), (5, 6), (6, 7)])
def test_hyperplanes_in_general_position_make_the_counts_of_buck(dim: int, count: int) -> None:
    reach = (count + 1) ** dim * math.factorial(dim)
    cells = splitting.subdivide(moments(count, dim), cube(dim, reach).exact())
    assert len(cells) == arrangement_cells(count, dim)
    assert len({cell.pattern for cell in cells}) == len(cells)
    assert len(splitting.adjacency(cells)) == arrangement_faces(count, dim, dim - 1)
    outer = cube(dim, reach).exact().walls
    inner = {
        corner
        for cell in cells
        for corner in cell.shape.corners
        if all(sum(map(int.__mul__, wall, corner)) for wall in outer)
    }
    assert len(inner) == arrangement_faces(count, dim, 0)
    if dim < 6:  # a cell has thousands of simplices then
        assert sum(cell.volume for cell in cells) == (2 * reach) ** dim


def test_coordinate_planes_make_orthants() -> None:
    for dim in range(1, 7):
        planes = layer(np.eye(dim, dtype=int).tolist(), [0] * dim)
        cells = splitting.subdivide(network(planes), cube(dim).exact())
        assert sorted(cell.volume for cell in cells) == [2**dim] * 2**dim
        assert len(splitting.adjacency(cells)) == dim * 2 ** (dim - 1)


@ordinary(40)
@given(
    st.one_of(
        degenerate_networks(architectures(units=ALL)), generic_networks(architectures(units=ALL))
    ),
    domains(2),
)
def test_polytopes_of_dimension_two_agree_with_polygons(layers, corners) -> None:
    polygon = splitting.Shape.of(corners)
    assert_same(layers, corners, polytopes.Polytope.of(polygon.corners, polygon.sides))


@ordinary(25)
@given(degenerate_networks(architectures(1, units=ALL)), domains(1))
def test_polytopes_of_dimension_one_agree_with_intervals(layers, corners) -> None:
    assert_same(layers, corners, polytopes.box(*corners))


def assert_same(layers, corners, body) -> None:
    """Compare cells, corners, volumes, maps and adjacency of the two ways to cut."""
    ours = splitting.subdivide(layers, body)
    theirs = splitting.subdivide(layers, corners)
    # both find their cells in the order in which the units are cut
    assert [cell.pattern for cell in ours] == [cell.pattern for cell in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert set(one.corners) == set(other.corners)
        assert len(one.corners) == len(other.corners)
        assert (one.volume, one.affine) == (other.volume, other.affine)
    assert splitting.adjacency(ours) == splitting.adjacency(theirs)


@ordinary(12)
@given(
    degenerate_networks(architectures(3, units=SCALARS[:2], depth=2, width=3, skips=False)),
    st.sampled_from(bodies(3)),
)
def test_brute_force_finds_the_patterns_in_space(layers, body) -> None:
    cells = splitting.subdivide(layers, body.exact())
    assert feasible_patterns(layers, body.exact()) == {cell.pattern for cell in cells}


@ordinary(8)
@given(
    st.one_of(
        degenerate_networks(architectures(4, units=(RELU, ABS), depth=2, width=3, skips=False)),
        generic_networks(architectures(4, units=(RELU, ABS), depth=2, width=3, skips=False)),
    ),
    st.sampled_from(bodies(4)),
)
def test_brute_force_finds_the_patterns_in_four_dimensions(layers, body) -> None:
    cells = splitting.subdivide(layers, body.exact())
    assert feasible_patterns(layers, body.exact()) == {cell.pattern for cell in cells}


@pytest.mark.parametrize("dim", [3, 4])
@ordinary(20)
@given(data=st.data())
def test_the_cells_are_a_tiling_with_continuous_maps(dim: int, data) -> None:
    shapes = architectures(dim, units=(*SCALARS, Pool(2), Pool(3)), depth=2, width=3)
    layers = data.draw(degenerate_networks(shapes))
    body = data.draw(st.sampled_from(bodies(dim))).exact()
    cells = splitting.subdivide(layers, body)
    assert sum(cell.volume for cell in cells) == body.volume
    assert len({cell.pattern for cell in cells}) == len(cells)
    centres = [[sum(x) / len(x) for x in zip(*cell.corners, strict=True)] for cell in cells]
    for cell, centre in zip(cells, centres, strict=True):
        assert cell.volume > 0
        assert [other for other in cells if other.shape.holds(homogeneous(centre))] == [cell]
    with torch.no_grad():
        at = torch.tensor([[float(x) for x in centre] for centre in centres], dtype=torch.float64)
        values = to_torch(layers)(at)
    for cell, centre, value in zip(cells, centres, values.tolist(), strict=True):
        np.testing.assert_allclose([float(x) for x in image(cell, centre)], value, atol=1e-9)
    for i, j in splitting.adjacency(cells):
        shared = set(cells[i].corners) & set(cells[j].corners)
        assert all(image(cells[i], corner) == image(cells[j], corner) for corner in shared)


def image(cell: splitting.Cell, point) -> list:
    """Return the cell's map at a point, exactly."""
    matrix, offset = cell.affine
    return [
        sum(a * x for a, x in zip(row, point, strict=True)) + b
        for row, b in zip(matrix, offset, strict=True)
    ]


def test_a_pool_of_six_planes_has_one_cell_for_each_winner() -> None:
    rows = [[side * (axis == i) for i in range(3)] for axis in range(3) for side in (-1, 1)]
    cells = splitting.subdivide(network(layer(rows, [0] * 6, Pool(6))), cube(3).exact())
    assert sorted(cell.pattern for cell in cells) == [(i,) for i in range(6)]
    assert all(cell.volume * 6 == 4**3 for cell in cells)
    assert len(splitting.adjacency(cells)) == 12  # pyramids over the sides, common walls per edge


def test_a_plane_of_a_larger_latent_space_is_cut_as_in_the_plane() -> None:
    one = network(layer([[1, 0, 2], [-2, 1, 0]], [0, 1], RELU))
    embedding = [(1, 0, 0), (-1, 1, 0), (0, 2, 1)]
    polygon = splitting.Shape.of(BOX)
    body = polytopes.Polytope.of(polygon.corners, polygon.sides)
    ours, theirs = (splitting.subdivide(one, where, embedding) for where in (body, BOX))
    assert [cell.affine for cell in ours] == [cell.affine for cell in theirs]
    assert [set(cell.corners) for cell in ours] == [set(cell.corners) for cell in theirs]
