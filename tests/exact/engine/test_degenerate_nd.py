"""Degenerate networks in three dimensions and more, one case each, with counts known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from oracles import splitting
from oracles.bodies import Body, corner_simplex, cross, cube, pyramid, trimmed_cube
from oracles.brute import arrangement_cells, arrangement_faces
from oracles.layers import ABS, LINEAR, Layer, Pool, hardtanh, layer, leaky, network
from support.agreement import assert_agrees, assert_checked, capture, subdivide_and_compare
from support.strategies import RELU, random_network

import cpwl

pytestmark = pytest.mark.usefixtures("one_thread")


def one_layer(weight: list, bias: list) -> tuple[Layer, ...]:
    """Return a ReLU layer and a linear one behind it."""
    return network(layer(weight, bias), layer([[1] * len(bias)], [0], LINEAR))


def inner_facets(partition: cpwl.Partition) -> int:
    return int((partition.facet_cells >= 0).all(axis=1).sum())


def at_origin(partition: cpwl.Partition) -> int:
    return int((np.abs(partition.points) < 1e-12).all(axis=1).sum())


@pytest.mark.parametrize("dim", [3, 4, 5])
def test_equal_opposite_and_parallel_units_cut_slabs(dim: int) -> None:
    row = [1] * dim
    negative = [-1] * dim
    weight = [row, row, negative, [2] * dim, row]
    partition = subdivide_and_compare(one_layer(weight, [0, 0, 0, 0, -1]), cube(dim))
    assert partition.num_cells == 3
    assert inner_facets(partition) == 2


@pytest.mark.parametrize("dim", [3, 4, 5, 6])
def test_coordinate_planes_meet_in_the_origin(dim: int) -> None:
    partition = subdivide_and_compare(one_layer(np.eye(dim).tolist(), [0] * dim), cube(dim))
    assert partition.num_cells == 2**dim
    assert len(partition.points) == 3**dim
    assert inner_facets(partition) == dim * 2 ** (dim - 1)


def test_many_planes_through_one_point() -> None:
    weight = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1], [1, -1, 2]]
    partition = subdivide_and_compare(one_layer(weight, [0] * 7), cube(3))
    assert at_origin(partition) == 1
    held = partition.cell_corners == np.flatnonzero(np.abs(partition.points).max(1) < 1e-12)[0]
    assert held.sum() == partition.num_cells


def test_planes_through_one_line() -> None:
    angles = [[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, -1, 0], [2, 1, 0]]
    partition = subdivide_and_compare(one_layer(angles, [0] * 5), cube(3))
    assert partition.num_cells == 10
    # the line's two ends, and nothing between them
    assert (np.abs(partition.points[:, :2]).max(axis=1) < 1e-12).sum() == 2


def test_a_deep_network_without_biases_is_a_fan() -> None:
    layers = network(
        layer([[1, 0, 0], [0, 1, 0], [-1, 2, 1], [1, 1, -1]], [0] * 4),
        layer([[1, -1, 1, 0], [-2, 1, 1, 1], [0, 1, -1, 2]], [0] * 3),
        layer([[1, -1, 1], [1, 1, -2]], [0, 0]),
        layer([[1, 1]], [0], LINEAR),
    )
    partition = subdivide_and_compare(layers, cube(3))
    assert at_origin(partition) == 1


@pytest.mark.parametrize("dim", [3, 4])
def test_knots_on_sides_edges_and_corners_of_the_domain_cut_nothing(dim: int) -> None:
    side = [1, *[0] * (dim - 1)]
    edge = [1, 1, *[0] * (dim - 2)]
    weight = [side, [-x for x in side], edge, [-x for x in edge], [1] * dim, [-1] * dim]
    bias = [2, -2, 4, -4, 2 * dim, -2 * dim]
    partition = subdivide_and_compare(one_layer(weight, bias), cube(dim))
    assert partition.num_cells == 1
    assert partition.pieces().tolist() == [[1, 0, 1, 0, 1, 0]]


@pytest.mark.parametrize("dim", [3, 4, 5])
def test_knots_through_corners_of_the_domain_add_none(dim: int) -> None:
    weight = [[1, -1, *[0] * (dim - 2)]]
    partition = subdivide_and_compare(one_layer(weight, [0]), cube(dim))
    assert partition.num_cells == 2
    assert len(partition.points) == 2**dim


@pytest.mark.parametrize("dim", [3, 4])
def test_knots_through_the_apex_of_a_pyramid(dim: int) -> None:
    # through the axis, and across the apex where 2 (dim - 1) sides meet
    weight = [[1, *[0] * (dim - 1)], [1, 1, *[0] * (dim - 2)], [*[0] * (dim - 1), 1]]
    partition = subdivide_and_compare(one_layer(weight, [0, 0, -2]), pyramid(dim))
    assert partition.num_cells == 4
    assert {tuple(row[2:]) for row in partition.pieces().tolist()} == {(0,)}


def test_corners_that_float64_cannot_hold_are_exact() -> None:
    # through the corner (5/3, -2, -2), along the slanted side, and through other corners
    layers = one_layer([[3, 0, 0], [3, 1, 1], [0, 1, -1]], [-5, -1, 0])
    partition = subdivide_and_compare(layers, trimmed_cube(3))
    assert partition.status.complete


def test_dead_and_constant_units_cut_nothing() -> None:
    weight = [[1, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    partition = subdivide_and_compare(one_layer(weight, [-9, 0, 3, -3, 0]), cube(3))
    assert partition.num_cells == 2
    assert {tuple(row[:4]) for row in partition.pieces().tolist()} == {(0, 0, 1, 0)}


def test_a_dead_layer_leaves_one_cell() -> None:
    layers = network(
        layer([[1, 1, 0], [0, 1, 1]], [-9, -9]),
        layer([[1, -1], [2, 1]], [0, 0]),
        layer([[1, 1]], [0], LINEAR),
    )
    assert subdivide_and_compare(layers, cube(3)).num_cells == 1


def test_units_that_vanish_on_whole_cells() -> None:
    # relu(x) - relu(y) is zero where both are dead, and an ordinary knot elsewhere
    layers = network(
        layer([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [0, 0, 0]),
        layer([[1, -1, 0], [-1, 0, 1], [1, 0, 0], [0, -1, 0]], [0] * 4),
        layer([[1, 1, 1, 1]], [0], LINEAR),
    )
    partition = subdivide_and_compare(layers, cube(3))
    pieces = partition.pieces()
    dead = (pieces[:, :2] == 0).all(axis=1)
    assert (pieces[dead, 3] == 0).all()


def test_a_knot_along_facets_of_cells_cuts_nothing_more() -> None:
    # behind relu(x) and relu(-x), |x| vanishes on their common facet and nowhere else
    layers = network(
        layer([[1, 0, 0], [-1, 0, 0]], [0, 0]),
        layer([[1, 1], [-1, -1], [1, 2]], [0, 0, 0]),
        layer([[1, 1, 1]], [0], LINEAR),
    )
    assert subdivide_and_compare(layers, cube(3)).num_cells == 2


def test_knots_of_different_layers_through_one_point() -> None:
    # |3x - 1|, |3y + 2|, |3z - 2| and their differences all vanish in (1/3, -2/3, 2/3)
    layers = network(
        layer([[3, 0, 0], [0, 3, 0], [0, 0, 3]], [-1, 2, -2], ABS),
        layer([[1, -1, 0], [0, 1, -1], [1, 0, -2], [1, 1, -1]], [0] * 4),
        layer([[1, 1, 1, 1]], [0], LINEAR),
    )
    partition = subdivide_and_compare(layers, cube(3))
    near = np.abs(partition.points - [1 / 3, -2 / 3, 2 / 3]).max(axis=1) < 1e-9
    assert near.sum() == 1


def test_a_slope_of_one_is_no_knot() -> None:
    layers = network(layer(np.eye(3).tolist(), [0] * 3, leaky(1)), layer([[1] * 3], [0], LINEAR))
    assert subdivide_and_compare(layers, cube(3)).num_cells == 1


def test_two_breakpoints_on_sides_of_the_domain_cut_nothing() -> None:
    clamp = layer(np.eye(4).tolist(), [0] * 4, hardtanh(-2, 2))
    partition = subdivide_and_compare(network(clamp, layer([[1] * 4], [0], LINEAR)), cube(4))
    assert partition.pieces().tolist() == [[1] * 4]


@pytest.mark.parametrize("dim", [3, 4])
def test_ties_in_a_pool_are_no_knots(dim: int) -> None:
    # the largest of +-x_i, each twice: a cone over each side of the cube
    rows = [[side * (axis == i) for i in range(dim)] for axis in range(dim) for side in (-1, 1)]
    layers = network(layer([*rows, *rows], [0] * 4 * dim, Pool(4 * dim)), layer([[1]], [-1]))
    partition = subdivide_and_compare(layers, cube(dim))
    assert partition.num_cells == 4 * dim  # the inner part of each cone is dead


def test_a_pool_of_equal_rows_is_linear() -> None:
    layers = network(layer([[1, 2, 3]] * 5, [1] * 5, Pool(5)), layer([[1]], [0], LINEAR))
    assert subdivide_and_compare(layers, cube(3)).num_cells == 1


def test_cells_that_a_pool_leaves_keep_no_trace_of_what_lost() -> None:
    # where z wins, the knot x = y between the losers is none
    layers = network(
        layer([[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 4]], [0, 0, 0, 0], Pool(4)),
        layer([[1], [-1]], [-1, 1]),
        layer([[1, 1]], [0], LINEAR),
    )
    subdivide_and_compare(layers, cube(3))


@pytest.mark.parametrize(
    "body", [cube(3), corner_simplex(3), cross(3), pyramid(3), trimmed_cube(3)]
)
@pytest.mark.parametrize("seed", range(3))
def test_generic_networks_agree_on_every_body(body: Body, seed: int) -> None:
    subdivide_and_compare(random_network(seed, (5, 4), (RELU, ABS), 3), body)


@pytest.mark.parametrize(("dim", "widths"), [(4, (5, 3)), (5, (5, 2)), (6, (6,))])
def test_generic_networks_agree_in_high_dimensions(dim: int, widths: tuple[int, ...]) -> None:
    subdivide_and_compare(random_network(1, widths, (RELU,), dim), cube(dim))


@pytest.mark.parametrize(("dim", "count"), [(3, 7), (4, 7), (5, 7), (6, 8)])
def test_generic_hyperplanes_make_the_counts_of_zaslavsky_and_buck(dim: int, count: int) -> None:
    # offsets small enough that all vertices lie inside
    rows = [[math.cos(t * k) for k in range(dim)] for t in range(1, count + 1)]
    layers = one_layer(rows, [1e-3 * math.sin(t * t) for t in range(1, count + 1)])
    partition = cpwl.subdivide(capture(layers), cube(dim, 1).domain(), progress=False)
    assert_checked(partition)
    assert partition.status.exact
    assert partition.num_cells == arrangement_cells(count, dim)
    assert inner_facets(partition) == arrangement_faces(count, dim, dim - 1)
    inside = np.abs(partition.points).max(axis=1) < 1
    assert inside.sum() == arrangement_faces(count, dim, 0)


def test_a_slice_of_a_larger_latent_space_agrees_with_the_oracle() -> None:
    layers = random_network(3, (6, 4), dim=5)
    origin = np.array([0.5, -0.25, 1.0, 0.0, 0.1])
    basis = np.array([[1.0, 0.5, 0, -1, 0.3], [0, 0.25, 2, 1, 0], [1, 1, 0, 0.7, 0]])
    place = cpwl.Slice(origin, basis)
    partition = cpwl.subdivide(capture(layers), place.box([-2] * 3, [2] * 3), progress=False)
    assert_checked(partition)
    embedding = np.column_stack([basis.T, origin]).tolist()
    assert_agrees(partition, layers, splitting.subdivide(layers, cube(3).exact(), embedding))
