"""Volumes, centroids and simplices of polytopes in three to six dimensions."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.spatial import Delaunay
from support.grids import grid, intervals, uncut

import cpwl
from cpwl.dual import location
from cpwl.dual.location import walk
from cpwl.geometry import measure
from cpwl.geometry.measure import half_spaces, levels, measures, normals, triangulate

GRIDS = {
    3: ((0.1, 0.4), (-0.3,), (0.7,)),
    4: ((0.1,), (-0.3, 0.2), (), (0.5,)),
    5: ((0.1,), (0.3,), (-0.9,), (0.0,), ()),
    6: ((0.1,), (0.3,), (), (0.0,), (), (0.6,)),
}


def cloud(dim: int, seed: int = 0) -> cpwl.Partition:
    """Return the convex hull of random points, uncut: most of its sides are simplices."""
    points = np.random.default_rng(seed).standard_normal((dim + 5, dim))
    return uncut(cpwl.Domain(points, cpwl.Slice(np.zeros(dim), np.eye(dim))))


@pytest.mark.parametrize("dim", GRIDS)
def test_boxes_have_the_volume_and_the_centre_of_a_box(dim):
    partition = grid(*GRIDS[dim])
    low, high = np.moveaxis(intervals(partition), 1, 0)
    assert_allclose(cpwl.volumes(partition), (high - low).prod(axis=1), rtol=4e-15)
    assert_allclose(cpwl.centroids(partition), (high + low) / 2, atol=4e-16)


@pytest.mark.parametrize("dim", GRIDS)
@pytest.mark.parametrize("far", [0.0, 1e3])
def test_polytopes_agree_with_a_delaunay_triangulation(dim, far):
    partition = cloud(dim)
    corners = partition.points[Delaunay(partition.points).simplices]
    size = np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1])) / math.factorial(dim)
    moved = cloud(dim)
    moved.points.setflags(write=True)
    moved.points[:] += far
    assert_allclose(cpwl.volumes(moved), size.sum(), rtol=1e-12 if far else 1e-14)
    centre = size @ corners.mean(axis=1) / size.sum()
    assert_allclose(cpwl.centroids(moved)[0] - far, centre, atol=1e-12 if far else 1e-14)


@pytest.mark.parametrize("dim", GRIDS)
def test_the_volume_of_an_uncut_domain_is_the_domains(dim):
    axes = np.eye(dim)
    for domain in (
        cpwl.simplex(np.vstack([np.zeros(dim), np.random.default_rng(dim).random((dim, dim))])),
        cpwl.cross_polytope(np.zeros(dim), 0.3, axes),
        cpwl.polytope(np.vstack([axes, -axes, np.ones((1, dim))]), [*[1.0] * 2 * dim, 0.5]),
    ):
        assert cpwl.volumes(uncut(domain)).sum() == pytest.approx(domain.volume, rel=1e-14)


def test_polygons_and_intervals_have_centroids():
    network = cpwl.Network.from_torch(_diagonal(), (2,))
    halves = cpwl.subdivide(network, cpwl.box([0, 0], [3, 3]), progress=False)
    order = np.argsort(cpwl.centroids(halves)[:, 0])
    assert_allclose(cpwl.centroids(halves)[order], [[1, 2], [2, 1]], rtol=1e-15)
    line = cpwl.subdivide(network, cpwl.segment([0, 1], [4, 1]), progress=False)
    assert_allclose(np.sort(cpwl.centroids(line)[:, 0]), [0.5, 2.5], rtol=1e-15)


def _diagonal():
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.ReLU())
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
    return module


@pytest.mark.parametrize("dim", GRIDS)
def test_faces_of_every_dimension_are_measured(dim):
    # of a box, a face of dimension k along the axes S has the one minor S, the product of its sides
    partition = grid(*GRIDS[dim])
    for k, found in enumerate(measures(partition.points, levels(partition)), 1):
        rows = levels(partition)[k - 1]
        if k == 1:
            ends = partition.points[rows.items.reshape(-1, 2)]
        corners = _corners(partition, k)
        for face, minors in enumerate(found.minors):
            extent = np.ptp(partition.points[corners[face]], axis=0)
            expected = [math.prod(extent[list(axes)]) for axes in combinations(range(dim), k)]
            assert_allclose(np.abs(minors), expected, rtol=1e-14, atol=1e-15)
            assert found.apex[face] == min(corners[face])
    assert_allclose(ends.mean(axis=1), next(measures(partition.points, levels(partition)))[1])


def _corners(partition: cpwl.Partition, k: int) -> list[set[int]]:
    """Return the vertices of the faces of dimension k."""
    below = [{i} for i in range(len(partition.points))]
    for offsets, items in levels(partition)[:k]:
        below = [set().union(*(below[i] for i in items[a:b])) for a, b in pairwise(offsets)]
    return [sorted(own) for own in below]


@pytest.mark.parametrize("dim", GRIDS)
def test_normals_are_orthogonal_and_as_long_as_the_facet_is_large(dim):
    partition = cloud(dim, seed=1)
    *_, facets, _ = measures(partition.points, levels(partition))
    vectors = normals(facets.minors)
    for side, normal in zip(partition.domain.sides, vectors, strict=True):
        edges = partition.points[list(side[1:])] - partition.points[side[0]]
        assert np.abs(edges @ normal).max() < 1e-13 * np.linalg.norm(normal)
        area = math.sqrt(np.linalg.det(edges @ edges.T)) / math.factorial(dim - 1)
        assert np.linalg.norm(normal) == pytest.approx(area, rel=1e-12)
    # the outward normals of a closed surface add up to nothing
    outward = np.einsum("fp,fp->f", vectors, facets.centroid - partition.points.mean(axis=0)) > 0
    assert np.abs(np.where(outward[:, None], vectors, -vectors).sum(axis=0)).max() < 1e-13


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_half_spaces_hold_the_corners_of_their_sides(dim):
    axes = np.eye(dim)
    domain = cpwl.polytope(np.vstack([axes, -axes, np.ones((1, dim))]), [*[1.0] * 2 * dim, 0.5])
    outward, offsets = half_spaces(domain)
    heights = domain.corners @ outward.T - offsets
    assert_allclose(np.linalg.norm(outward, axis=1), 1.0)
    for column, side in zip(heights.T, domain.sides, strict=True):
        assert np.abs(column[list(side)]).max() < 1e-15
        assert (np.delete(column, list(side)) < -0.1).all()


@pytest.mark.parametrize("dim", GRIDS)
def test_simplices_fill_the_cells_and_meet_on_facets(dim):
    partition = grid(*GRIDS[dim])
    cells = np.array([partition.num_cells - 1, 0, 1, 0])
    simplices, row = triangulate(partition, cells)
    corners = partition.points[simplices]
    size = np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1])) / math.factorial(dim)
    assert_allclose(np.bincount(row, size), cpwl.volumes(partition)[cells], rtol=1e-13)
    assert (np.diff(row) >= 0).all()
    # a facet of a simplex belongs to two of them, or lies on the surface of the cells together
    both, _ = triangulate(partition, np.arange(partition.num_cells))
    faces = np.sort([np.delete(both, i, axis=1) for i in range(dim + 1)], axis=2).reshape(-1, dim)
    _, times = np.unique(faces, axis=0, return_counts=True)
    assert times.max() == 2
    outer = sum(math.factorial(dim - 1) for facet in partition.facet_unit if facet < 0)
    assert (times == 1).sum() == outer


@pytest.mark.parametrize("dim", [3, 6])
def test_compiled_kernels_agree_with_their_source(dim, monkeypatch):
    partition = grid(*GRIDS[dim])
    points = np.random.default_rng(0).uniform(-1, 1, (20, dim))
    compiled = cpwl.volumes(partition), cpwl.centroids(partition), walk(partition, points)
    monkeypatch.setattr("cpwl.geometry.measure._cones", measure._cones.py_func)
    monkeypatch.setattr("cpwl.dual.location._walk", location._walk.py_func)
    plain = cpwl.volumes(partition), cpwl.centroids(partition), walk(partition, points)
    for ours, theirs in zip(plain, compiled, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_slivers_do_not_hide_the_cells_behind_them():
    # the middle cell is as thin as rounding: which side of it a facet faces, its neighbour says
    partition = grid((0.1, 0.1 + 2.0**-55), (0.3,), (-0.4,))
    low, high = np.moveaxis(intervals(partition), 1, 0)
    points = np.random.default_rng(0).uniform(-1, 1, (300, 3))
    found = walk(partition, points)
    assert ((low[found] <= points) & (points <= high[found])).all()
    assert cpwl.check(partition).volume_error < 1e-14
