"""Half-spaces and vertices of cells, against the rational oracle, scipy, shapely and cddlib."""

from __future__ import annotations

import importlib.metadata
import subprocess
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import splitting
from oracles.bodies import cube, domain_of, exact_of
from oracles.homogeneous import integers, lowest, normal
from oracles.layers import LINEAR, RELU, Pool
from scipy.spatial import ConvexHull, HalfspaceIntersection
from support.agreement import capture, match_cells
from support.samples import generator, mlp, sample
from support.strategies import (
    INTEGERS,
    NEARLY,
    Architecture,
    degenerate_networks,
    nearly_degenerate_networks,
    nightly,
    ordinary,
    places,
    related_network,
    shapes,
)

import cpwl

pytestmark = pytest.mark.usefixtures("one_thread")


def forms(cell):
    """Return the oracle's forms >= 0 inside a cell, in lowest terms."""
    if isinstance(cell.shape, splitting.Shape) and not cell.shape.sides:
        (low, below), (high, above) = cell.shape.corners
        return [lowest((below, -low)), lowest((-above, high))]
    walls = cell.shape.sides if isinstance(cell.shape, splitting.Shape) else cell.shape.walls
    return [lowest(wall) for wall in walls]


def in_integers(rows):
    return [lowest(integers(row)[0]) for row in rows]


@cache
def pooled() -> cpwl.Partition:
    """Return the partition of a network with max-pooling on a 3-D slice of six latents."""
    module = mlp(6, 8, 6, seed=1)
    module.extend([torch.nn.Unflatten(1, (1, 6)), torch.nn.MaxPool1d(3)])
    network = cpwl.Network.from_torch(module, (6,))
    rng = np.random.default_rng(2)
    place = cpwl.Slice(rng.standard_normal(6) / 4, rng.standard_normal((3, 6)))
    return cpwl.subdivide(network, place.box([-1] * 3, [1] * 3), progress=False)


def compare(layers, domain, most: int = 40) -> cpwl.Partition:
    """Compare half-spaces and vertices with the oracle's, exactly; then the rounded ones."""
    partition = cpwl.subdivide(capture(layers), domain_of(domain), progress=False)
    cells = splitting.subdivide(layers, exact_of(domain))
    chosen = np.unique(np.linspace(0, len(cells) - 1, most).round().astype(int))
    bounds = cpwl.halfspaces(partition, chosen, exact=True)
    rounded = cpwl.halfspaces(partition, chosen)
    corners = cpwl.vertices(partition, chosen, exact=True)
    match = match_cells(partition, layers, cells)
    for k, number in enumerate(chosen.tolist()):
        cell, exact = cells[match[number]], bounds[k]
        rows = in_integers(np.column_stack([-exact.A, exact.b]).tolist())
        assert len(rows) == len(set(rows))
        assert set(rows) == set(forms(cell))
        points = [normal(integers([*point, Fraction(1)])[0]) for point in corners[k].tolist()]
        assert len(points) == len(set(points))
        assert set(points) == set(cell.shape.corners)
        size = np.abs(exact.A).max(axis=1)  # the square of a weight of 5e-324 is no float64
        A = (exact.A / size[:, None]).astype(float)
        length = np.linalg.norm(A, axis=1)
        np.testing.assert_array_equal(rounded[k].unit, exact.unit)
        np.testing.assert_allclose(rounded[k].A, A / length[:, None], rtol=0, atol=1e-11)
        b = (exact.b / size).astype(float) / length
        np.testing.assert_allclose(rounded[k].b, b, atol=1e-11)
    return partition


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
@ordinary(4)
@given(data=st.data())
def test_exact_ones_are_those_of_the_oracle(dim, data) -> None:
    networks = degenerate_networks(shapes(dim)) | nearly_degenerate_networks(shapes(dim))
    compare(data.draw(networks), data.draw(places(dim)), 60 // dim**2)


@pytest.mark.nightly
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5])
@nightly(60)
@given(data=st.data())
def test_exact_ones_are_those_of_the_oracle_in_many_networks(dim, data) -> None:
    networks = degenerate_networks(shapes(dim)) | nearly_degenerate_networks(shapes(dim))
    compare(data.draw(networks), data.draw(places(dim)), 100 // dim)


@pytest.mark.parametrize(("seed", "numbers"), [(3, INTEGERS), (2, NEARLY), (11, NEARLY)])
def test_joined_cells_and_cells_in_a_corner_have_each_plane_once(seed, numbers) -> None:
    """Planes that differ in the last bit (2); a cell of 1e-16 where three sides meet (11)."""
    shape = Architecture(3, (3, 6, 2), (RELU, Pool(3), LINEAR), ((0,), (0, 1), (2,)))
    compare(related_network(seed, shape, numbers), cube(3))


@pytest.mark.parametrize(
    ("kind", "dim"), [("skip", 1), ("skip", 2), ("conv", 2), ("max-pool", 2), ("pooled", 3)]
)
def test_of_slices_agree_with_scipy_and_the_module(kind, dim) -> None:
    """Half-spaces meet in the vertices, none is redundant, and their units switch across them."""
    partition = pooled() if kind == "pooled" else sample(kind, dim)[1]
    network = partition.network
    assert network is not None
    chosen = np.random.default_rng(0).integers(0, partition.num_cells, 12)
    for bounds, corners in zip(
        cpwl.halfspaces(partition, chosen), cpwl.vertices(partition, chosen), strict=True
    ):
        centre = corners.mean(axis=0)
        slack = bounds.b - bounds.A @ centre
        assert (slack > 0).all()
        np.testing.assert_allclose(np.linalg.norm(bounds.A, axis=1), 1)
        if dim > 1:
            rows = np.column_stack([bounds.A, -bounds.b])
            meet = HalfspaceIntersection(rows, centre)
            assert sorted(meet.dual_vertices) == list(range(len(rows)))
            hull = ConvexHull(corners)
            far = np.abs(hull.points[hull.vertices][:, None] - meet.intersections).max(axis=2)
            assert far.min(axis=1).max() < 1e-9
            assert far.min(axis=0).max() < 1e-9
        if dim == 2:
            there = shapely.MultiPoint(meet.intersections).convex_hull
            assert there.symmetric_difference(shapely.Polygon(corners)).area < 1e-9
        mine = network.pieces(torch.from_numpy(partition.domain.slice.embed(centre[None])))[0]
        for normal_, slack_, unit, stage in zip(
            bounds.A, slack, bounds.unit, bounds.stage, strict=True
        ):
            if unit < 0 or "pool" in kind:
                continue
            assert network.stage_offsets[stage] <= unit < network.stage_offsets[stage + 1]
            # from the centre straight to a point of the facet, and across
            height = corners @ normal_ - (centre @ normal_ + slack_)
            on = corners[np.abs(height) < 1e-9].mean(axis=0)
            step = 1e-6 * (on - centre)
            z = torch.from_numpy(partition.domain.slice.embed(np.stack([on - step, on + step])))
            below, above = network.pieces(z)[:, unit].tolist()
            assert below == mine[unit]
            assert above != below


def test_a_row_is_the_units_own_function() -> None:
    """First-layer units of a plain network are W z + b: their rows are known in closed form."""
    module = mlp(3, 8, 2, seed=2)
    network = cpwl.Network.from_torch(module, (3,))
    partition = cpwl.subdivide(network, cpwl.box([-1] * 3, [1] * 3), progress=False)
    weight, bias = (x.detach().double().numpy() for x in module[0].parameters())
    for number, bounds in enumerate(cpwl.halfspaces(partition, exact=True)):
        pieces = partition.pieces(np.array([number]))[0]
        for A, b, unit, stage in zip(bounds.A, bounds.b, bounds.unit, bounds.stage, strict=True):
            if unit < 0:
                assert stage == -1
                continue
            turn = -1 if pieces[unit] else 1
            assert stage == 0
            assert A.tolist() == [turn * Fraction(x) for x in weight[unit].tolist()]
            assert b == -turn * Fraction(float(bias[unit]))


def test_neighbours_have_opposite_rows() -> None:
    partition = generator()
    every = cpwl.halfspaces(partition)
    for a, b in cpwl.adjacency(partition).edges:
        rows = {(*A, b_) for A, b_ in zip(every[a].A.tolist(), every[a].b.tolist(), strict=True)}
        others = {
            tuple(-x for x in (*A, b_))
            for A, b_ in zip(every[b].A.tolist(), every[b].b.tolist(), strict=True)
        }
        assert len(rows & others) == 1


def test_latent_coordinates_are_those_of_the_notes() -> None:
    _, partition = sample("conv")
    place = partition.domain.slice
    basis = place.basis.reshape(2, -1)
    (bounds,) = cpwl.halfspaces(partition, [3])
    (corners,) = cpwl.vertices(partition, [3])
    N = bounds.A @ np.linalg.pinv(basis).T
    z = place.embed(corners).reshape(len(corners), -1)
    slack = bounds.b + N @ place.origin.reshape(-1) - z @ N.T
    np.testing.assert_allclose(slack, bounds.b - corners @ bounds.A.T, atol=1e-12)
    assert (np.sort(np.abs(slack), axis=1)[:, :2] < 1e-9).all()


def by_cddlib(program, path):
    """Return the rows that a program of cddlib makes of a file."""
    held = importlib.metadata.files("passagemath-cddlib") or []
    (binary,) = (file.locate() for file in held if file.name == program)
    made = subprocess.run(
        [binary], input=path.read_text(), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    begin = len(made) - 1 - made[::-1].index("begin")
    return [
        [Fraction(x) for x in row.split()] for row in made[begin + 2 : made.index("end", begin)]
    ]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_cddlib_reads_cells_and_turns_one_format_into_the_other(tmp_path, dim) -> None:
    partition = pooled() if dim == 3 else sample("skip", dim)[1]
    half, points = tmp_path / "cell.ine", tmp_path / "cell.ext"
    for cell in (0, partition.num_cells // 2):
        (bounds,) = cpwl.halfspaces(partition, [cell], exact=True)
        (corners,) = cpwl.vertices(partition, [cell], exact=True)
        cpwl.write_polyhedron(partition, half, cell, exact=True)
        cpwl.write_polyhedron(partition, points, cell, exact=True)
        found = by_cddlib("lcdd_gmp", half)
        assert {tuple(row) for row in found} == {(1, *row) for row in corners.tolist()}
        rows = in_integers(np.column_stack([bounds.b, -bounds.A]).tolist())
        assert set(in_integers(by_cddlib("lcdd_gmp", points))) == set(rows)
        cpwl.write_polyhedron(partition, half, cell)
        near = np.array(by_cddlib("lcdd", half), float)[:, 1:]
        far = np.abs(near[:, None] - corners.astype(float)).max(axis=2)
        assert far.min(axis=0).max() < 1e-6  # cddlib prints ten digits
        assert len(near) == len(corners)


def test_refusals(tmp_path) -> None:
    partition = generator()
    with pytest.raises(ValueError, match=r"ends in \.ine or \.ext, got a\.txt"):
        cpwl.write_polyhedron(partition, tmp_path / "a.txt", 0)
    with pytest.raises(ValueError, match="Expected indices below"):
        cpwl.write_polyhedron(partition, tmp_path / "a.ine", partition.num_cells)
    with pytest.raises(FileNotFoundError):
        cpwl.write_polyhedron(partition, tmp_path / "none" / "a.ine", 0)
    cpwl.save_partition(partition, tmp_path / "a.npz")
    alone = cpwl.load_partition(tmp_path / "a.npz", network=None)
    if alone.network is None:
        with pytest.raises(ValueError, match="Expected a partition with its network"):
            cpwl.halfspaces(alone)
        assert len(cpwl.vertices(alone)) == partition.num_cells
    large = torch.nn.Sequential(torch.nn.Linear(1, 9000), torch.nn.ReLU(), torch.nn.Linear(9000, 1))
    network = cpwl.Network.from_torch(large, (1,))
    wide = cpwl.subdivide(network, cpwl.box([0.0], [0.01]), progress=False)
    with pytest.raises(ValueError, match=r"one where it has 9,000 units.* Leave `exact` out"):
        cpwl.halfspaces(wide, [0], exact=True)
    (bounds,) = cpwl.halfspaces(wide, [1])
    np.testing.assert_allclose(
        np.sort(bounds.b / bounds.A[:, 0]), cpwl.vertices(wide, [1])[0][:, 0]
    )
    assert cpwl.halfspaces(partition, []) == []
    assert cpwl.vertices(partition, [], exact=True) == []
