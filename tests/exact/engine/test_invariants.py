"""What every partition obeys, in dimensions 1 to 6: counts in closed form, and Euler's relation."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from numpy.typing import NDArray
from oracles.layers import ABS, RELU, Pool, layer, network
from support.agreement import assert_checked, capture
from support.strategies import random_network

import cpwl

# dimension -> units: enough that every set of up to as many of them meets somewhere
UNITS = {1: 7, 2: 9, 3: 9, 4: 8, 5: 7, 6: 7}


pytestmark = pytest.mark.usefixtures("one_thread")


def arrangement(
    normals: NDArray[np.float64], offsets: NDArray[np.float64], size: float
) -> cpwl.Partition:
    """Subdivide [-size, size]^P by the ReLUs of normals @ s - offsets."""
    hidden = capture(network(layer(normals.tolist(), (-offsets).tolist())))
    dim = normals.shape[1]
    return cpwl.subdivide(hidden, cpwl.box([-size] * dim, [size] * dim), progress=False)


def generic(dim: int, units: int, seed: int = 0) -> tuple[NDArray, NDArray, float]:
    """Return hyperplanes in general position, and a size that holds all their intersections."""
    rng = np.random.default_rng(100 * dim + seed)
    normals, offsets = rng.standard_normal((units, dim)), rng.standard_normal(units)
    sets = np.array(list(combinations(range(units), dim)))
    points = np.linalg.solve(normals[sets], offsets[sets][..., None])[..., 0]
    return normals, offsets, 1.1 * float(np.abs(points).max())


def buck(units: int, dim: int, k: int) -> int:
    """Return the faces of dimension k of a simple arrangement in R^P (Buck 1943)."""
    return comb(units, dim - k) * sum(comb(units - dim + k, j) for j in range(k + 1))


@pytest.mark.parametrize("dim", UNITS)
@pytest.mark.parametrize("seed", range(2))
def test_a_generic_layer_has_the_cells_of_zaslavsky_and_the_faces_of_buck(dim, seed):
    units = UNITS[dim]
    partition = arrangement(*generic(dim, units, seed))
    assert partition.num_cells == sum(comb(units, i) for i in range(dim + 1))
    report = assert_checked(partition)
    found = report.arrangement
    assert found.reason == ""
    assert found.knots == units
    assert found.meets == tuple(comb(units, i) for i in range(dim + 1))
    assert found.cells == found.expected_cells == partition.num_cells
    inside = tuple(buck(units, dim, k) for k in range(dim + 1))
    assert found.faces == found.expected_faces == inside


@pytest.mark.parametrize("dim", UNITS)
def test_a_smaller_domain_has_the_cells_of_the_intersections_inside(dim):
    normals, offsets, size = generic(dim, UNITS[dim])
    partition = arrangement(normals, offsets, 0.02 * size)
    found = assert_checked(partition).arrangement
    assert found.meets[0] == 1
    assert found.meets[dim] < comb(UNITS[dim], dim)
    points = (np.abs(partition.points) < 0.02 * size * (1 - 1e-9)).all(axis=1)
    assert found.meets[dim] == points.sum()
    assert found.expected_cells == partition.num_cells


@pytest.mark.parametrize("dim", UNITS)
def test_knots_through_the_origin_have_the_cells_of_schlaefli(dim):
    units = UNITS[dim]
    normals, _, _ = generic(dim, units)
    partition = arrangement(normals, np.zeros(units), 1.0)
    assert partition.num_cells == 2 * sum(comb(units - 1, i) for i in range(dim))
    found = assert_checked(partition).arrangement
    reason = "knots are not in general position" if units > dim else ""
    assert found.reason == reason


DEEP = {1: (6, 6), 2: (6, 6), 3: (5, 4), 4: (5, 3), 5: (6, 2), 6: (4, 2)}
KINDS = {"relu": (RELU,), "abs": (RELU, ABS), "pool": (Pool(2), RELU)}


@pytest.mark.parametrize(
    ("dim", "kind"), [(dim, kind) for dim in DEEP for kind in KINDS if kind != "pool" or dim < 5]
)
def test_the_faces_of_deep_networks_add_up_to_one(dim, kind):
    layers = random_network(3, DEEP[dim], KINDS[kind], dim=dim)
    domain = cpwl.cross_polytope(np.full(dim, 0.1), 2.0, np.eye(dim))
    report = assert_checked(cpwl.subdivide(capture(layers), domain, progress=False))
    assert len(report.faces) == dim + 1
    assert report.euler == sum((-1) ** k * count for k, count in enumerate(report.faces)) == 1
    assert report.faces[0] == report.points
    assert report.faces[-2:] == (report.facets, report.cells)
    assert report.volume_error < 1e-13


@pytest.mark.parametrize("dim", [3, 4, 5, 6])
def test_patterns_across_a_facet_differ_in_the_units_whose_knot_it_is(dim):
    partition = cpwl.subdivide(
        capture(random_network(1, (4, 3), dim=dim)), cpwl.box([-2] * dim, [2] * dim), progress=False
    )
    pieces, inner = partition.pieces(), np.flatnonzero(partition.facet_unit >= 0)
    below, above = pieces[partition.facet_cells[inner]].swapaxes(0, 1)
    assert ((below != above).sum(axis=1) == 1).all()
    own = partition.facet_unit[inner]
    rows = np.arange(len(inner))
    assert (below[rows, own] == 0).all()
    assert (above[rows, own] == 1).all()


@pytest.mark.parametrize("dim", range(1, 7))
def test_local_complexity_of_parallel_cuts_is_a_count_of_subsets(dim):
    # V_z meets the far side of a set of cuts x_i = t_i > 0 if they add up to less than the radius
    cuts = np.array([0.1, 0.25, 0.3, 0.45, 0.7, 0.75])[:dim]
    layers = network(layer(np.eye(dim).tolist(), (-cuts).tolist(), RELU))
    net = capture(layers)
    for radius in (0.05, 0.2, 0.5, 1.01, 3.0):
        subsets = [s for k in range(dim + 1) for s in combinations(cuts, k)]
        expected = sum(sum(subset) < radius for subset in subsets)
        assert cpwl.local_complexity(net, np.zeros(dim), radius, np.eye(dim)) == expected


def _turned(n: int) -> NDArray[np.float64]:
    return np.linalg.qr(np.ones((n, n)) + np.eye(n))[0]


@pytest.mark.parametrize("basis_of", [np.eye, _turned])
def test_local_complexity_at_a_vertex_is_that_of_a_cone(basis_of):
    # at any radius, however small: P generic knots through z make 2^P cells
    normals = np.random.default_rng(3).standard_normal((4, 4))
    z = np.array([0.5, -0.25, 1.0, 2.0])
    net = capture(network(layer(normals.tolist(), (-normals @ z).tolist(), RELU)))
    for radius in (1e-9, 1e-3, 10.0):
        # normals @ z is rounded, so that the knots pass z within 1e-15: not of V_z, but no more
        assert cpwl.local_complexity(net, z, radius, basis_of(4)) == 16
