"""Adjacency, regions and point location."""

from __future__ import annotations

import dataclasses
import math

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import shapely
import torch
from support.grids import grid, intervals
from support.samples import KINDS, generator, mlp, partition_of, sample
from torch import nn

import cpwl


@pytest.mark.parametrize("dim", [1, 2])
def test_adjacency_joins_cells_across_their_facets(dim):
    _, partition = sample("skip", dim)
    graph = cpwl.adjacency(partition)
    assert sorted(graph) == list(range(partition.num_cells))
    assert nx.is_connected(graph)
    inner = partition.facet_cells[(partition.facet_cells >= 0).all(axis=1)]
    assert graph.number_of_edges() == len(inner)
    pieces = partition.pieces()
    for a, b, data in graph.edges(data=True):
        assert {a, b} == set(partition.facet_cells[data["facet"]].tolist())
        assert data["unit"] == partition.facet_unit[data["facet"]]
        assert pieces[a, data["unit"]] != pieces[b, data["unit"]]


def test_nodes_carry_what_is_asked_for():
    partition = sample("mlp")[1]
    graph = cpwl.adjacency(partition, ["volume", "centroid", "psi", "nu", "region"])
    frame = pd.DataFrame.from_dict(dict(graph.nodes(data=True)), orient="index")
    np.testing.assert_array_equal(frame.volume, cpwl.volumes(partition))
    np.testing.assert_array_equal(frame.centroid.tolist(), cpwl.centroids(partition))
    np.testing.assert_array_equal(frame.psi, cpwl.local_scaling(partition))
    np.testing.assert_array_equal(frame.nu, cpwl.local_rank(partition))
    np.testing.assert_array_equal(frame.region, cpwl.regions(partition).index)
    assert set(cpwl.adjacency(partition).nodes[0]) == {"volume", "centroid"}
    assert set(cpwl.adjacency(partition, "psi").nodes[0]) == {"psi"}
    with pytest.raises(ValueError, match=r"Expected attributes among psi, .* got area, label"):
        cpwl.adjacency(partition, ["area", "volume", "label"])


def test_one_dimensional_adjacency_is_a_path():
    _, partition = sample("mlp", 1)
    assert nx.is_isomorphic(cpwl.adjacency(partition), nx.path_graph(partition.num_cells))


def test_generic_cells_are_their_own_regions():
    found = cpwl.regions(generator())
    assert found.count == generator().num_cells
    np.testing.assert_array_equal(found.index, np.arange(found.count))
    assert found.merged <= found.tolerance < found.kept


@pytest.mark.parametrize("outputs", [1, 3, 20])
def test_cells_behind_a_dead_unit_are_one_region(outputs):
    module = mlp(2, 6, 6, outputs, seed=2)
    with torch.no_grad():
        module[2].weight[:, 0] = 0.0  # the first unit's knot cuts cells and changes no map
    partition = partition_of(module, -2, 2)
    found = cpwl.regions(partition)
    graph = cpwl.adjacency(partition)
    graph.remove_edges_from([(a, b) for a, b, unit in graph.edges(data="unit") if unit != 0])
    expected = list(nx.connected_components(graph))
    assert len(expected) < partition.num_cells
    assert found.count == len(expected)
    for cells in expected:
        assert len(set(found.index[sorted(cells)])) == 1
    assert found.merged <= np.finfo(float).eps  # rounding alone: products may differ by place
    _, first = np.unique(found.index, return_index=True)
    assert (np.diff(first) > 0).all()  # numbered by their lowest cell


def test_units_that_cancel_merge_with_a_recorded_difference():
    # relu(h) - relu(-h) = h: each knot alone would be a kink, both together are none
    module = mlp(2, 6, 3, seed=1)
    with torch.no_grad():
        module[0].weight[3:] = -module[0].weight[:3]
        module[0].bias[3:] = -module[0].bias[:3]
        module[2].weight[:, 3:] = -module[2].weight[:, :3]
    partition = partition_of(module, -3, 3)
    found = cpwl.regions(partition)
    assert partition.num_cells > 3
    assert found.count == 1
    assert found.merged < 1e-14
    assert found.kept == np.inf


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("with_network", [True, False])
def test_locate_agrees_with_brute_force(kind, dim, with_network):
    _, partition = sample(kind, dim)
    if not with_network:
        partition = dataclasses.replace(partition, network=None)
    points = np.random.default_rng(0).uniform(-2.3, 2.3, (300, dim))
    found = cpwl.locate(partition, points)
    np.testing.assert_array_equal(found < 0, (np.abs(points) > 2).any(axis=1))
    if dim == 1:
        ends = partition.points[partition.cell_corners, 0].reshape(-1, 2)
        holds = (points >= ends[:, 0]) & (points <= ends[:, 1])
    else:
        holds = shapely.contains_xy(cpwl.polygons(partition)[None], *points.T[..., None])
    inside = found >= 0
    np.testing.assert_array_equal(holds[inside].sum(axis=1), 1)
    np.testing.assert_array_equal(holds[inside].argmax(axis=1), found[inside])


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("with_network", [True, False])
def test_points_on_knots_get_a_cell_that_touches_them(dim, with_network):
    _, partition = sample("skip", dim)
    found = cpwl.locate(
        partition if with_network else dataclasses.replace(partition, network=None),
        partition.points,
    )
    offsets, corners = partition.cell_offsets, partition.cell_corners
    for point, cell in enumerate(found):
        loop = partition.points[corners[offsets[cell] : offsets[cell + 1]]]
        if dim == 1:
            assert loop[0, 0] - 1e-12 <= partition.points[point, 0] <= loop[1, 0] + 1e-12
        else:
            distance = shapely.Polygon(loop).distance(shapely.Point(partition.points[point]))
            assert distance < 1e-12


SPACES = {
    3: ((0.1, 0.4), (-0.3,), (0.7,)),
    4: ((0.1,), (-0.3, 0.2), (), (0.5,)),
    6: ((0.1,), (0.3,), (), (0.0,), (), (0.6,)),
}


@pytest.mark.parametrize("dim", SPACES)
@pytest.mark.parametrize("with_network", [True, False])
def test_points_of_space_are_located(dim, with_network):
    partition = grid(*SPACES[dim])
    low, high = np.moveaxis(intervals(partition), 1, 0)
    partition = partition if with_network else dataclasses.replace(partition, network=None)
    points = np.random.default_rng(0).uniform(-1.2, 1.2, (300, dim))
    found = cpwl.locate(partition, points)
    np.testing.assert_array_equal(found < 0, (np.abs(points) > 1).any(axis=1))
    inside = found >= 0
    assert ((low[found] <= points) & (points <= high[found]))[inside].all()
    # vertices and the middles of edges lie on knots and on the boundary
    ends = partition.points[partition.edges]
    share = np.random.default_rng(1).random((len(ends), 1))
    between = share * ends[:, 0] + (1 - share) * ends[:, 1]
    for on_knots in (partition.points, between):
        found = cpwl.locate(partition, on_knots)
        assert ((low[found] <= on_knots + 1e-12) & (on_knots - 1e-12 <= high[found])).all()


@pytest.mark.parametrize("dim", SPACES)
def test_cells_of_space_touch_across_their_cuts(dim):
    partition = grid(*SPACES[dim])
    graph = cpwl.adjacency(partition)
    pieces = partition.pieces()
    sizes = [len(own) + 1 for own in SPACES[dim]]
    assert graph.number_of_edges() == sum((size - 1) * math.prod(sizes) // size for size in sizes)
    for a, b, data in graph.edges(data=True):
        changed = np.flatnonzero(pieces[a] != pieces[b])
        assert changed.tolist() == [data["unit"]]
        assert {a, b} == set(partition.facet_cells[data["facet"]].tolist())
    found = cpwl.regions(partition)
    assert found.count == partition.num_cells


def test_units_that_vanish_on_a_whole_cell_are_found_by_position():
    # x -> relu(x) -> relu(a relu(x)) is 0 on half the square, where no pattern is certain
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 3, bias=False))
    module.append(nn.ReLU())
    partition = partition_of(module.append(nn.Linear(3, 3)))
    points = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    holds = shapely.contains_xy(cpwl.polygons(partition)[None], *points.T[..., None])
    np.testing.assert_array_equal(cpwl.locate(partition, points), holds.argmax(axis=1))


def test_no_points_and_no_knots():
    module = mlp(2, 3, 2)
    with torch.no_grad():
        module[0].bias.fill_(100.0)
    partition = partition_of(module)
    assert partition.num_cells == 1
    assert cpwl.locate(partition, np.empty((0, 2))).shape == (0,)
    assert cpwl.locate(partition, [[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]]).tolist() == [0, 0, -1]
    assert cpwl.regions(partition).count == 1
    assert cpwl.adjacency(partition).number_of_edges() == 0


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([0.0, 0.0], r"Expected finite points of shape \(n, 2\) in slice coordinates, got shape"),
        ([[0.0, 0.0, 1.0]], r"got shape \(1, 3\). Use partition.domain.slice.project"),
        ([[0.0, np.nan]], "Expected finite points of shape .* got NaN or inf"),
    ],
)
def test_bad_points_are_named(points, message):
    with pytest.raises(ValueError, match=message):
        cpwl.locate(generator(), points)
