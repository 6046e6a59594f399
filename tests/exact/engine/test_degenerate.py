"""Networks whose knots coincide, vanish, touch or meet: ordinary cases with exact answers."""

from __future__ import annotations

import numpy as np
import pytest
from oracles.layers import ABS, LINEAR, Pool, hardtanh, layer, leaky, network
from support.agreement import subdivide_and_compare
from support.strategies import BOX, INTERVALS, Corners, degenerate_networks, nightly, ordinary
from support.sweeps import sweep

import cpwl

SUM = [1, 1]


pytestmark = pytest.mark.usefixtures("one_thread")


def two_layers(weight: list, bias: list, *behind: tuple[list, list]) -> tuple:
    """Return a ReLU layer, further ReLU layers behind it, and a linear one."""
    layers = [layer(weight, bias), *(layer(w, b) for w, b in behind)]
    return network(*layers, layer([[1] * layers[-1].width], [0], LINEAR))


def volumes(partition: cpwl.Partition) -> list[float]:
    return sorted(np.round(cpwl.volumes(partition), 12).tolist())


def test_equal_units_cut_once() -> None:
    partition = subdivide_and_compare(two_layers([[1, 0], [1, 0], [2, 0]], [1, 1, 2]), BOX)
    assert volumes(partition) == [4.0, 12.0]
    assert (partition.facet_cells >= 0).all(1).sum() == 1


def test_opposite_units_cut_once() -> None:
    partition = subdivide_and_compare(two_layers([[1, 2], [-1, -2]], [1, -1]), BOX)
    assert partition.num_cells == 2
    assert sorted(partition.pieces().tolist()) == [[0, 1], [1, 0]]


def test_a_facet_has_one_name_in_every_domain() -> None:
    # max(x, -x, y - 1), whose last match is decided below y = -1, and max(0, -5, x)
    rows = [[1, 0], [-1, 0], [0, 1], [0, 0], [0, 0], [1, 0]]
    layers = network(layer(rows, [0, 0, -1, 0, -5, 0], Pool(3)), layer([SUM], [0], LINEAR))
    below: Corners = ((-2.0, -2.0), (2.0, -2.0), (2.0, -1.0), (-2.0, -1.0))
    names = []
    for corners in (BOX, below):
        partition = subdivide_and_compare(layers, corners)
        upright = (partition.points[partition.facet_corners.reshape(-1, 2), 0] == 0).all(axis=1)
        names.append(sorted(partition.facet_unit[upright].tolist()))
    assert names == [[0, 3], [0]]  # above y = 1 the match of x and -x is without effect


def test_parallel_units_cut_strips() -> None:
    partition = subdivide_and_compare(two_layers([[1, 0], [1, 0], [-2, 0]], [1, -1, 0]), BOX)
    assert volumes(partition) == [4.0] * 4


def test_dead_units_cut_nothing() -> None:
    # never on; identically zero; constant; on everywhere
    partition = subdivide_and_compare(
        two_layers([[1, 1], [0, 0], [0, 0], [1, 0], [1, 1]], [-9, 0, 3, 9, 0]), BOX
    )
    assert partition.num_cells == 2
    assert {tuple(row[1:4]) for row in partition.pieces().tolist()} == {(0, 1, 1)}


def test_units_behind_dead_ones_are_cut_only_where_they_live() -> None:
    # the second layer's unit is x - 1 where x > 0 and exactly 0 elsewhere, then only shifted
    layers = two_layers([[1, 0]], [0], ([[1], [1]], [-1, 0]), ([[0, 1], [0, -1]], [0, 0]))
    partition = subdivide_and_compare(layers, BOX)
    assert volumes(partition) == [4.0, 4.0, 8.0]


def test_bias_free_units_meet_in_the_origin() -> None:
    weight = [[1, 0], [0, 1], [1, 1], [1, -1], [2, 1]]
    partition = subdivide_and_compare(two_layers(weight, [0] * 5), BOX)
    assert partition.num_cells == 10
    origin = np.flatnonzero((np.abs(partition.points) < 1e-12).all(axis=1))
    assert len(origin) == 1
    assert (partition.facet_points == origin[0]).any(1).sum() == 10


def test_a_deep_bias_free_network_is_a_fan() -> None:
    layers = two_layers(
        [[1, 0], [0, 1], [-1, 2]], [0] * 3, ([[1, -1, 1], [-2, 1, 1], [0, 1, -1]], [0] * 3)
    )
    partition = subdivide_and_compare(layers, BOX)
    inner = (partition.facet_cells >= 0).all(1)
    assert partition.num_cells == inner.sum()


def test_a_knot_on_a_side_of_the_domain_cuts_nothing() -> None:
    partition = subdivide_and_compare(two_layers([[1, 0], [-1, 0]], [2, -2]), BOX)
    assert partition.num_cells == 1
    assert partition.pieces().tolist() == [[1, 0]]


def test_a_knot_on_a_side_of_a_cell_cuts_nothing_more() -> None:
    # behind relu(x) and relu(-x), |x| - 0 vanishes on the facet and nowhere else
    layers = two_layers([[1, 0], [-1, 0]], [0, 0], ([[1, 1], [-1, -1], [1, 2]], [0, 0, 0]))
    partition = subdivide_and_compare(layers, BOX)
    assert partition.num_cells == 2


def test_a_knot_through_a_corner_of_the_domain_cuts_from_it() -> None:
    partition = subdivide_and_compare(two_layers([[1, -1]], [0]), BOX)
    assert volumes(partition) == [8.0, 8.0]
    assert len(partition.points) == 4


def test_a_knot_that_touches_a_corner_cuts_nothing() -> None:
    partition = subdivide_and_compare(two_layers([[1, 1], [-1, -1]], [4, -4]), BOX)
    assert partition.num_cells == 1
    assert partition.pieces().tolist() == [[1, 0]]


def test_a_knot_through_a_corner_of_cells_adds_no_corner() -> None:
    # the knot of relu(x) + relu(y) - relu(x + y) passes through the origin, where two lines cross
    weight = [[1, 0], [0, 1], [1, 1]]
    layers = two_layers(weight, [0] * 3, ([[1, 1, -1], [1, -1, 0], [2, -1, 0]], [0] * 3))
    partition = subdivide_and_compare(layers, BOX)
    assert (np.abs(partition.points) < 1e-12).all(axis=1).sum() == 1


def test_concurrent_knots_meet_in_one_point() -> None:
    # four lines through (1/3, -2/3), which float64 cannot hold, and one that is not
    weight, bias = [[3, 0], [0, 3], [3, 3], [3, -3], [1, 2]], [-1, 2, 1, -3, 0]
    partition = subdivide_and_compare(two_layers(weight, bias), BOX)
    near = np.abs(partition.points - [1 / 3, -2 / 3]).max(axis=1) < 1e-9
    assert near.sum() == 1


def test_concurrent_knots_of_different_layers_meet_in_one_point() -> None:
    # |3x - 1|, |3y + 2| and their difference all vanish in (1/3, -2/3)
    layers = network(
        layer([[3, 0], [0, 3]], [-1, 2], ABS),
        layer([[1, -1], [1, -2], [2, -1]], [0, 0, 0]),
        layer([[1, 1, 1]], [0], LINEAR),
    )
    partition = subdivide_and_compare(layers, BOX)
    assert partition.num_cells == 16
    near = np.abs(partition.points - [1 / 3, -2 / 3]).max(axis=1) < 1e-9
    assert near.sum() == 1


def test_a_slope_of_one_is_no_knot() -> None:
    layers = network(layer([[1, 0], [0, 1]], [0, 0], leaky(1)), layer([[1, 1]], [0], LINEAR))
    assert subdivide_and_compare(layers, BOX).num_cells == 1


def test_both_breakpoints_on_sides_cut_nothing() -> None:
    layers = network(layer([[1, 0], [0, 1]], [0, 0], hardtanh(-2, 2)), layer([SUM], [0], LINEAR))
    partition = subdivide_and_compare(layers, BOX)
    assert partition.pieces().tolist() == [[1, 1]]


def test_equal_candidates_of_a_pool_cut_once() -> None:
    pools = layer([[1, 0], [1, 0], [0, 1], [0, 0], [0, 0], [1, 1]], [0] * 6, Pool(3))
    partition = subdivide_and_compare(network(pools, layer([SUM], [0])), BOX)
    assert partition.status.complete


def test_equal_breakpoints_on_an_interval_make_one_point() -> None:
    layers = two_layers(
        [[1], [-2], [3], [0]], [-1, 2, -3, 0], ([[1, 1, 0, 1], [1, -1, 1, 0]], [0, 0])
    )
    partition = subdivide_and_compare(layers, INTERVALS[0])
    assert partition.points[:, 0].tolist() == sorted({-2.0, 1.0, 2.0})


def test_a_breakpoint_at_the_end_of_an_interval_cuts_nothing() -> None:
    partition = subdivide_and_compare(two_layers([[1], [-1]], [2, -2]), INTERVALS[0])
    assert partition.num_cells == 1


@pytest.mark.parametrize(("dim", "examples"), [(1, 6), (2, 10), (3, 8), (4, 3), (5, 2), (6, 2)])
def test_degenerate_networks_agree_with_the_oracle(dim: int, examples: int) -> None:
    sweep(degenerate_networks, dim, ordinary(examples))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("dim", "examples"), [(1, 400), (2, 800), (3, 600), (4, 200), (5, 100), (6, 50)]
)
def test_many_degenerate_networks_agree_with_the_oracle(dim: int, examples: int) -> None:
    sweep(degenerate_networks, dim, nightly(examples))
