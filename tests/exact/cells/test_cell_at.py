"""Cells around single latents against the enumerated partition, and programs written out here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import shapely
import torch
from hypothesis import Phase, given, settings
from oracles.layers import RELU, Layer, Pool, hardtanh, leaky
from scipy.optimize import linprog, minimize
from support.agreement import capture
from support.strategies import (
    degenerate_networks,
    generic_networks,
    nightly,
    ordinary,
    random_network,
    shapes,
)
from torch import Tensor, nn

import cpwl

pytestmark = pytest.mark.usefixtures("one_thread")


class Overlapping(nn.Module):
    """Max-pooling windows that share candidates, over values that are often both zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(2, 9), nn.Linear(4, 2)

    def forward(self, z: Tensor) -> Tensor:
        h = torch.relu(self.first(z)).reshape(-1, 1, 3, 3)
        return self.last(nn.functional.max_pool2d(h, 2, stride=1).flatten(1))


class Convolved(nn.Module):
    """Two convolutions around a skip connection, with minima, clamps and a wave."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Conv1d(1, 2, 2, padding=1), nn.Conv1d(2, 2, 2)

    def forward(self, z: Tensor) -> Tensor:
        h = torch.clamp(self.first(z[:, None]), -0.5, 0.7)
        h = torch.minimum(self.second(h), z[:, None, :2])
        return (torch.remainder(h * 2, 1.5) - 0.75).abs().flatten(1)


def networks() -> Iterator[tuple[str, cpwl.Network]]:
    """Yield small networks of every kind of unit."""
    yield "relu", capture(random_network(0, (6, 5)))
    yield "clamps", capture(random_network(1, (4, 4), (hardtanh(), leaky(-1))))
    yield "pools", capture(random_network(2, (3, 2), (Pool(3), RELU)))
    yield "overlapping", cpwl.Network.from_torch(Overlapping(), (2,))
    yield "convolved", cpwl.Network.from_torch(Convolved(), (2,))
    yield "solid", capture(random_network(4, (5, 3), (RELU, Pool(2)), dim=3))


NETWORKS = dict(networks())


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> cpwl.Network:
    return NETWORKS[request.param]


def without_effect(network: cpwl.Network, pieces: np.ndarray) -> np.ndarray:
    """Name units in the losing half of a tournament, on one pattern."""
    parent, piece, child = network.contests.T
    return child[pieces[parent] == piece]


def pattern(network: cpwl.Network, pieces: np.ndarray) -> tuple[int, ...]:
    shown = pieces.copy()
    shown[without_effect(network, pieces)] = 0
    return tuple(shown.tolist())


def inner_facets(partition: cpwl.Partition, cell: int) -> dict[int, set[int]]:
    """Return, for each unit of a cell's facets, the cells across them."""
    found: dict[int, set[int]] = {}
    first, last = partition.cell_facet_offsets[cell : cell + 2]
    for facet in partition.cell_facets[first:last]:
        if partition.facet_unit[facet] >= 0:
            pair = partition.facet_cells[facet]
            found.setdefault(int(partition.facet_unit[facet]), set()).add(int(pair.sum()) - cell)
    return found


def assert_same_as_partition(network: cpwl.Network, most: int, degenerate: bool = False) -> int:
    """Compare pattern, map, facets and neighbours of the cells, or of so many of them.

    Of a degenerate network a unit may be zero on a whole cell, which float64 cannot tell: then what
    is claimed is right all the same, and what is missing is told. Returns the cells without doubts.
    """
    decided = 0
    low, high = -2.0, 2.0
    size = network.input_shape[0]
    partition = cpwl.subdivide(network, cpwl.box([low] * size, [high] * size))
    every = [pattern(network, row) for row in partition.pieces()]
    chosen = np.unique(np.linspace(0, partition.num_cells - 1, most).astype(int))
    maps = cpwl.affine_maps(partition, chosen, wrt="latent", chunk=1)
    for cell, (A, b) in zip(chosen.tolist(), maps, strict=True):
        one = cpwl.cell_at(network, cpwl.centroids(partition)[cell])
        if degenerate and len(one.undecided):
            continue
        decided += 1
        assert len(one.undecided) == 0
        assert tuple(one.pieces.tolist()) == every[cell]
        np.testing.assert_allclose(one.A, A[0], atol=1e-12)
        np.testing.assert_allclose(one.b, b[0], atol=1e-12)
        found = cpwl.facets(one, low, high)
        expected = inner_facets(partition, cell)
        assert (found.margins > 0).all()
        named = set()
        for i, beyond in zip(found.halfspaces, cpwl.neighbours(found), strict=True):
            # where losers of a max-pooling tie, a partition may name a facet after any of them
            units = set(one.halfspaces.unit[found.same_as == i].tolist()) & set(expected)
            assert units
            named |= units
            if degenerate and beyond is None:
                continue
            assert beyond is not None
            across = set().union(*(expected[unit] for unit in units))
            assert tuple(beyond.pieces.tolist()) in {every[k] for k in across}
        told = set(one.halfspaces.unit[found.unproven].tolist()) if degenerate else set()
        assert named <= set(expected) <= named | told
    return decided


def test_cells_are_those_of_the_partition(network: cpwl.Network) -> None:
    assert_same_as_partition(network, 9)


def test_generic_half_spaces_are_all_proven() -> None:
    for layers in (random_network(7, (6, 5)), random_network(8, (6, 4), dim=3)):
        network = capture(layers)
        size = network.input_shape[0]
        for seed in range(3):
            z = np.random.default_rng(seed).uniform(-2, 2, size)
            assert len(cpwl.facets(cpwl.cell_at(network, z), -2, 2).unproven) == 0


@pytest.mark.parametrize("dim", [2, 3])
def test_degenerate_cells_are_those_of_the_partition(dim: int) -> None:
    @settings(ordinary(6), phases=[Phase.generate])
    @given(degenerate_networks(shapes(dim)))
    def agree(layers: tuple[Layer, ...]) -> None:
        decided.append(assert_same_as_partition(capture(layers), 4, degenerate=True))

    decided: list[int] = []
    agree()
    assert sum(decided) > len(decided)


@pytest.mark.nightly
@pytest.mark.parametrize("networks_of", [degenerate_networks, generic_networks])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_many_cells_are_those_of_the_partition(networks_of, dim: int) -> None:
    @settings(nightly(40), phases=[Phase.generate])
    @given(networks_of(shapes(dim)))
    def agree(layers: tuple[Layer, ...]) -> None:
        degenerate = networks_of is degenerate_networks
        decided.append(assert_same_as_partition(capture(layers), 40, degenerate))

    decided: list[int] = []
    agree()
    assert sum(decided) > len(decided)


def test_nearest_knot_is_the_nearest_facet_of_the_partition() -> None:
    for name in ("relu", "clamps", "pools", "overlapping", "convolved"):
        network = NETWORKS[name]
        partition = cpwl.subdivide(network, cpwl.box([-3, -3], [3, 3]))
        knots = shapely.linestrings(partition.points[partition.facet_points])
        knots = shapely.multilinestrings(knots[partition.facet_unit >= 0])
        for z in np.random.default_rng(0).uniform(-1, 1, (40, 2)):
            cell = cpwl.cell_at(network, z)
            brute = shapely.distance(shapely.points(z), knots)
            assert brute < 2, "else the box hides the nearest knot"
            assert cell.distance == pytest.approx(brute, abs=1e-12 + cell.distance_error)
            assert cell.distance_error < 1e-12


def test_no_unit_switches_within_the_distance() -> None:
    module = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU()).double()
    torch.manual_seed(0)
    network = cpwl.Network.from_torch(module, (40,))
    z = torch.randn(40, dtype=torch.float64)
    cell = cpwl.cell_at(network, z)
    away = torch.randn(2000, 40, dtype=torch.float64)
    away *= (cell.distance - cell.distance_error) / away.norm(dim=1, keepdim=True)
    assert (network.pieces(z + away).numpy() == cell.pieces).all()
    nearest = int(cell.distances.argmin())
    out = z.numpy() + cell.halfspaces.A[nearest] * cell.distance * (1 + 1e-9)
    changed = np.flatnonzero(network.pieces(out[None]).numpy()[0] != cell.pieces)
    assert changed.tolist() == [cell.halfspaces.unit[nearest]]


def wide() -> tuple[cpwl.Network, np.ndarray, np.ndarray, np.ndarray]:
    """Return a network of 12 inputs, a latent, and its half-spaces from products of weights."""
    torch.manual_seed(1)
    layers = [nn.Linear(a, b).double() for a, b in pairwise((12, 20, 20))]
    module = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU())
    z = np.random.default_rng(1).standard_normal(12)
    A, b = np.eye(12), np.zeros(12)
    rows, limits = [], []
    for one in layers:
        weight, bias = one.weight.detach().numpy(), one.bias.detach().numpy()
        A, b = weight @ A, weight @ b + bias
        on = A @ z + b > 0
        rows.append(np.where(on, -1.0, 1.0)[:, None] * A)
        limits.append(np.where(on, 1.0, -1.0) * b)
        A, b = on[:, None] * A, on * b
    return (
        cpwl.Network.from_torch(module, (12,)), z, np.concatenate(rows), np.concatenate(limits)
    )  # fmt: skip


def test_facets_are_those_that_dropping_enlarges() -> None:
    network, z, A, b = wide()
    expected = []
    for i in range(len(A)):
        others = np.delete(np.arange(len(A)), i)
        best = linprog(-A[i], A[others], b[others], bounds=(-3, 3))
        if -best.fun > b[i] + 1e-9:
            expected.append(i)
    found = cpwl.facets(cpwl.cell_at(network, z), -3, 3)
    assert found.units.tolist() == expected
    assert 0 < len(expected) < len(A)
    assert len(found.unproven) == 0


def test_ball_is_that_of_another_program() -> None:
    network, z, A, b = wide()
    norms = np.linalg.norm(A, axis=1)
    rows = np.concatenate([A, np.eye(12), -np.eye(12)])
    rows = np.column_stack([rows, np.append(norms, np.ones(24))])
    best = linprog(-np.eye(13)[12], rows, np.append(b, np.full(24, 3.0)), bounds=(None, None))
    ball = cpwl.chebyshev_ball(cpwl.cell_at(network, z), -3, 3)
    assert ball.radius <= -best.fun <= ball.radius_at_most
    assert ball.radius_at_most - ball.radius < 1e-9
    assert (A @ ball.center + norms * ball.radius <= b).all()


@pytest.mark.parametrize("name", ["relu", "clamps", "overlapping", "convolved"])
def test_nearest_cells_are_those_of_the_partition(name: str) -> None:
    network = NETWORKS[name]
    partition = cpwl.subdivide(network, cpwl.box([-2, -2], [2, 2]))
    every = [pattern(network, row) for row in partition.pieces()]
    z = np.random.default_rng(5).uniform(-1, 1, 2)
    brute = shapely.distance(cpwl.polygons(partition), shapely.points(z))
    # pooling may leave one pattern to several cells, of which a search finds the nearest
    expected: dict[tuple[int, ...], float] = {}
    for which, distance in zip(every, brute, strict=True):
        expected[which] = min(distance, expected.get(which, np.inf))
    near = cpwl.cells_near(network, z, 14, -2, 2)
    assert near.uncrossed == 0
    found = [tuple(cell.pieces.tolist()) for cell in near.cells]
    assert len(set(found)) == 14
    for which, distance in zip(found, near.distances, strict=True):
        assert distance == pytest.approx(expected[which], abs=1e-9)
    np.testing.assert_allclose(near.distances, sorted(expected.values())[:14], atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(near.nearest - z, axis=1), near.distances, atol=1e-9)


def test_a_search_visits_every_cell() -> None:
    network = NETWORKS["clamps"]
    partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    near = cpwl.cells_near(network, [0.1, 0.2], 10**6, -1, 1)
    found = {tuple(cell.pieces.tolist()) for cell in near.cells}
    assert len(near.cells) == partition.num_cells
    assert found == {pattern(network, row) for row in partition.pieces()}


def test_nearest_cells_in_space() -> None:
    network = NETWORKS["solid"]
    partition = cpwl.subdivide(network, cpwl.box([-2] * 3, [2] * 3))
    z = np.array([0.3, -0.4, 0.5])
    brute = []
    for first, last in pairwise(partition.cell_offsets):
        corners = partition.points[partition.cell_corners[first:last]] - z
        gram = corners @ corners.T
        count = len(corners)
        best = minimize(
            lambda w, gram=gram: w @ gram @ w,
            np.full(count, 1 / count),
            jac=lambda w, gram=gram: 2 * gram @ w,
            bounds=[(0, 1)] * count,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        brute.append(np.sqrt(max(best.fun, 0)))
    near = cpwl.cells_near(network, z, 6, -2, 2)
    np.testing.assert_allclose(near.distances, np.sort(brute)[:6], atol=1e-5)


def test_on_a_knot_the_distance_is_zero_and_the_unit_is_named() -> None:
    cell = cpwl.cell_at(NETWORKS["relu"], np.zeros(2))
    assert len(cell.undecided) == 0
    network = cpwl.Network.from_torch(nn.LeakyReLU(0.5), (2,))
    cell = cpwl.cell_at(network, [0.0, 1.0])
    assert (cell.distance, cell.undecided.tolist(), cell.pieces.tolist()) == (0.0, [0], [0, 1])
    assert cpwl.facets(cell, -1, 1).units.tolist() == [0, 1]


def test_units_that_never_switch_bound_nothing() -> None:
    cell = cpwl.cell_at(cpwl.Network.from_torch(nn.Linear(3, 2), (3,)), np.ones(3))
    assert (len(cell.distances), cell.distance, cell.distance_error) == (0, np.inf, 0.0)
    found = cpwl.facets(cell, 0, 3)
    assert len(found.halfspaces) == 0
    assert list(cpwl.neighbours(found)) == []
    assert cpwl.chebyshev_ball(cell, 0, 3).radius == pytest.approx(1.5)
    near = cpwl.cells_near(cell.network, np.ones(3), 4, 0, 3)
    assert len(near.cells) == 1
    assert near.units.tolist() == [-1]


def test_equal_units_are_one_facet_and_switch_together() -> None:
    weights = torch.tensor([[1.0, 0], [2.0, 0], [-1.0, 0], [0, 1.0]])
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1), nn.ReLU())
    with torch.no_grad():
        module[0].weight.copy_(weights)
        module[0].bias.zero_()
        # zero where x < 0, and x beyond: a deeper unit that has no half-space on this side
        module[2].weight.copy_(torch.tensor([[1.0, 0, 0, 0]]))
        module[2].bias.zero_()
    network = cpwl.Network.from_torch(module, (2,))
    cell = cpwl.cell_at(network, [-1.0, 0.5])
    assert cell.pieces.tolist() == [0, 0, 1, 1, 0]
    found = cpwl.facets(cell, -2, 2)
    assert found.units.tolist() == [0, 3]
    assert found.same_as.tolist() == [0, 0, 0, 3]
    across = [beyond.pieces.tolist() for beyond in cpwl.neighbours(found) if beyond]
    assert across == [[1, 1, 0, 1, 1], [0, 0, 1, 0, 0]]


def test_a_flat_latent_shape_is_any_shape() -> None:
    network = cpwl.Network.from_torch(
        nn.Sequential(nn.ConvTranspose2d(3, 2, 2), nn.ReLU(), nn.Conv2d(2, 1, 2), nn.ReLU()),
        (3, 2, 2),
    )
    z = np.random.default_rng(0).standard_normal((3, 2, 2))
    one, flat = cpwl.cell_at(network, torch.tensor(z)), cpwl.cell_at(network, z.ravel())
    assert np.array_equal(one.halfspaces.A, flat.halfspaces.A)
    assert np.abs(one.A @ z.ravel() + one.b - network(z[None]).numpy().ravel()).max() < 1e-12
    groups = {group.stage: group.first_unit for group in network.groups}
    assert (one.halfspaces.unit >= [groups[s] for s in one.halfspaces.stage]).all()


def test_refusals_say_what_to_do() -> None:
    network = NETWORKS["relu"]
    cell = cpwl.cell_at(network, [0.5, 0.5])
    with pytest.raises(ValueError, match=r"Expected z as one latent of shape \(2,\), got"):
        cpwl.cell_at(network, [[0.5, 0.5]])
    with pytest.raises(ValueError, match="Expected z to be finite, got 1 NaN"):
        cpwl.cell_at(network, [0.5, np.nan])
    steep = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        steep[0].weight.fill_(1e10)
    with pytest.raises(ValueError, match="got inf or NaN: it overflows"):
        cpwl.cell_at(cpwl.Network.from_torch(steep, (1,)), [1e300])
    for ask in (cpwl.facets, cpwl.chebyshev_ball):
        with pytest.raises(ValueError, match=r"a box that holds the cell's latent, got \[1, 2\]"):
            ask(cell, 1, 2)
        with pytest.raises(ValueError, match="Expected lo and hi as numbers or with 2 entries"):
            ask(cell, [0, 0, 0], 2)
        with pytest.raises(ValueError, match="Expected hi to be finite"):
            ask(cell, 0, np.inf)
    with pytest.raises(ValueError, match="Expected n as a whole number of 1 or more, got 0"):
        cpwl.cells_near(network, [0.5, 0.5], 0, -1, 1)
    kinks = nn.Sequential(nn.Linear(2, 6, bias=False), nn.ReLU())
    with torch.no_grad():
        kinks[0].weight.copy_(torch.tensor([[1.0, 0], [-1, 1], [-1, -1], [0, 1], [1, 1], [0, -1]]))
    origin = cpwl.cell_at(cpwl.Network.from_torch(kinks, (2,)), [0.0, 0.0])
    assert len(origin.undecided) == 6
    with pytest.raises(ValueError, match="Its latent lies on the knots of 6 units: move it off"):
        cpwl.facets(origin, -1, 1)
