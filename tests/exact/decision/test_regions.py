"""Decision regions: they tile the domain, hold their winner, and know their neighbours."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import shapely
import torch
from hypothesis import given
from support.agreement import capture
from support.samples import mlp
from support.strategies import degenerate_networks, nightly, ordinary, shapes
from torch import Tensor, nn

import cpwl

pytestmark = pytest.mark.usefixtures("one_thread")


def over_box(module: nn.Module, size: float = 2.0) -> cpwl.Partition:
    network = cpwl.Network.from_torch(module, (2,))
    return cpwl.subdivide(network, cpwl.box([-size] * 2, [size] * 2), progress=False)


class Outputs(nn.Module):
    """A function of the coordinates (n, 1) each."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(*z.split(1, dim=1))


def assert_sound(partition: cpwl.Partition, decide: str = "argmax") -> cpwl.DecisionRegions:
    """Hold regions against the network at random points, and shapely's view of their polygons."""
    found = cpwl.decision_regions(partition, decide)
    assert shapely.is_valid(found.polygons).all()
    assert shapely.coverage_is_valid(found.polygons)
    np.testing.assert_allclose(shapely.area(found.polygons), found.areas, rtol=1e-9, atol=1e-12)
    assert found.areas.sum() == pytest.approx(partition.domain.volume, rel=1e-12)
    assert np.all(np.diff(found.labels) >= 0)
    corners = partition.domain.corners
    points = np.random.default_rng(0).uniform(corners.min(0), corners.max(0), (500, 2))
    scores = partition.network(partition.domain.slice.embed(points)).numpy()
    if scores.shape[1] == 1:
        scores = np.hstack([np.zeros_like(scores), scores])
    scores = scores if decide == "argmax" else -scores
    point, region = shapely.STRtree(found.polygons).query(shapely.points(points), "within")
    assert sorted(point) == list(range(len(points)))
    won = scores[point, found.labels[region]]
    assert (scores.max(axis=1)[point] - won).max() <= found.tolerance
    # where no two are equal, the winner itself; ties go to the lowest
    np.testing.assert_array_equal(
        found.labels[region], np.argmax(scores[point] >= won[:, None] - found.tolerance, axis=1)
    )
    # neighbours have a border of that length, and others have none
    tree = shapely.STRtree(found.polygons)
    near = {(a, b) for a, b in tree.query(found.polygons, "intersects").T.tolist() if a < b}
    pairs = dict(zip(map(tuple, found.neighbours.tolist()), found.lengths, strict=True))
    for a, b in near:
        common = shapely.intersection(found.polygons[a], found.polygons[b])
        assert pairs.get((a, b), 0.0) == pytest.approx(common.length, abs=1e-9)
    assert set(pairs) <= near
    return found


@pytest.mark.parametrize("decide", ["argmax", "argmin"])
def test_regions_of_a_classifier(decide: str) -> None:
    partition = over_box(mlp(2, 12, 12, 3, seed=22), 3.0)
    found = assert_sound(partition, decide)
    assert set(found.labels) == {0, 1, 2}
    assert not np.any(found.labels[found.neighbours[:, 0]] == found.labels[found.neighbours[:, 1]])


def test_a_single_output_is_decided_by_its_sign() -> None:
    ring = Outputs(lambda x, y: (torch.maximum(x.abs(), y.abs()) - 1).abs() - 0.5)
    found = assert_sound(over_box(ring))
    assert found.labels.tolist() == [0, 1, 1]  # the ring, outside, and the hole
    assert found.areas.tolist() == pytest.approx([8, 7, 1])
    assert [len(polygon.interiors) for polygon in found.polygons] == [1, 1, 0]
    assert nx.Graph(found.neighbours.tolist()).degree(0) == 2
    assert found.lengths.tolist() == pytest.approx([12, 4])


def test_an_output_that_wins_only_inside_a_cell_is_found() -> None:
    # max(-x, x, 0.5): the third wins around 0, at no corner of the only cell
    partition = over_box(Outputs(lambda x, y: torch.cat([-x, x, 0 * y + 0.5], dim=1)), 1.0)
    assert partition.num_cells == 1
    found = assert_sound(partition)
    assert found.areas.tolist() == pytest.approx([1, 1, 2])
    assert found.neighbours.tolist() == [[0, 2], [1, 2]]


def test_ties_go_to_the_lowest_output() -> None:
    both = Outputs(lambda x, y: torch.cat([torch.relu(x), torch.relu(x), 0 * y], dim=1))
    found = assert_sound(over_box(both))
    assert found.labels.tolist() == [0]
    assert len(found.neighbours) == 0


def test_regions_that_touch_in_a_corner_are_no_neighbours() -> None:
    found = assert_sound(over_box(Outputs(lambda x, y: x.abs() - y.abs())))
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert sorted(map(tuple, found.neighbours.tolist())) == [(0, 2), (0, 3), (1, 2), (1, 3)]


@ordinary(6)
@given(degenerate_networks(shapes(2)))
def test_degenerate_regions_are_sound(layers) -> None:
    assert_degenerate(layers)


@pytest.mark.nightly
@nightly(600)
@given(degenerate_networks(shapes(2)))
def test_many_degenerate_regions_are_sound(layers) -> None:
    assert_degenerate(layers)


def assert_degenerate(layers) -> None:
    domain = cpwl.box([-2, -2], [2, 2])
    assert_sound(cpwl.subdivide(capture(layers), domain, progress=False))


BAD = {
    "decide": ({"decide": "max"}, r"decide to be 'argmax' or 'argmin', got 'max'\. Choose one"),
    "argmin of one": ({"decide": "argmin"}, r"two or more outputs for 'argmin', got one\. Leave"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_error(case) -> None:
    options, text = BAD[case]
    with pytest.raises(ValueError, match=text):
        cpwl.decision_regions(over_box(nn.Sequential(nn.Linear(2, 1))), **options)
