"""Knots and cells of neighbourhoods where they are known in closed form, and negative controls."""

from __future__ import annotations

import copy
import dataclasses
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import cpwl
from bridges.networks.toys import random_mlp
from bridges.validation.complexity import Complexity, draw, measure
from bridges.validation.complexity.neighbourhoods import neighbourhood, segment_distances, structure
from bridges.validation.complexity.planting import float32_values
from bridges.validation.findings import Row
from bridges.validation.subject import Subject

MEMORY = 2**28


def subject_of(module: nn.Module, domain: cpwl.Domain, decoder: nn.Module | None = None) -> Subject:
    module = module.eval()
    network = cpwl.Network.from_torch(module, domain.slice.latent_shape)
    partition = cpwl.subdivide(network, domain, progress=False)
    return Subject(decoder or module, domain, network, partition, network.output_shape[0])


def cube(inputs: int, half: float) -> cpwl.Domain:
    return cpwl.box([-half] * inputs, [half] * inputs)


def linear(weight: np.ndarray, bias: np.ndarray) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer.requires_grad_(False)


def rows_of(result: Complexity, quantity: str, case: str) -> list[Row]:
    return [row for row in result.rows if row.quantity == quantity and case in row.case]


def failures(result: Complexity) -> set[tuple[str, str]]:
    """Return what disagrees: the quantity, and the case up to its first comma."""
    return {(row.quantity, row.case.split(",")[0]) for row in result.rows if not row.agrees}


@pytest.fixture(scope="module")
def deep() -> Subject:
    return subject_of(random_mlp((2, 16, 16, 3), seed=3), cube(2, 4))


@pytest.fixture(scope="module")
def measured(deep: Subject) -> Complexity:
    return measure(deep, latents=16, seed=1)


# ------------------------------------------------------------------- one layer: lines in a plane


@pytest.fixture(scope="module")
def arrangement() -> tuple[np.ndarray, np.ndarray, Subject, Complexity]:
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((9, 3)), 0.5 * rng.standard_normal(9)
    module = nn.Sequential(linear(weight, bias), nn.ReLU(), linear(rng.random((4, 9)), np.zeros(4)))
    plane = cpwl.Slice(np.zeros(3), np.eye(3)[:2])
    subject = subject_of(module, plane.box([-1, -1], [1, 1]))
    radii = [1e-6, 1e-3, 0.1, 1, 1e4]
    return weight, bias, subject, measure(subject, radii=radii, directions=(1, 2, 3), latents=8)


def test_one_layer_is_counted_exactly_at_every_radius(arrangement):
    *_, result = arrangement
    assert not failures(result)
    assert result.proven.all()
    assert (result.folds == 0).all()
    assert np.isinf(result.fold_radius).all()
    for name in ("jvp float64", "hull float64"):
        assert np.array_equal(result.counts[name], result.knots)
    assert {0, 1} < set(result.knots[1].ravel().tolist())
    # the largest holds all crossings of a generic arrangement: Zaslavsky's bound is attained
    for q, P in enumerate(result.directions):
        assert (result.knots[q, -1] == 9).all()
        assert (result.cells[q, -1] == sum(math.comb(9, i) for i in range(P + 1))).all()


def test_counts_are_those_of_the_lines_themselves(arrangement):
    weight, bias, subject, _ = arrangement
    rng = np.random.default_rng(1)
    units = structure(subject.network)
    seen = set()
    for radius in (0.3, 1.0, 3.0):
        for _ in range(5):
            z, basis = rng.uniform(-1, 1, 3), np.linalg.qr(rng.standard_normal((3, 2)))[0].T
            found = neighbourhood(subject.network, units, z, radius, basis, MEMORY)
            normal, offset = weight @ basis.T, weight @ z + bias
            met = np.abs(offset) < radius * np.abs(normal).max(axis=1)
            crossings = 0
            for i in range(9):
                for j in range(i):
                    point = np.linalg.solve(normal[[i, j]], -offset[[i, j]])
                    crossings += np.abs(point).sum() < radius
            assert found.knots == met.sum()
            assert found.cells == 1 + met.sum() + crossings
            seen.add(crossings)
    assert len(seen) > 5


def test_units_with_two_knots_and_units_that_coincide_all_count():
    rng = np.random.default_rng(2)
    weight, bias = rng.standard_normal((6, 2)), rng.standard_normal(6)
    twice = np.concatenate([weight, weight[:3], -weight[:1]])
    shift = np.concatenate([bias, bias[:3], -bias[:1]])
    module = nn.Sequential(
        linear(twice, shift), nn.Hardtanh(-0.5, 0.7), linear(rng.random((3, 10)), np.zeros(3))
    )
    subject = subject_of(module, cube(2, 2))
    result = measure(subject, radii=[0.03, 1.0], latents=12)
    assert not failures(result)
    assert result.proven.all()
    units, seen = structure(subject.network), set()
    for z in rng.uniform(-1, 1, (10, 2)):
        basis = np.linalg.qr(rng.standard_normal((2, 2)))[0].T
        found = neighbourhood(subject.network, units, z, 0.5, basis, MEMORY)
        reach = 0.5 * np.abs(twice @ basis.T).max(axis=1)
        met = [np.abs(twice @ z + shift - t) < reach for t in (-0.5, 0.7)]
        assert found.knots == np.sum(met)
        seen.add(int(np.sum(met)))
    assert len(seen) > 3


# ------------------------------------------------------------------- depth: folds in closed form


class Sawtooth(nn.Module):
    """T(x) = 1 - 2 |x| again and again: the zeros of T^l are the odd multiples of 2^-l."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.last = linear(np.ones((2, 1)), np.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.depth):
            x = 1 - 2 * x.abs()
        return self.last(x)


def test_sawtooth_has_two_to_the_depth_cells_and_its_units_fold():
    depth = 6
    subject = subject_of(Sawtooth(depth), cpwl.box(-0.9, 0.9))
    radii = np.geomspace(1e-4, 2.0, 8)
    result = measure(subject, radius=1e-4, radii=radii, directions=(1,), latents=12)
    assert not failures(result)
    # a radius of 2 covers all zeros: one unit a layer, but twice the cells with every layer
    assert (result.cells[0, -1, ~result.planted] == 2**depth).all()
    assert (result.knots[0, -1, ~result.planted] == depth).all()
    (row,) = rows_of(result, "cells", "Zaslavsky of the exact knots")
    assert "have more cells" in row.note
    # the unit of layer l folds where its second zero is met
    expected = []
    for z in result.z[0, 0, ~result.planted, 0]:
        zeros = [np.arange(1 - 2**n, 2**n, 2) / 2**n for n in range(1, depth)]
        expected.append(min(np.sort(np.abs(of - z))[1] for of in zeros))
    np.testing.assert_allclose(result.fold_radius[0], expected, rtol=1e-9)
    (row,) = rows_of(result, "folds", "P = 1")
    assert row.value == pytest.approx(min(expected), rel=1e-9)

    outside = measure(subject, radius=2.0, radii=[2.0], directions=(1,), latents=12)
    assert {("knots", "jvp float64"), ("cells", "Zaslavsky of jvp float64")} <= failures(outside)
    assert not outside.proven.any()


class Bent(nn.Module):
    """Unit 0 has its knot at x = 0.3; that of unit 1 is y = level - share max(x - 0.3, 0)."""

    def __init__(self, level: float, share: float = 1.0) -> None:
        super().__init__()
        self.level, self.share = level, share
        self.last = linear(np.ones((3, 2)), np.zeros(3))

    def forward(self, z: Tensor) -> Tensor:
        first = torch.relu(z[:, :1] - 0.3)
        second = torch.relu(z[:, 1:] + self.share * first - self.level)
        return self.last(torch.cat([first, second], 1))


def test_a_fold_is_met_where_the_knot_bends():
    network = cpwl.Network.from_torch(Bent(0.1), (2,))
    units, basis = structure(network), np.eye(2)
    cases = {0.05: (1, 0, 0), 0.2: (2, 1, 0), 0.35: (3, 2, 0), 0.41: (4, 2, 1), 2.0: (4, 2, 1)}
    for radius, (cells, knots, folds) in cases.items():
        found = neighbourhood(network, units, np.zeros(2), radius, basis, MEMORY)
        assert (found.cells, found.knots, found.folds) == (cells, knots, folds)
        assert found.fold_radius == (pytest.approx(0.4, rel=1e-12) if folds else math.inf)
        # the knot of unit 0 is met from 0.3 on, and unit 1 is then too near to be sure of
        assert found.proven == (radius < 0.3)
    three = cpwl.Network.from_torch(
        nn.Sequential(linear(np.eye(2, 3), np.zeros(2)), Bent(0.1)), (3,)
    )
    found = neighbourhood(three, structure(three), np.zeros(3), 1.0, np.eye(3), MEMORY)
    assert (found.folds, found.fold_radius) == (1, 1.0)  # that of the neighbourhood, for P > 2


def test_distant_units_are_proven_in_spite_of_knots_before_them():
    for level, share, proven in ((5.0, 1.0, True), (5.0, 20.0, False), (0.49, 1.0, False)):
        network = cpwl.Network.from_torch(Bent(level, share), (2,))
        found = neighbourhood(network, structure(network), np.zeros(2), 0.5, np.eye(2), MEMORY)
        assert found.knots >= 1
        assert found.proven == proven


def test_distances_of_segments():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 200, 2))
    a[:20, 0] = b[:20, 0]  # along an axis
    share = np.linspace(0, 1, 4001)[:, None, None]
    sampled = np.abs(a + share * (b - a)).sum(-1).min(0)
    found = segment_distances(a, b)
    assert (found <= sampled + 1e-15).all()
    np.testing.assert_allclose(found, sampled, atol=2e-3)


# ------------------------------------------------------------------- max-pooling


@pytest.mark.parametrize("stride", [2, 3])  # windows of three that overlap, or do not
def test_windows_count_once_and_where_their_winner_changes(stride):
    rng = np.random.default_rng(4)
    weight, bias = rng.standard_normal((13, 3)), 0.3 * rng.standard_normal(13)
    module = nn.Sequential(linear(weight, bias), nn.Unflatten(1, (1, 13)), nn.MaxPool1d(3, stride))
    subject = subject_of(nn.Sequential(*module, nn.Flatten()), cube(3, 1))
    radii = [0.01, 0.3, 3.0]
    result = measure(subject, radii=radii, directions=(1, 2), latents=10, seed=2)
    assert not failures(result)
    assert result.proven.all()
    units = structure(subject.network)
    basis = np.linalg.qr(rng.standard_normal((3, 2)))[0].T
    counted = set()
    for z in rng.uniform(-1, 1, (10, 3)):
        # the winners are those at the vertices: a maximum of affine functions is convex
        vertices = z + 0.5 * np.concatenate([basis, -basis])
        entries = vertices @ weight.T + bias
        starts = range(0, 13 - 2, stride)
        winners = np.stack([entries[:, i : i + 3].argmax(axis=1) for i in starts])
        expected = int((winners != winners[:, :1]).any(axis=1).sum())
        found = neighbourhood(subject.network, units, z, 0.5, basis, MEMORY)
        assert found.knots == expected
        counted.add(expected)
    assert len(counted) > 2


def test_a_window_of_zeros_has_the_knot_of_the_relu_before_it():
    # relu(x), relu(y): of the two, x alone comes to be positive; one knot, not two
    module = nn.Sequential(
        nn.ReLU(), nn.Unflatten(1, (1, 2)), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(1, 2)
    )
    subject = subject_of(module.double(), cube(2, 1))
    units = structure(subject.network)
    for z in ([-0.02, -0.5], [0.02, -0.5], [-0.5, 0.02], [-0.5, -0.02]):
        found = neighbourhood(subject.network, units, np.array(z), 0.1, np.eye(2), MEMORY)
        assert (found.cells, found.knots, found.proven) == (2, 1, False)
    # both positive: where they cross is the window's own
    found = neighbourhood(subject.network, units, np.array([0.5, 0.52]), 0.1, np.eye(2), MEMORY)
    assert (found.cells, found.knots, found.proven) == (2, 1, True)


def test_behind_pooling_first_order_is_proven_only_before_the_first_window():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 12), nn.Unflatten(1, (2, 6)), nn.MaxPool1d(2),
        nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4),
    ).double()  # fmt: skip
    result = measure(subject_of(module, cube(3, 2)), radii=[1e-4, 1.0], directions=(2,), seed=3)
    assert not failures(result)
    assert 0 < result.proven[0, 0].mean() < 1


# ------------------------------------------------------------------- the table


def test_everything_claimed_agrees_at_a_small_radius(measured):
    assert not failures(measured)
    claimed = [row for row in measured.rows if row.claimed]
    assert len(claimed) == 11
    assert len(measured.rows) <= 25
    assert {row.section for row in measured.rows} == {"complexity"}
    (note,) = (row.note for row in rows_of(measured, "directions", "P = 4"))
    assert note == "left out: a latent has no more than 2 orthogonal directions"
    # the latents near knots have them, and the same values in both precisions
    here = measured.radii == measured.radius
    assert (measured.knots[:, here][..., measured.planted] > 0).mean() > 0.9
    assert np.array_equal(float32_values(measured.z), measured.z)
    fixed = measured.z[:, :, ~measured.planted]
    assert np.array_equal(fixed, np.broadcast_to(fixed[:1, :1], fixed.shape))
    assert measured.radii[0] == pytest.approx(1e-6)
    assert measured.radii[-1] == pytest.approx(4 * math.sqrt(2))
    assert not measured.proven[:, -1].any()
    (row,) = rows_of(measured, "folds", "P = 2")
    assert row.value == measured.fold_radius[1].min() < 1


def test_same_seed_same_result(deep):
    first, second = (
        measure(deep, radii=[1e-6], directions=(2,), latents=6, seed=5) for _ in range(2)
    )
    for field in dataclasses.fields(Complexity):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else str(a) == str(b)
    other = measure(deep, radii=[1e-6], directions=(2,), latents=6, seed=6)
    assert not np.array_equal(first.z, other.z)


def test_what_is_too_large_is_not_enumerated(deep):
    whole = measure(deep, radii=[1.5, 4.0], directions=(2,), latents=8)
    part = measure(deep, radii=[1.5, 4.0], directions=(2,), latents=8, most_cells=1)
    gone = part.knots[0] < 0
    # up to a hundred cells always are: 13 knots have at most 92, 14 at most 106
    most = np.maximum(part.counts["jvp float64"], part.counts["hull float64"])[0]
    assert np.array_equal(gone, most > 13)
    assert 0 < gone[1].sum() < 8 == gone[2].sum()
    assert np.array_equal(part.knots[0, ~gone], whole.knots[0, ~gone])
    (row,) = rows_of(part, "cells", "exact, all P")
    assert row.value == pytest.approx((~gone).mean())
    assert row.note == "too many cells: P = 2: some from r = 1.5 on, all from 4"
    few = measure(deep, radii=[1.5], directions=(2,), latents=8, most_cells=1)
    row = next(row for row in few.rows if row.case.startswith("jvp float64, P = 2"))
    assert row.note.endswith(f" ({(few.knots[0, 1] >= 0).sum()} of 8)")
    assert 0 < (few.knots[0, 1] >= 0).sum() < 8
    nothing = measure(deep, radius=4.0, radii=[4.0], directions=(2,), latents=8, most_cells=1)
    row = next(row for row in nothing.rows if row.case.startswith("jvp float64, P = 2"))
    assert math.isnan(row.value)
    assert not row.agrees
    assert "8 not enumerated" in row.note


# ------------------------------------------------------------------- negative controls


def test_a_radius_outside_the_valid_range_fails(deep):
    result = measure(deep, radius=4.0, radii=[4.0], latents=8)
    assert failures(result) >= {("knots", "jvp float64"), ("knots", "hull float64")}
    # the theorems hold all the same
    for case in ("jvp float64, all", "hull float64, all", "Zaslavsky of the exact"):
        for row in result.rows:
            assert not (row.case.startswith(case) and not math.isnan(row.value) and not row.agrees)


def test_a_weight_that_is_off_fails(deep):
    perturbed = copy.deepcopy(deep.decoder)
    assert isinstance(perturbed, nn.Sequential)
    with torch.no_grad():
        perturbed[0].weight[3, 0] += 1e-2
    result = measure(dataclasses.replace(deep, decoder=perturbed), radii=[1e-4], latents=24)
    assert ("knots", "jvp float64") in failures(result)
    assert ("knots", "hull float64") in failures(result)
    assert ("cells", "Zaslavsky of jvp float64") in failures(result)
    assert ("cells", "Zaslavsky of the exact knots") not in failures(result)


class Coarse(nn.Module):
    """In float32 latents lose all digits but three, which no rounding error of a layer explains."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor) -> Tensor:
        if z.dtype == torch.float32:
            z = z + (z.bfloat16().float() - z).detach()
        return self.inner(z)


def test_miscounts_that_undecided_units_do_not_explain_fail(deep):
    assert isinstance(deep.decoder, nn.Module)
    decoder = Coarse(deep.decoder)
    result = measure(dataclasses.replace(deep, decoder=decoder), radii=[1e-5], latents=24)
    assert failures(result) == {("knots", "jvp float32 against float64")}


# ------------------------------------------------------------------- edges and errors


def test_networks_without_units_and_latents_without_room(deep):
    flat = subject_of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), cube(2, 1))
    result = measure(flat)
    (row,) = result.rows
    assert (row.value, row.note) == (0.0, "the network has no units, hence no knots")
    none = measure(deep, directions=(4, 6))
    (row,) = none.rows
    assert (row.case, row.value) == ("P = 4, 6", 2.0)
    for empty in (result, none):
        figure = Figure()
        draw(empty, figure)
        assert empty.rows[0].note in [text.get_text() for text in figure.axes[0].texts]


def test_a_domain_without_knots_has_uniform_latents(deep):
    network = deep.network
    assert network is not None
    domain = cpwl.box([0.1, 0.1], [0.1001, 0.1001])
    partition = cpwl.subdivide(network, domain, progress=False)
    assert partition.num_cells == 1
    result = measure(dataclasses.replace(deep, domain=domain, partition=partition), latents=6)
    assert ((result.z > 0.0999) & (result.z < 0.1002)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"radius": 0.0}, "Expected positive radii, got 0.0: give lengths in units of the latents"),
        ({"radii": [1e-3, math.inf]}, "Expected positive radii, got inf"),
        ({"directions": (1, 7)}, r"Expected directions between 1 and 6, got \(1, 7\): neighbourho"),
        ({"directions": ()}, r"Expected directions between 1 and 6, got \(\)"),
        ({"latents": 1}, "Expected at least 2 latents, got 1: half of them are near knots"),
    ],
)
def test_arguments_that_cannot_be(deep, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(deep, **arguments)


def test_smooth_networks_are_refused(deep):
    smooth = dataclasses.replace(deep, network=None, partition=None)
    with pytest.raises(
        ValueError, match="Expected a subject with a network and its partition, got"
    ):
        measure(smooth)


def test_the_figure_shows_every_dimension(measured):
    figure = plt.figure(figsize=(8, 5), layout="constrained")
    draw(measured, figure)
    figure.canvas.draw()
    assert [ax.get_title() for ax in figure.axes] == ["$P = 1$", "$P = 2$", "", ""]
    above, below = figure.axes[1], figure.axes[3]
    drawn = {line.get_label(): np.asarray(line.get_ydata()) for line in above.lines}
    np.testing.assert_allclose(drawn["knots, exact"], measured.knots[1].mean(axis=1))
    np.testing.assert_allclose(drawn["cells, exact"], measured.cells[1].mean(axis=1))
    drawn = {line.get_label(): np.asarray(line.get_ydata()) for line in below.lines}
    exact = (measured.counts["jvp float64"][1] == measured.knots[1]).mean(axis=1)
    np.testing.assert_allclose(drawn["jvp float64"], exact)
    plt.close(figure)
