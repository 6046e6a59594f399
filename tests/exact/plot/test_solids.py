"""Pictures of 3-D partitions: what is drawn where, in which order and colour, and the animation."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter
from support.grids import grid, intervals

import cpwl
from bridges.networks.toys import random_mlp
from cpwl import plot
from cpwl.arrays.ragged import next_corner
from cpwl.geometry import solid_loops
from cpwl.geometry.solid_loops import Plane
from cpwl.plot import animation
from cpwl.plot.painting import Painting, back_to_front

CUTS = ((-0.5, 0.2), (-0.3, 0.1, 0.6), (0.1, 0.5))  # 3 x 4 x 3 boxes


@pytest.fixture(autouse=True)
def _close_figures():
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


@pytest.fixture(scope="module")
def boxes():
    return grid(*CUTS)


def painting_of(ax) -> Painting:
    ax.figure.canvas.draw()
    (painting,) = (c for c in ax.collections if isinstance(c, Painting))
    return painting


def volumes_of(polygons: solid_loops.Polygons, count: int) -> np.ndarray:
    """Volumes of the cells that closed surfaces bound, by the divergence theorem."""
    flux = np.einsum(
        "ki,ki->k",
        solid_loops.normals(polygons.offsets, polygons.corners),
        polygons.corners[polygons.offsets[:-1]],
    )
    return np.bincount(polygons.cell, flux / 3, minlength=count)


def test_cells_are_closed_surfaces_seen_from_outside(boxes):
    faces = solid_loops.cells(boxes)
    assert len(faces.cell) == 6 * boxes.num_cells
    assert np.all(np.diff(faces.offsets) == 4)
    low, high = np.moveaxis(intervals(boxes), 1, 0)
    expected = np.prod(high - low, axis=1)
    np.testing.assert_allclose(volumes_of(faces, boxes.num_cells), expected, rtol=1e-13)


PLANES = {
    "half": [Plane(np.array([1.0, -2.0, 0.5]), 0.1)],
    "corner": [Plane(sign * axis, 0.0) for sign, axis in zip((1, -1, 1), np.eye(3), strict=True)],
    "wedge": [Plane(np.array([1.0, 1.0, 0.0]), 0.0), Plane(np.array([0.3, -1.0, 2.0]), -0.2)],
    "along facets": [Plane(np.array([0.0, 1.0, 0.0]), 0.1)],
    "misses": [Plane(np.array([0.0, 0.0, 1.0]), 5.0)],
}


@pytest.mark.parametrize("case", PLANES)
def test_cut_cells_stay_closed_and_lose_what_lies_beyond(boxes, case):
    planes = PLANES[case]
    left = solid_loops.cut_open(solid_loops.cells(boxes), planes)
    # every cell that is left is closed: its vector areas add up to nothing
    area = solid_loops.normals(left.offsets, left.corners)
    total = np.stack([np.bincount(left.cell, part, minlength=1) for part in area.T])
    np.testing.assert_allclose(total, 0, atol=1e-13)
    kept = volumes_of(left, boxes.num_cells).sum()
    s = np.random.default_rng(0).uniform(-1, 1, (200_000, 3))
    beyond = np.all([s @ plane.normal >= plane.offset for plane in planes], axis=0)
    assert kept == pytest.approx(8 * (1 - beyond.mean()), abs=0.03)
    # nothing of it is beyond all planes, and the walls are seen from what was taken away
    middles = solid_loops.middles(left.offsets, left.corners)
    height = np.array([middles @ plane.normal - plane.offset for plane in planes])
    assert height.min(axis=0).max() < 1e-12
    for k in np.flatnonzero(left.facet < 0):
        mine = np.argmin(np.abs(height[:, k]))
        assert area[k] @ planes[mine].normal > 0


def test_a_cut_along_facets_shows_the_cells_behind_them(boxes):
    (plane,) = PLANES["along facets"]
    left = solid_loops.cut_open(solid_loops.cells(boxes), [plane])
    wall = left.cell[left.facet < 0]
    high = intervals(boxes)[:, 1, 1]
    assert len(wall) == 9
    assert np.all(high[wall] == 0.1)
    assert np.all(high[left.cell] <= 0.1)


def test_seams_of_a_cut_are_not_stroked(boxes):
    left = solid_loops.cut_open(solid_loops.cells(boxes), PLANES["corner"])
    outside = left.facet >= 0
    # each piece is closed along a seam where the cut split it, the walls are stroked all around
    seams = np.bincount(np.repeat(np.arange(len(left.cell)), np.diff(left.offsets)), ~left.stroked)
    assert np.all(seams[~outside] == 0)
    assert seams[outside].max() > 0
    whole = solid_loops.cells(boxes)
    lengths = [perimeter(polygons) for polygons in (left, whole)]
    assert lengths[0] < lengths[1]


def perimeter(polygons: solid_loops.Polygons) -> float:
    sides = polygons.corners[next_corner(polygons.offsets)] - polygons.corners
    return float(
        np.linalg.norm(sides, axis=1)[
            polygons.stroked
            & (
                polygons.facet[np.repeat(np.arange(len(polygons.cell)), np.diff(polygons.offsets))]
                >= 0
            )
        ].sum()
    )


def test_a_whole_solid_shows_its_three_near_sides(boxes):
    painting = painting_of(plot.cells3d(boxes, None, cut=None, explode=0))
    polygons = painting.polygons
    painted = painting.painted
    filled = painted[painting.colours[painted, 3] > 0]
    assert len(filled) == 3 * 4 + 4 * 3 + 3 * 3
    assert len(painted) - len(filled) == 3  # the outlines of the sides
    # from the default view one sees the sides s0 = 1, s1 = -1 and s2 = 1
    middles = solid_loops.middles(polygons.offsets, polygons.corners)[filled]
    assert np.all(np.any(np.isclose(middles, [1, -1, 1]), axis=1))


def test_exploded_cells_show_three_faces_each(boxes):
    painting = painting_of(plot.cells3d(boxes, None, cut=None, explode=0.4))
    np.testing.assert_array_equal(np.bincount(painting.polygons.cell[painting.painted]), 3)
    corners = painting.polygons.corners.reshape(-1, 6, 4, 3)
    low, high = np.moveaxis(intervals(boxes), 1, 0)
    np.testing.assert_allclose(corners.min(axis=(1, 2)), low + 0.4 * (low + high) / 2, atol=1e-15)
    np.testing.assert_allclose(corners.max(axis=(1, 2)), high + 0.4 * (low + high) / 2, atol=1e-15)


@pytest.mark.parametrize("view", [(24, -52), (60, 10), (-30, 130), (5, 250)])
@pytest.mark.parametrize("explode", [0.0, 0.3])
def test_every_pixel_shows_the_nearest_cell(boxes, view, explode):
    values = np.random.default_rng(1).permutation(boxes.num_cells).astype(float)
    figure = Figure(figsize=(3, 3), dpi=60)
    canvas = FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1), projection="3d", computed_zorder=False)
    plot.cells3d(boxes, values, ax=ax, explode=explode, colorbar=False)
    ax.view_init(*view)
    ax.set_axis_off()
    painting = next(c for c in ax.collections if isinstance(c, Painting))
    canvas.draw()
    shown = np.asarray(canvas.buffer_rgba())[::-1, :, :3] / 255
    seen, expected = painted_by_hand(ax, painting, shown.shape[:2])
    # away from lines, whose colours are their own
    flat = (minimum_filter(seen, 5) == maximum_filter(seen, 5)) & (seen >= 0)
    assert flat.sum() > 4000
    np.testing.assert_allclose(shown[flat], expected[flat], atol=2 / 255)


def painted_by_hand(ax, painting, shape):
    """Return which polygon is nearest at every pixel, and its colour, by casting rays."""
    polygons = painting.polygons
    filled = np.flatnonzero(painting.colours[:, 3] > 0)
    x, y = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    canvas = np.stack([x.ravel(), y.ravel()], axis=1)
    flat = ax.transData.inverted().transform(canvas)
    inverse = np.linalg.inv(ax.M)
    # two points of every ray, at the depths of the nearest and the farthest corner
    corners = np.column_stack([polygons.corners, np.ones(len(polygons.corners))]) @ ax.M.T
    depths = corners[:, 2] / corners[:, 3]
    ends = []
    for depth in (depths.min(), depths.max()):
        p = np.column_stack([flat, np.full(len(flat), depth), np.ones(len(flat))]) @ inverse.T
        ends.append(p[:, :3] / p[:, 3:])
    best, owner = np.full(len(flat), np.inf), np.full(len(flat), -1)
    normals = solid_loops.normals(polygons.offsets, polygons.corners)
    for k in filled:
        loop = polygons.corners[polygons.offsets[k] : polygons.offsets[k + 1]]
        way = ends[1] - ends[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (loop[0] - ends[0]) @ normals[k] / (way @ normals[k])
        hit = ends[0] + t[:, None] * way
        inside = np.isfinite(t)
        for a, b in pairwise([*loop, loop[0]]):
            inside &= np.cross(b - a, hit - a) @ normals[k] >= 0
        depth = np.column_stack([hit, np.ones(len(hit))]) @ ax.M.T
        depth = depth[:, 2] / depth[:, 3]
        nearer = inside & (depth < best)
        best[nearer], owner[nearer] = depth[nearer], k
    return owner.reshape(shape), painting.colours[owner, :3].reshape(*shape, 3)


def test_colours_are_those_of_the_scale_in_light_and_shade(boxes):
    values = np.arange(boxes.num_cells, dtype=float)
    values[[3, 20]] = np.nan, np.inf
    ax = plot.cells3d(boxes, values, limits=(0, 35), label="number")
    bar = next(axes for axes in ax.figure.axes if axes.get_label() == "<colorbar>")
    assert bar.get_ylabel() == "number"
    painting = painting_of(ax)
    own = mpl.colormaps["viridis"](values / 35)
    own[[3, 20]] = 0.85, 0.85, 0.85, 1
    shade = painting.colours[:, :3] / own[painting.polygons.cell][:, :3]
    np.testing.assert_allclose(shade, np.broadcast_to(shade[:, :1], shade.shape), rtol=1e-12)
    assert 0.5 < shade.min() < 0.6
    assert shade.max() == 1
    assert np.all(painting.colours[:, 3] == 1)


def test_values_by_name_use_the_network(boxes):
    ax = plot.cells3d(boxes, cut=None)
    bar = next(axes for axes in ax.figure.axes if axes.get_label() == "<colorbar>")
    assert bar.get_ylabel() == plot.LABELS["psi"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()) == ("$s_0$", "$s_1$", "$s_2$")
    ax.figure.canvas.draw()


def test_ticks_are_shown_where_coordinates_are_true(boxes):
    ax = plot.cells3d(boxes, None, explode=0)
    assert len(ax.get_xticks()) > 1
    assert ax.get_xlim() == (-1, 1)
    ax = plot.cells3d(boxes, None, explode=0.5)
    assert len(ax.get_zticks()) == 0
    assert ax.get_zlim() == (-1.5, 1.5)


def test_order_of_painting():
    # 0 behind 1 behind 2, and 3 behind 2 only
    rank = back_to_front(np.array([0, 1, 3]), np.array([1, 2, 2]), 5)
    assert rank[0] < rank[1] < rank[2] > rank[3]
    assert rank[4] == 0
    # pairs that run in a circle are still all ranked
    rank = back_to_front(np.array([0, 1, 2, 2]), np.array([1, 2, 0, 3]), 4)
    assert rank.min() == 0
    assert rank[3] > rank[2]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sweep_shows_every_slice_in_the_colours_of_the_solid(boxes, tmp_path, monkeypatch, axis):
    drawn = []
    make = animation._flat_cells

    def record(partition, made, axis, place, colours):
        cells = make(partition, made, axis, place, colours)
        drawn.append((made, place, cells.get_facecolor().copy()))
        return cells

    monkeypatch.setattr(animation, "_flat_cells", record)
    values = np.arange(boxes.num_cells, dtype=float)
    path = tmp_path / "sweep.gif"
    plot.sweep(boxes, path, axis, values=values, limits=(0, 35), frames=7, fps=10, progress=False)
    with Image.open(path) as image:
        assert image.n_frames == 7
        assert image.info["duration"] == 100
    assert os.listdir(tmp_path) == ["sweep.gif"]
    sizes = [len(own) + 1 for own in CUTS]
    across = [k for k in range(3) if k != axis]
    boxed = intervals(boxes)
    for k, (made, place, colours) in enumerate(drawn):
        assert place == pytest.approx(-1 + 2 * (k + 0.5) / 7)
        assert made.num_cells == sizes[across[0]] * sizes[across[1]]
        low_high = np.array(
            [
                [own.min(axis=0), own.max(axis=0)]
                for own in (
                    made.points[made.cell_corners[a:b]] for a, b in pairwise(made.cell_offsets)
                )
            ]
        )
        for cell, colour in zip(low_high, colours, strict=True):
            fits = np.all(np.isclose(boxed[:, :, across], cell), axis=(1, 2))
            fits &= (boxed[:, 0, axis] <= place) & (place <= boxed[:, 1, axis])
            (number,) = np.flatnonzero(fits)
            np.testing.assert_allclose(colour, mpl.colormaps["viridis"](number / 35))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_walls_of_a_cut_are_the_cells_of_the_slice(axis):
    network = cpwl.Network.from_torch(random_mlp((3, 8, 8, 3), seed=4), (3,))
    solid = cpwl.subdivide(network, cpwl.box([-3, -3, -3], [3, 2, 3]), progress=False)
    for place in (-1.3, 0.4):
        wall = solid_loops.section(solid_loops.cells(solid), Plane(np.eye(3)[axis], place))
        area = np.linalg.norm(solid_loops.normals(wall.offsets, wall.corners), axis=1)
        domain = animation.cross_section(solid.domain, axis, place)
        made = cpwl.subdivide(network, domain, progress=False)
        middles = solid_loops.middles(made.cell_offsets, made.points[made.cell_corners])
        cell = cpwl.locate(solid, np.insert(middles, axis, place, axis=1))
        assert made.num_cells > 50
        np.testing.assert_array_equal(np.sort(cell), wall.cell)
        by_cell = np.empty(solid.num_cells)
        by_cell[cell] = cpwl.volumes(made)
        np.testing.assert_allclose(by_cell[wall.cell], area, rtol=1e-9, atol=1e-13)


def test_cross_sections_of_other_domains_are_convex():
    domain = cpwl.cross_polytope(
        [0.1, 0.2, 0.3], 1.0, np.linalg.qr(np.arange(9).reshape(3, 3) ** 2 + np.eye(3))[0]
    )
    for place in (-0.7, 1e-9, 0.123456789):
        part = animation.cross_section(domain, 1, place)
        assert part.volume == pytest.approx(2 * (1 - abs(place)) ** 2)
        z = part.slice.embed(part.corners)
        assert np.abs(domain.slice.project(z)).sum(axis=1) == pytest.approx(1)
        np.testing.assert_allclose(domain.slice.project(z)[:, 1], place, atol=1e-15)


def test_an_interrupted_sweep_leaves_the_old_file(boxes, tmp_path, monkeypatch):
    path = tmp_path / "sweep.gif"
    path.write_bytes(b"old")
    calls = []

    def interrupt(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return cpwl.subdivide(*args, **kwargs)

    monkeypatch.setattr(animation, "subdivide", interrupt)
    with pytest.raises(KeyboardInterrupt):
        plot.sweep(boxes, path, frames=7, progress=False)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["sweep.gif"]


BAD = {
    "dimension": (
        lambda p: plot.cells3d(grid((0.0,), (0.0, 0.5))),
        r"partition of dimension 3, got 2\. Draw one or two dimensions with plot\.partition",
    ),
    "flat picture": (
        lambda p: plot.partition(p, "volume"),
        r"of one or two dimensions, got 3\. Draw three with plot\.cells3d or plot\.sweep",
    ),
    "image": (
        lambda p: plot.image(p),
        r"of one or two dimensions, got 3\. Draw three with plot\.cells3d",
    ),
    "explode": (
        lambda p: plot.cells3d(p, explode=-0.1),
        r"explode as a number >= 0, got -0\.1\. 0 leaves",
    ),
    "cut by name": (
        lambda p: plot.cells3d(p, cut="half"),
        r"cut 'corner', None, or planes \(normal, offset\), got 'half'\. For example",
    ),
    "one plane without its list": (
        lambda p: plot.cells3d(p, cut=((1, 0, 0), 0.5)),
        r"plane of the cut as \(normal, offset\): three numbers, .* got \(1, 0, 0\)\. For example",
    ),
    "no normal": (
        lambda p: plot.cells3d(p, cut=[((0, 0, 0), 0.5)]),
        r"three numbers, not all zero, and one; got \(\(0, 0, 0\), 0\.5\)",
    ),
    "no number": (
        lambda p: plot.cells3d(p, cut=[((1, 0, np.nan), 0.5)]),
        r"three numbers, not all zero, and one; got",
    ),
    "nothing left": (
        lambda p: plot.cells3d(p, cut=[((1, 0, 0), -2)]),
        r"cut that leaves something of the domain, got one that takes all of it\. It takes",
    ),
    "descriptor": (lambda p: plot.cells3d(p, "phi"), r"descriptors among psi, .*, got phi"),
    "length": (lambda p: plot.cells3d(p, [1, 2]), r"one value per cell, shape \(36,\), got \(2,\)"),
    "flat axes": (
        lambda p: plot.cells3d(p, ax=Figure().add_subplot()),
        r"three-dimensional axes, got flat ones\. Make them with",
    ),
    "sweep of a plane": (
        lambda p: plot.sweep(grid((0.0,), (0.0, 0.5)), "a.gif"),
        r"partition of dimension 3, got 2\.",
    ),
    "sweep without network": (
        lambda p: plot.sweep(replace(p, network=None), "a.gif"),
        r"partition with its network, got",
    ),
    "axis": (lambda p: plot.sweep(p, "a.gif", 3), r"axis 0, 1 or 2, got 3\. It is the slice"),
    "frames": (
        lambda p: plot.sweep(p, "a.gif", frames=0),
        r"at least one frame and one a second, got frames=0 and fps=12\. 48 frames",
    ),
    "suffix": (
        lambda p: plot.sweep(p, "a.mp4"),
        r"path ending in \.gif, got 'a\.mp4'\. Only GIF is written",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_error(case, boxes):
    call, text = BAD[case]
    with pytest.raises(ValueError, match=text):
        call(boxes)
    assert plt.get_fignums() == []
