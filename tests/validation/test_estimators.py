"""Entropy from nearest neighbours and the test of two samples, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bridges.validation.densities.nearest import kth_distances, neighbour_entropy
from bridges.validation.densities.two_samples import energy_test


@pytest.mark.parametrize("coordinates", [1, 5, 60])
def test_distances_to_neighbours_are_those_of_all_pairs(coordinates):
    points = np.random.default_rng(0).standard_normal((400, coordinates))
    points[7] = points[5]
    pairs = np.linalg.norm(points[:, None] - points, axis=2)
    np.testing.assert_allclose(kth_distances(points, 3), np.sort(pairs, axis=1)[:, 3], rtol=1e-12)


def test_a_projection_that_hides_the_neighbours_does_not_matter():
    # along the leading directions nothing tells the points apart; the neighbours differ elsewhere
    rng = np.random.default_rng(0)
    points = np.zeros((600, 40))
    points[:, :16] = 100 * rng.integers(0, 2, (600, 1)) * np.ones(16)
    points[:, 16:] = rng.standard_normal((600, 24))
    pairs = np.linalg.norm(points[:, None] - points, axis=2)
    np.testing.assert_allclose(kth_distances(points, 1), np.sort(pairs, axis=1)[:, 1], rtol=1e-12)


@pytest.mark.parametrize(("dim", "outputs"), [(1, 4), (2, 3), (3, 30)])
def test_entropy_of_a_cube_in_space_is_within_what_the_estimate_says(dim, outputs):
    rng = np.random.default_rng(dim)
    frame = np.linalg.qr(rng.standard_normal((outputs, dim)))[0]
    found = [neighbour_entropy(rng.uniform(-1, 1, (4_000, dim)) @ frame.T, dim) for _ in range(12)]
    off = np.array([f.entropy[0] for f in found]) - dim * math.log(2)
    limits = np.array([2 * f.bias + 4 * f.error for f in found])
    assert (np.abs(off) < limits).all()
    assert np.median(limits) < (0.12, 0.16, 0.5)[dim - 1]
    # the stated error is that of repetition, known to 20 % here
    stated = np.sqrt(np.mean([f.error**2 for f in found]))
    assert 0.5 < off.std(ddof=1) / stated < 1.8
    assert found[0].sizes.tolist() == [4_000, 1_000, 250, 62]


def test_entropy_of_a_gaussian_needs_no_border():
    points = np.random.default_rng(0).standard_normal((30_000, 2))
    found = neighbour_entropy(points, 2)
    assert found.entropy[0] == pytest.approx(math.log(2 * math.pi * math.e), abs=4 * found.error)
    assert found.error < 0.01


def test_the_energy_distance_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 3)), rng.standard_normal((20, 3)) + 0.3

    def mean(a, b):
        return (np.linalg.norm(a[:, None] - b, axis=2) ** 0.25).mean()

    found = energy_test(x, y, 10, rng)
    assert found.distance == pytest.approx(2 * mean(x, y) - mean(x, x) - mean(y, y), rel=1e-9)


def test_p_values_are_uniform_where_nothing_differs():
    rng = np.random.default_rng(0)
    p = [
        energy_test(rng.random((50, 2)), rng.random((40, 2)), 200, rng).p_value for _ in range(200)
    ]
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_the_test_stops_where_nothing_differs_and_goes_on_where_something_does():
    rng = np.random.default_rng(1)
    x = rng.random((300, 2))
    same = energy_test(x, rng.random((300, 2)), 1_999, rng)
    other = energy_test(x, rng.random((300, 2)) ** 1.3, 1_999, rng)
    assert len(same.null) == 250
    assert same.p_value > 0.01
    assert len(other.null) == 1_999
    assert other.p_value == 1 / 2_000
