"""Level sets: on the level, without gaps, turned upwards, and those that exact arithmetic finds."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import shapely
import torch
import trimesh
from hypothesis import given
from oracles import splitting
from oracles.bodies import domain_of, exact_of
from scipy.spatial import ConvexHull
from support.agreement import capture
from support.grids import grid
from support.samples import mlp, sample
from support.strategies import POLYGONS, degenerate_networks, nightly, ordinary, shapes
from torch import Tensor, nn

import cpwl

pytestmark = pytest.mark.usefixtures("one_thread")


class Formula(nn.Module):
    """One output, given by a function of the coordinates (n, 1) each."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(*z.split(1, dim=1))


def over_box(function, dim: int, size: float = 2.0) -> cpwl.Partition:
    network = cpwl.Network.from_torch(Formula(function), (dim,))
    return cpwl.subdivide(network, cpwl.box([-size] * dim, [size] * dim), progress=False)


def box_distance(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return torch.maximum(torch.maximum(x.abs(), y.abs()), z.abs())


def drilled(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Return the function of a cube of side 2 with a hole of side 1 through it."""
    hole = 0.5 - torch.maximum(x.abs(), y.abs())
    return torch.maximum(box_distance(x, y, z) - 1, hole)


def values(partition: cpwl.Partition, points: np.ndarray, output) -> np.ndarray:
    y = partition.network(partition.domain.slice.embed(points)).numpy().reshape(len(points), -1)
    return y[:, output] if isinstance(output, int) else y[:, output[0]] - y[:, output[1]]


def free_edges(contour: cpwl.Contour) -> np.ndarray:
    """Return the vertices, or edges of triangles, at which an odd number of simplices meets."""
    k = contour.simplices
    sides = k.reshape(-1, 1)
    if contour.dim == 3:
        sides = np.sort(np.concatenate([k[:, [0, 1]], k[:, [1, 2]], k[:, [2, 0]]]), axis=1)
    found, count = np.unique(sides, axis=0, return_counts=True)
    return found[count % 2 == 1]


def on_boundary(domain: cpwl.Domain, points: np.ndarray) -> np.ndarray:
    """Return whether the points of each row (n, k, P) lie together on a side of a box."""
    low, high = domain.corners.min(axis=0), domain.corners.max(axis=0)
    reach = 1e-12 * (high - low)
    return ((points - low < reach).all(axis=1) | (high - points < reach).all(axis=1)).any(axis=1)


# --- closed forms


def test_the_ball_of_the_sum_norm_is_an_octahedron() -> None:
    partition = over_box(lambda x, y, z: x.abs() + y.abs() + z.abs() - 1, 3)
    found = cpwl.contour(partition)
    assert found.simplices.shape == (8, 3)
    corners = sorted(map(tuple, np.abs(found.vertices).tolist()))
    assert corners == 2 * [(0, 0, 1)] + 2 * [(0, 1, 0)] + 2 * [(1, 0, 0)]
    assert sorted(found.cells) == list(range(8))
    mesh = cpwl.surface(found)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(4 / 3, rel=1e-14)  # positive: normals point outwards
    assert found.sizes.sum() == pytest.approx(4 * np.sqrt(3), rel=1e-14)
    assert mesh.euler_number == 2
    assert len(cpwl.contour(partition, value=-1).simplices) == 0  # the origin alone


def test_a_cube_with_a_hole_has_a_handle() -> None:
    found = cpwl.contour(over_box(drilled, 3))
    mesh = cpwl.surface(found)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert (mesh.euler_number, mesh.body_count) == (0, 1)
    assert mesh.volume == pytest.approx(8 - 2, rel=1e-14)
    assert mesh.area == pytest.approx(6 * 4 - 2 + 4 * 2, rel=1e-14)


def test_a_shell_has_two_surfaces() -> None:
    found = cpwl.contour(over_box(lambda *s: (box_distance(*s) - 1).abs() - 0.25, 3))
    mesh = cpwl.surface(found)
    assert mesh.is_watertight
    assert mesh.body_count == 2
    assert mesh.volume == pytest.approx(2.5**3 - 1.5**3, rel=1e-14)


def test_points_on_an_interval() -> None:
    partition = over_box(lambda x: x.abs() - 1, 1)
    assert sorted(cpwl.contour(partition).vertices[:, 0]) == [-1, 1]
    assert cpwl.contour(partition, value=-1).vertices.tolist() == [[0]]  # it turns there
    assert sorted(cpwl.contour(partition, 0, 1.0).vertices[:, 0]) == [-2, 2]  # the domain's ends
    assert len(cpwl.contour(partition, value=-1.5).vertices) == 0


SLOPES = [(-1, 1), (1, -1), (1, 2), (-2, -1)]  # to the left of the strip |x| <= width, and right


def beside_a_strip(width: int) -> cpwl.Partition:
    """Return a partition with an output for each pair of slopes, 0 on the strip."""

    def outputs(x: Tensor, y: Tensor) -> Tensor:
        left, right = torch.relu(-x - width), torch.relu(x - width)
        return torch.cat([b * right - a * left + 0 * y for a, b in SLOPES], dim=1)

    return over_box(outputs, 2)


def assert_larger_on_the_left(found: cpwl.Contour, slopes: tuple[int, int]) -> None:
    for start, end in found.vertices[found.simplices]:
        slope = slopes[0] if start[0] < 0 else slopes[1]
        assert (end - start)[1] * slope < 0


def test_a_level_along_a_knot_is_taken_once() -> None:
    partition = beside_a_strip(0)
    for output, (left, right) in enumerate(SLOPES):
        found = cpwl.contour(partition, output)
        assert sorted(found.vertices.tolist()) == [[0, -2], [0, 2]]
        assert len(found.simplices) == 1
        if left * right > 0:
            assert_larger_on_the_left(found, (left, right))


def test_cells_on_the_level_are_listed_and_bordered() -> None:
    partition = beside_a_strip(1)
    for output, slopes in enumerate(SLOPES):
        found = cpwl.contour(partition, output)
        assert cpwl.volumes(partition)[found.flat].sum() == pytest.approx(8)
        assert sorted(found.vertices.tolist()) == [[-1, -2], [-1, 2], [1, -2], [1, 2]]
        assert found.sizes.tolist() == [4, 4]
        assert not set(found.cells) & set(found.flat)
        assert_larger_on_the_left(found, slopes)


def test_a_function_that_is_the_level_everywhere_has_no_border() -> None:
    found = cpwl.contour(over_box(lambda x, y: 0 * x.abs() + 0 * y, 2))
    assert len(found.simplices) == 0
    assert found.flat.tolist() == [0, 1]
    assert repr(found) == "Contour(0 segments, 0 vertices, 2 flat cells)"


def test_lines_that_cross_in_a_vertex_end_there() -> None:
    found = cpwl.contour(over_box(lambda x, y: x.abs() - y.abs(), 2))
    assert len(found.vertices) == 5  # the corners, and the origin once
    assert sorted(len(line) for line in found.polylines) == [2, 2, 2, 2]
    assert found.sizes.sum() == pytest.approx(8 * np.sqrt(2))


def test_a_square_is_one_closed_line_anticlockwise_about_what_is_larger() -> None:
    partition = over_box(lambda x, y: 1 - torch.maximum(x.abs(), y.abs()), 2)
    (line,) = cpwl.contour(partition).polylines
    ring = cpwl.contour(partition).vertices[line]
    assert line[0] == line[-1]
    assert shapely.Polygon(ring).area == pytest.approx(4)
    assert shapely.LinearRing(ring).is_ccw
    # larger than the domain at its corners: four pieces, each from side to side
    open_ones = cpwl.contour(over_box(lambda x, y: x.abs() + y.abs() - 3, 2))
    assert [len(line) for line in open_ones.polylines] == [2] * 4


# --- random networks


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("output", [1, (0, 2)])
def test_generic_level_sets(dim: int, output) -> None:
    for seed in range(2):
        network = cpwl.Network.from_torch(mlp(5, 10, 10, 3, seed=seed), (5,))
        basis = np.random.default_rng(seed).standard_normal((dim, 5))
        place = cpwl.Slice(np.zeros(5), basis)
        partition = cpwl.subdivide(network, place.box([-2] * dim, [2] * dim), progress=False)
        assert_generic(partition, output)


def assert_generic(partition: cpwl.Partition, output) -> None:
    """Check a level that no vertex is on."""
    height = values(partition, partition.points, output)
    level = float(np.quantile(height, 0.4)) + 1e-3 * float(np.ptp(height))
    found = cpwl.contour(partition, output, level)
    assert len(found.simplices) > 0
    # on the level, and the tolerance is rounding
    size = np.abs(height).max()
    assert np.abs(values(partition, found.vertices, output) - level).max() < 4e-16 * size
    assert found.tolerance < 1e-13 * size
    # without gaps: it ends only where the domain does
    sides = found.vertices[free_edges(found)]
    assert partition.dim == 1 or on_boundary(partition.domain, sides).all()
    # upwards
    middles = found.vertices[found.simplices].mean(axis=1)
    normal = upwards(found)
    step = 1e-6 * normal / np.linalg.norm(normal, axis=1, keepdims=True)
    higher = values(partition, middles + step, output) - values(partition, middles - step, output)
    assert (higher[found.sizes > 1e-6] > 0).all() or partition.dim == 1
    # cell by cell what the cell's corners say
    size = np.bincount(found.cells, found.sizes, partition.num_cells)
    some = np.random.default_rng(0).permutation(np.unique(found.cells))[:100]
    for cell in [*some, *range(min(20, partition.num_cells))]:
        start, stop = partition.cell_offsets[cell : cell + 2]
        corners = partition.cell_corners[start:stop]
        expected = section(partition.points[corners], height[corners] - level)
        assert size[cell] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def upwards(found: cpwl.Contour) -> np.ndarray:
    """Return vectors to the side on which the function should be larger."""
    corners = found.vertices[found.simplices]
    if found.dim == 1:
        return np.ones((len(corners), 1))
    if found.dim == 2:
        along = corners[:, 1] - corners[:, 0]
        return np.stack([-along[:, 1], along[:, 0]], axis=1)
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def section(corners: np.ndarray, height: np.ndarray) -> float:
    """Return the size of a convex cell's section at height 0, from all pairs of its corners."""
    low, high = np.flatnonzero(height < 0), np.flatnonzero(height > 0)
    if not (len(low) and len(high)):
        return 0.0
    t = height[low][:, None] / (height[low][:, None] - height[high])
    points = corners[low][:, None] + t[..., None] * (corners[high] - corners[low][:, None])
    points = points.reshape(-1, corners.shape[1])
    if corners.shape[1] == 1:
        return 1.0
    centred = points - points.mean(axis=0)
    along = np.linalg.svd(centred)[2][:-1]
    flat = centred @ along.T
    if corners.shape[1] == 2:
        return float(np.ptp(flat))
    if np.ptp(flat, axis=0).min() < 1e-9:
        return 0.0
    return float(ConvexHull(flat).volume)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["conv", "max-pool"])
def test_level_sets_of_other_networks_in_space(kind: str) -> None:
    _, partition = sample(kind, 3)
    assert_generic(partition, 0)


def test_a_level_along_a_bent_knot_is_its_facets() -> None:
    # to rounding: at the knot's vertices float64 gives some 1e-17 of either sign
    body = mlp(3, 6, 6, 1, seed=3).double()

    class Bent(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            h = body(z) + 0.05
            return 0.7 * torch.relu(h) - 1.3 * torch.relu(-h)

    partition = partition_of_three(Bent())
    found = cpwl.contour(partition)
    unit = partition.network.num_units - 1
    last = np.isin(partition.facet_unit, [unit, unit - 1])
    lattice = {
        frozenset(map(tuple, partition.points[partition.facet_corners[a:b]].tolist()))
        for a, b in zip(
            partition.facet_offsets[:-1][last], partition.facet_offsets[1:][last], strict=True
        )
    }
    used = set().union(*lattice)
    assert {tuple(v) for v in found.vertices.tolist()} == used
    assert len(found.simplices) == sum(len(corners) - 2 for corners in lattice)
    assert cpwl.surface(found).is_winding_consistent


def partition_of_three(module: nn.Module) -> cpwl.Partition:
    network = cpwl.Network.from_torch(module, (3,))
    return cpwl.subdivide(network, cpwl.box([-2] * 3, [2] * 3), progress=False)


# --- exact arithmetic


def exact_level_set(cells: list[splitting.Cell]) -> tuple[float, Fraction]:
    """Return the length of where the first output is 0, without the areas, and these areas."""
    lines: dict[tuple, list[tuple[Fraction, Fraction]]] = {}
    area = Fraction(0)
    for cell in cells:
        (row, *_), (offset, *_) = cell.affine
        corners = cell.corners
        height = [row[0] * x + row[1] * y + offset for x, y in corners]
        if not any(height):
            area += cell.volume
            continue
        ends = {p for p, h in zip(corners, height, strict=True) if h == 0}
        for i, (p, h) in enumerate(zip(corners, height, strict=True)):
            q, k = corners[(i + 1) % len(corners)], height[(i + 1) % len(corners)]
            if h * k < 0:
                t = h / (h - k)
                ends.add((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
        if len(ends) == 2:
            lead = row[0] or row[1]
            key = (row[0] / lead, row[1] / lead, offset / lead)
            axis = 0 if row[1] else 1
            low, high = sorted(point[axis] for point in ends)
            lines.setdefault(key, []).append((low, high))
    total = 0.0
    for (a, b, _), spans in lines.items():
        covered, end = Fraction(0), None
        for low, high in sorted(spans):
            start = low if end is None else max(low, end)
            covered += max(high - start, Fraction(0))
            end = high if end is None else max(end, high)
        # a span is measured along x, or along y where the line is x = const
        total += float(covered) * (float((a * a + b * b) / (b * b)) ** 0.5 if b else 1.0)
    return total, area


def assert_exact(layers, corners) -> None:
    partition = cpwl.subdivide(capture(layers), domain_of(corners), progress=False)
    found = cpwl.contour(partition, 0)
    length, area = exact_level_set(splitting.subdivide(layers, exact_of(corners)))
    assert found.sizes.sum() == pytest.approx(length, rel=1e-12, abs=1e-12)
    assert cpwl.volumes(partition)[found.flat].sum() == pytest.approx(float(area), rel=1e-12)
    assert len(np.unique(np.sort(found.simplices, axis=1), axis=0)) == len(found.simplices)
    assert found.sizes.min(initial=1) > 1e-9


@ordinary(6)
@given(degenerate_networks(shapes(2)))
def test_degenerate_level_sets_are_those_of_exact_arithmetic(layers) -> None:
    assert_exact(layers, POLYGONS[0])


@pytest.mark.nightly
@nightly(600)
@given(degenerate_networks(shapes(2)))
def test_many_degenerate_level_sets_are_those_of_exact_arithmetic(layers) -> None:
    for corners in POLYGONS:
        assert_exact(layers, corners)


# --- files, and what is refused


@pytest.mark.parametrize("suffix", [".ply", ".glb"])
def test_a_mesh_is_written_and_read_back(suffix: str, tmp_path) -> None:
    found = cpwl.contour(over_box(drilled, 3))
    path = tmp_path / f"drilled{suffix}"
    cpwl.write_mesh(found, path)
    back = trimesh.load_mesh(path)
    assert back.is_watertight
    assert back.volume == pytest.approx(6, rel=1e-6)
    cpwl.write_mesh(found, path, found.cells % 7)
    assert trimesh.load_mesh(path).area == pytest.approx(30, rel=1e-6)
    np.testing.assert_array_equal(cpwl.surface(found).face_attributes["cell"], found.cells)
    empty = cpwl.contour(over_box(drilled, 3), value=-10)
    assert cpwl.surface(empty).faces.shape == (0, 3)


def test_latents_are_the_vertices_in_the_latent_space() -> None:
    network = cpwl.Network.from_torch(mlp(5, 8, 2), (5,))
    place = cpwl.Slice(np.ones(5), np.eye(5)[[2, 4]])
    partition = cpwl.subdivide(network, place.box([-3, -3], [3, 3]), progress=False)
    level = float(np.median(values(partition, partition.points, (0, 1))))
    found = cpwl.contour(partition, (0, 1), level)
    y = network(found.latents).numpy()
    assert len(y) > 0
    np.testing.assert_allclose(y[:, 0] - y[:, 1], level, atol=1e-14)


@pytest.fixture(scope="module")
def three_outputs() -> cpwl.Partition:
    network = cpwl.Network.from_torch(mlp(2, 6, 3), (2,))
    return cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]), progress=False)


REFUSED = {
    "none": ((None,), r"which of 3 outputs, got none\. Give one's index, or a pair"),
    "missing": ((3,), r"outputs between 0 and 2, got \[3\]\. Count"),
    "negative": (((0, -1),), r"outputs between 0 and 2, got \[0, -1\]\. Count"),
    "twice": (((1, 1),), r"two different outputs, got 1 twice\. Give the two"),
    "weights": (((1.0, -1.0, 0.0),), r"an output's index or a pair \(i, j\), got \(1\.0"),
    "name": (("psi",), r"an output's index or a pair \(i, j\), got 'psi'"),
    "value": ((0, float("nan")), r"value as a finite number, got nan\. Give the level"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_gets_one_clear_error(case, three_outputs) -> None:
    arguments, text = REFUSED[case]
    with pytest.raises(ValueError, match=text):
        cpwl.contour(three_outputs, *arguments)


def test_more_dimensions_and_missing_cells_are_refused(three_outputs) -> None:
    with pytest.raises(ValueError, match=r"dimension 1, 2 or 3, got 4\. Subdivide a slice"):
        cpwl.contour(grid((0.1,), (), (), ()), 0)
    with pytest.raises(ValueError, match="contour of a 2-D partition for polylines, got that of a"):
        _ = cpwl.contour(grid((0.1,), (), ()), 0).polylines
    with pytest.raises(ValueError, match=r"contour of a 3-D partition and one value per triangle"):
        cpwl.surface(cpwl.contour(three_outputs, 0))
    part = replace(three_outputs, status=three_outputs.status._replace(complete=False, broken=1))
    for answer in (lambda: cpwl.contour(part, 0), lambda: cpwl.decision_regions(part)):
        with pytest.raises(cpwl.PartitionError, match="Expected a complete partition"):
            answer()
