"""Plots: what is drawn, at ten cells and above the threshold, and that nothing else is touched."""

from __future__ import annotations

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection, PolyCollection, TriMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import nn

import cpwl
from bridges.networks.toys import random_mlp
from cpwl import plot
from cpwl.partition import Partition, Status


@pytest.fixture(autouse=True)
def _close_figures():
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


@pytest.fixture(scope="module")
def network():
    return cpwl.Network.from_torch(random_mlp((2, 12, 12, 3), seed=22), (2,))


@pytest.fixture(scope="module")
def partition(network):
    return cpwl.subdivide(network, cpwl.box([-3, -3], [3, 3]), progress=False)


@pytest.fixture(scope="module")
def interval(network):
    return cpwl.subdivide(network, cpwl.segment([-3, -2], [3, 1]), progress=False)


def grid(n: int) -> Partition:
    """Return n x n squares, whose sides are knots of one unit; it has no network."""
    i, j = np.divmod(np.arange(n * n), n)
    corner = (i * (n + 1) + j)[:, None] + np.array([0, n + 1, n + 2, 1])
    points = np.stack(np.divmod(np.arange((n + 1) ** 2), n + 1), axis=1).astype(np.float64)
    sides = np.sort(np.stack([corner, np.roll(corner, -1, axis=1)], axis=2).reshape(-1, 2), axis=1)
    keys = sides[:, 0] * (n + 1) ** 2 + sides[:, 1]
    found, facet, count = np.unique(keys, return_inverse=True, return_counts=True)
    facets = np.stack(np.divmod(found, (n + 1) ** 2), axis=1)
    return Partition(
        network=None,
        domain=cpwl.box([0, 0], [n, n]),
        points=points,
        cell_offsets=4 * np.arange(n * n + 1),
        cell_corners=corner.ravel().astype(np.int32),
        cell_facet_offsets=4 * np.arange(n * n + 1),
        cell_facets=facet.astype(np.int32),
        facet_offsets=2 * np.arange(len(facets) + 1),
        facet_corners=facets.astype(np.int32).ravel(),
        facet_cells=np.full((len(facets), 2), -1, np.int32),
        facet_unit=np.where(count == 2, 0, -1).astype(np.int32),
        skeleton=(),
        patterns=np.zeros((n * n, 1), np.uint64),
        bit_unit=np.full(64, -1, np.int32),
        unit_base=np.zeros(1, np.int32),
        status=Status(True, True, 0, 0, 0, 0, 1),
    )


def colour_bars(figure):
    return [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]


def segments_drawn(ax):
    lines = [c for c in ax.collections if isinstance(c, PathCollection)]
    return sum(len(path.vertices) // 2 for line in lines for path in line.get_paths())


@pytest.mark.parametrize("name", plot.LABELS)
def test_partition_is_coloured_by_each_descriptor(partition, name):
    ax = plot.partition(partition, name)
    cells = next(c for c in ax.collections if isinstance(c, PolyCollection))
    assert len(cells.get_paths()) == partition.num_cells
    (bar,) = colour_bars(ax.figure)
    assert bar.get_ylabel() == plot.LABELS[name]
    assert segments_drawn(ax) == np.sum(partition.facet_unit >= 0)
    ax.figure.canvas.draw()


def test_partition_without_values_draws_knots_by_stage(partition):
    ax = plot.partition(partition)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["stage 0", "stage 1"]
    lines = [c for c in ax.collections if isinstance(c, PathCollection)]
    assert len({tuple(line.get_edgecolor()[0]) for line in lines}) == 2
    assert lines[0].get_linewidth()[0] > lines[1].get_linewidth()[0]
    assert colour_bars(ax.figure) == []


def test_given_axes_are_used_and_no_figure_is_made(partition, interval):
    figure = Figure()
    axes = [figure.add_subplot(1, 3, 1), figure.add_subplot(1, 3, 2)]
    space = figure.add_subplot(1, 3, 3, projection="3d")
    assert plot.partition(partition, "nu", ax=axes[0]) is axes[0]
    assert plot.decision_boundary(partition, 0, 1, ax=axes[0]) is axes[0]
    assert plot.decision_regions(partition, ax=axes[1]) is axes[1]
    assert plot.mark(axes[1], [[0, 0]], ["z"]) is axes[1]
    assert plot.image(partition, ax=space) is space
    assert plt.get_fignums() == []
    figure.draw_without_rendering()


def test_values_that_are_not_finite_leave_the_scale_alone(partition):
    values = np.linspace(1, 2, partition.num_cells)
    values[3], values[5] = np.nan, np.inf
    ax = plot.partition(partition, values, label="made up")
    cells = next(c for c in ax.collections if isinstance(c, PolyCollection))
    assert 1 <= cells.norm.vmin < cells.norm.vmax <= 2
    assert colour_bars(ax.figure)[0].get_ylabel() == "made up"
    ax.figure.canvas.draw()


def test_the_scale_leaves_out_what_covers_almost_no_area(partition):
    area = cpwl.volumes(partition)
    values = np.zeros(partition.num_cells)
    values[np.argmin(area)] = 1e9
    values[np.argmax(area)] = 1
    ax = plot.partition(partition, values)
    cells = next(c for c in ax.collections if isinstance(c, PolyCollection))
    assert (cells.norm.vmin, cells.norm.vmax) == (0, 1)
    assert cells.colorbar.extend == "max"


def test_many_cells_are_rasterised_and_few_are_not():
    few, many = grid(3), grid(150)
    values = np.arange(22500.0)
    cells = plot.partition(few, values[:9]).collections[0]
    assert isinstance(cells, PolyCollection)
    assert not cells.get_rasterized()
    ax = plot.partition(many, values)
    assert isinstance(ax.collections[0], TriMesh)
    assert all(c.get_rasterized() for c in ax.collections)
    assert segments_drawn(ax) == 2 * 150 * 149
    ax.figure.canvas.draw()


def test_rasterised_cells_have_their_own_colours():
    n = 150
    part = grid(n)
    values = np.random.default_rng(0).uniform(size=n * n)
    figure = Figure(figsize=(n * 8 / 100, n * 8 / 100), dpi=100)
    ax = figure.add_axes((0, 0, 1, 1))
    plot.partition(part, values, ax=ax, knots=False, colorbar=False, limits=(0, 1), cmap="gray")
    ax.axis("off")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    middle = np.asarray(canvas.buffer_rgba())[::-1][4::8, 4::8, 0] / 255  # rows are the second axis
    np.testing.assert_allclose(middle.T.ravel(), values, atol=1 / 128)


def test_knots_fade_until_they_leave_the_picture_readable():
    ax = plot.partition(grid(700))  # 1400 lines side by side
    assert 0.2 < darkness(ax).mean() < 0.4


def darkness(ax):
    """Return how dark each of 400 x 400 pixels of the axes is, 0 for white."""
    if ax.get_legend():
        ax.get_legend().remove()
    ax.figure.set_layout_engine("none")
    ax.figure.set_dpi(100)
    ax.figure.set_size_inches(4, 4)
    ax.set_axis_off()
    ax.set_position([0, 0, 1, 1])
    ax.figure.canvas.draw()
    return 1 - np.asarray(ax.figure.canvas.buffer_rgba())[..., :3].mean(axis=2) / 255


def darkest(ax):
    """Return how dark the darkest of 16 x 16 tiles of the axes is."""
    return darkness(ax).reshape(16, 25, 16, 25).mean(axis=(1, 3)).max()


def test_an_interval_is_a_step_curve(interval):
    ax = plot.partition(interval, "psi")
    (steps,) = ax.patches
    values, edges, _ = steps.get_data()
    psi = cpwl.local_scaling(interval)
    low = interval.points[interval.cell_corners[interval.cell_offsets[:-1]], 0]
    np.testing.assert_array_equal(values, psi[np.argsort(low)])
    assert len(edges) == interval.num_cells + 1
    assert np.all(np.diff(edges) > 0)
    assert len(ax.lines) == interval.num_cells - 1  # one line per knot
    assert ax.get_ylabel() == plot.LABELS["psi"]
    plot.decision_boundary(interval, 0, 2, ax=ax)
    plot.mark(ax, interval.domain.slice.anchors, ["a", "b"])
    ax.figure.canvas.draw()


def test_image_draws_one_piece_per_cell(partition, interval):
    ax = plot.image(partition)
    assert len(ax.collections[0].get_array()) == partition.num_cells
    z = partition.network(partition.domain.slice.embed(partition.points))
    assert ax.get_zlim() == pytest.approx((float(z[:, 2].min()), float(z[:, 2].max())))
    ax.figure.canvas.draw()
    curve = plot.image(interval, "nu", outputs=(2, 1, 0))
    assert curve.get_xlabel() == "output 2"
    curve.figure.canvas.draw()


def test_decision_plots(partition):
    ax = plot.decision_regions(partition, "argmin", labels=["left", "right", "straight"])
    plot.decision_boundary(partition, 0, 1, ax=ax, color="black")
    assert {t.get_text() for t in ax.get_legend().get_texts()} == {"left", "right", "straight"}
    line = next(c for c in ax.collections if isinstance(c, LineCollection))
    assert len(line.get_segments()) == len(cpwl.contour(partition, (0, 1)).polylines)
    ax.figure.canvas.draw()


def test_a_single_output_is_drawn_by_one_call():
    ring = cpwl.subdivide(
        cpwl.Network.from_torch(_Ring(), (2,)), cpwl.box([-2, -2], [2, 2]), progress=False
    )
    ax = plot.decision_regions(ring, legend=False, colors=["red", "white"])
    plot.decision_boundary(ring, ax=ax)
    (line,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    assert line.get_label() == "output 0 = 0"
    assert len(line.get_segments()) == 2
    assert [patch.get_facecolor()[1] for patch in ax.patches] == [0, 1]
    # holes are left open: the red ring covers 8 of 16
    ax.axis("off")
    line.remove()
    ax.set_position((0, 0, 1, 1))
    canvas = FigureCanvasAgg(ax.figure)
    ax.figure.set(size_inches=(2, 2), dpi=100, layout_engine="none")
    canvas.draw()
    red = np.asarray(canvas.buffer_rgba())[..., 1] < 128
    assert red.mean() == pytest.approx(0.5, abs=0.03)


class _Ring(nn.Module):
    def forward(self, z):
        return (z.abs().amax(dim=1, keepdim=True) - 1).abs() - 0.5


def test_a_level_set_in_space_is_a_shaded_surface():
    network = cpwl.Network.from_torch(
        nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), (3,)
    )
    part = cpwl.subdivide(network, cpwl.box([-2] * 3, [2] * 3), progress=False)
    ax = plot.decision_boundary(part, 0, 1, color="tab:blue")
    assert ax.name == "3d"
    ax.figure.canvas.draw()
    with pytest.raises(ValueError, match="three-dimensional axes, got flat ones"):
        plot.decision_boundary(part, 0, 1, ax=Figure().add_subplot())


def test_anchors_are_marked_where_they_are(network):
    plane = cpwl.Slice.through([0, 0], [2, 0], [1, 1])
    part = cpwl.subdivide(network, plane.box([-1, -1], [3, 2]), progress=False)
    ax = plot.mark(plot.partition(part), plane.anchors, ["7", "1", "4"])
    offsets = ax.collections[-1].get_offsets()
    np.testing.assert_allclose(offsets, [[0, 0], [2, 0], [1, 1]], atol=1e-15)
    assert [text.get_text() for text in ax.texts] == ["7", "1", "4"]


@pytest.mark.parametrize("size", [(6, 3), (3, 6)])
@pytest.mark.parametrize("side", [2, 1, 0.5])
def test_colour_bars_are_as_high_as_the_picture(partition, network, size, side):
    part = cpwl.subdivide(network, cpwl.box([-1, -side], [1, side]), progress=False)
    figure = Figure(size, layout="constrained")
    ax = plot.partition(part, "psi", ax=figure.add_subplot())
    figure.draw_without_rendering()
    picture, bar = ax.get_position(), colour_bars(figure)[0].get_position()
    assert picture.height * 0.8 < bar.height  # arrows take the rest
    assert picture.y0 - 1e-9 <= bar.y0
    assert bar.y1 <= picture.y1 + 1e-9


def test_knots_fade_where_they_are_dense_and_all_stages_are_seen():
    torch.manual_seed(0)
    layers = [nn.Linear(2, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 1)]
    network = cpwl.Network.from_torch(nn.Sequential(*layers).eval(), (2,))
    part = cpwl.subdivide(network, cpwl.box([-9, -9], [9, 9]), progress=False)
    assert part.num_cells > 50_000
    ax = plot.partition(part)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["stage 0", "stage 1"]
    lines = [c for c in ax.collections if isinstance(c, PathCollection)]
    for stage in ("#000000", "#0072b2"):
        alphas = [c.get_alpha() for c in lines if to_hex(c.get_edgecolor()[0]) == stage]
        assert max(alphas) == 1.0
        assert min(alphas) < 0.8
    faded = darkest(ax)
    for line in lines:
        line.set_alpha(1)
    assert faded < 0.5 < darkest(ax)


def test_images_of_many_outputs_say_how_much_variance_is_shown():
    torch.manual_seed(0)
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(10, 10)))[0][:, :2]
    linear = nn.Linear(2, 10, dtype=torch.float64)
    with torch.no_grad():  # the square [-1, 1]^2 has variance 1/3 along both coordinates
        linear.weight.copy_(torch.from_numpy(axes * [3.0, 1.0]))
    part = cpwl.subdivide(
        cpwl.Network.from_torch(linear, (2,)), cpwl.box([-1, -1], [1, 1]), progress=False
    )
    ax = plot.image(part, None)
    assert ax.get_xlabel() == "principal axis 1 (90%)"
    assert ax.get_ylabel() == "principal axis 2 (10%)"
    assert ax.get_zlabel() == "principal axis 3 (0%)"
    share = (axes[4] ** 2 @ [9.0, 1.0]) / 10
    assert plot.image(part, None, outputs=(4, 1, 2)).get_xlabel() == f"output 4 ({share:.0%})"


def test_anchors_of_a_slice_are_marked_by_themselves(network):
    plane = cpwl.Slice.through([0, 0], [2, 0], [1, 1])
    part = cpwl.subdivide(network, plane.around(0.2), progress=False)
    marks = plot.partition(part).collections[-1].get_offsets()
    np.testing.assert_allclose(marks, [[0, 0], [2, 0], [1, 1]], atol=1e-15)
    line = cpwl.subdivide(network, cpwl.Slice.through([0, 0], [2, 0]).around(), progress=False)
    marks = plot.partition(line, "psi").collections[-1].get_offsets()
    np.testing.assert_allclose(marks, [[0, 0], [2, 0]])


BAD = {
    "descriptor": (
        lambda p, i: plot.partition(p, "phi"),
        r"descriptors among psi, nu, .*, got phi\. Give other columns as arrays",
    ),
    "length": (
        lambda p, i: plot.partition(p, [1, 2]),
        r"one value per cell, shape \(\d+,\), got \(2,\)\. Compute them",
    ),
    "two outputs": (
        lambda p, i: plot.image(p, outputs=(0, 1)),
        r"three outputs between 0 and 2, got \[0, 1\]\. Name",
    ),
    "flat axes": (
        lambda p, i: plot.image(p, ax=Figure().add_subplot()),
        r"three-dimensional axes, got flat ones\. Make them with",
    ),
    "no such output": (
        lambda p, i: plot.decision_boundary(p, 0, 3),
        r"outputs between 0 and 2, got \[0, 3\]\. Count",
    ),
    "same output": (lambda p, i: plot.decision_boundary(p, 1, 1), r"two different outputs, got 1"),
    "decide": (
        lambda p, i: plot.decision_regions(p, "max"),
        r"decide to be 'argmax' or 'argmin', got 'max'\. Choose one",
    ),
    "regions of an interval": (
        lambda p, i: plot.decision_regions(i),
        r"partition of dimension 2, got 1\. Use contour",
    ),
    "labels": (
        lambda p, i: plot.decision_regions(p, labels=["a"]),
        r"3 labels, one for each output, got 1\. List them",
    ),
    "no network": (
        lambda p, i: plot.decision_boundary(grid(2), 0, 1),
        r"partition with its network, got",
    ),
    "anchors": (
        lambda p, i: plot.mark(Figure().add_subplot(), [[0, 0, 0]]),
        r"anchors of shape \(k, 1\) or \(k, 2\), got \(1, 3\)\. Use the anchors",
    ),
    "names": (
        lambda p, i: plot.mark(Figure().add_subplot(), [[0, 0]], ["a", "b"]),
        r"1 labels, got 2\. Give one per anchor",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_error(case, partition, interval):
    call, text = BAD[case]
    with pytest.raises(ValueError, match=text):
        call(partition, interval)
