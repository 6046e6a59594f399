"""Densities, entropies and uniform samples held against sampling the decoder."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from real import slices
from support.samples import linear, mlp
from torch import nn

import cpwl
from bridges.networks import pretrained
from bridges.validation import densities
from bridges.validation.densities import decoding
from bridges.validation.densities.balls import count_in_balls
from bridges.validation.densities.nearest import neighbour_entropy
from bridges.validation.subject import Subject, uniform

# enough for every claim to be tested, in a second
SMALL = {
    "samples": 60_000, "balls": 100, "nearest": 20_000, "proposals": 6_000, "pairs": 800,
    "permutations": 1_999,
}  # fmt: skip
DENSITY, VOLUME, ENTROPY, SAMPLES = "density", "image volume", "entropy", "uniform samples"


def subject_of(module, low=-1.0, high=1.0, size=2, estimated=None) -> Subject:
    """Return a subject of a module with `size` inputs over a cube."""
    network = cpwl.Network.from_torch(module, (size,))
    domain = cpwl.box([low] * size, [high] * size)
    return subject_on(network, estimated or module, domain)


def subject_on(network, decoder, domain) -> Subject:
    partition = cpwl.subdivide(network, domain, progress=False)
    return Subject(decoder, domain, network, partition, math.prod(network.output_shape))


def decoder() -> nn.Sequential:
    """Return 2-12-12-3; on [-2, 2]^2 of rank 2 everywhere, without overlap, of wide psi."""
    return mlp(2, 12, 12, 3, seed=2)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of(decoder(), -2.0, 2.0)


@cache
def curved(inputs: int) -> Subject:
    """Return a curve, a surface or a solid in R^5."""
    return subject_of(mlp(inputs, 12, 12, 5, seed=4), -2.0, 2.0, inputs)


@cache
def measured(inputs: int) -> densities.Densities:
    return densities.measure(curved(inputs), **SMALL)


def named(result, quantity, word=""):
    return [r for r in result.rows if r.quantity == quantity and word in r.statistic + r.case]


def failing(result) -> set[str]:
    return {r.quantity for r in result.rows if not r.agrees}


def scaled(change):
    """Return `cpwl.spectrum` with singular values changed by a function."""

    def wrong(partition, *args, **options):
        right = cpwl.descriptors.spectrum(partition, *args, **options)
        return replace(right, singular_values=change(right.singular_values))

    return wrong


# agreement


@pytest.mark.parametrize("inputs", [1, 2, 3])
def test_everything_claimed_agrees_for_curves_surfaces_and_solids(inputs):
    result = measured(inputs)
    assert failing(result) == set()
    claimed = [r.quantity for r in result.rows if r.claimed and r.quantity != "squeezed cells"]
    assert claimed == [*[DENSITY] * 3, VOLUME, ENTROPY, ENTROPY, SAMPLES, SAMPLES]
    assert all(r.section == "density" for r in result.rows)
    assert len(result.balls.cells) >= 10


def test_a_slice_that_is_not_orthonormal_agrees():
    rng = np.random.default_rng(0)
    place = cpwl.Slice(rng.standard_normal(6) / 4, 2 * rng.standard_normal((2, 6)))
    module = mlp(6, 14, 4, seed=2)
    network = cpwl.Network.from_torch(module, (6,))
    domain = place.polygon([[-1, -1], [1.2, -0.7], [0.4, 1.1]])
    result = densities.measure(subject_on(network, module, domain), **SMALL)
    assert failing(result) == set()


def test_convolutions_and_max_pooling_agree():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = nn.Sequential(
            nn.Unflatten(1, (3, 2, 2)), nn.ConvTranspose2d(3, 4, 3, stride=2), nn.LeakyReLU(0.2),
            nn.MaxPool2d(2), nn.Conv2d(4, 6, 2),
        ).eval()  # fmt: skip
    rng = np.random.default_rng(1)
    place = cpwl.Slice(rng.standard_normal(12) / 4, rng.standard_normal((2, 12)))
    network = cpwl.Network.from_torch(module, (12,))
    result = densities.measure(subject_on(network, module, place.box([-2] * 2, [2] * 2)), **SMALL)
    assert failing(result) == set()
    assert result.balls.cells.size > 20


# closed forms


def test_a_sheared_plane_has_the_density_and_the_balls_of_the_formula():
    # two rectangles [-1, 0] x [-1, 1] and [0, 1] x [-1, 1] under (x, y) -> (x + 2 y, 3 y, 0) + 1
    result = densities.measure(
        subject_of(linear(np.array([[1.0, 2.0], [0.0, 3.0], [0.0, 0.0]]))), **SMALL
    )
    assert failing(result) == set()
    np.testing.assert_allclose(result.balls.log_density, -math.log(4 * 3))
    np.testing.assert_allclose(np.sort(result.balls.centres[:, 0]), [-0.5, 0.5], atol=1e-12)
    # parallelograms of area 2 * 3: the sides x = const have length |(2, 3)| * 2
    radius = 0.98 * (6 / math.hypot(4, 6)) / 2
    np.testing.assert_allclose(result.balls.radii, radius, rtol=1e-12)
    np.testing.assert_allclose(result.balls.expected, 60_000 * math.pi * radius**2 / 12)
    assert named(result, VOLUME)[0].value == pytest.approx(0, abs=1e-12)
    assert result.entropy.regular == pytest.approx(math.log(12))
    assert named(result, SAMPLES, "accepted")[0].value > 0.999


def test_a_sawtooth_has_the_density_of_its_slope_and_only_an_upper_bound_of_entropy():
    # x -> |2 x - 1| three times: 8 pieces of slope 8 on [0, 1], one uniform output
    layers: list[nn.Module] = []
    for _ in range(3):
        up, down = nn.Linear(1, 2, dtype=torch.float64), nn.Linear(2, 1, dtype=torch.float64)
        with torch.no_grad():
            up.weight.copy_(torch.tensor([[2.0], [-2.0]]))
            up.bias.copy_(torch.tensor([-1.0, 1.0]))
            down.weight.fill_(1.0)
            down.bias.zero_()
        layers += [up, nn.ReLU(), down]
    result = densities.measure(subject_of(nn.Sequential(*layers), 0.0, 1.0, 1), **SMALL)
    assert failing(result) == set()
    assert len(result.balls.cells) == 8
    np.testing.assert_allclose(result.balls.log_density, -math.log(8))
    np.testing.assert_allclose(result.balls.radii, 0.98 / 2)
    assert result.entropy.regular == pytest.approx(math.log(8))
    (row,) = named(result, ENTROPY, "nearest")
    assert row.value == pytest.approx(-math.log(8), abs=0.05)
    assert math.isnan(row.low)
    assert row.high < 0.1
    assert "images of cells overlap: the exact value is an upper bound" in row.note


def test_a_folded_square_is_counted_sheet_by_sheet():
    # (|x|, y): two sheets on each other
    module = mlp(2, 3, 2)
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        module[0].bias.copy_(torch.tensor([0.0, 0.0, 5.0]))
        module[2].weight.copy_(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        module[2].bias.zero_()
    result = densities.measure(subject_of(module), **SMALL)
    assert failing(result) == set()
    np.testing.assert_allclose(result.balls.log_density, -math.log(4))
    (row,) = named(result, ENTROPY, "nearest")
    assert row.value == pytest.approx(-math.log(2), abs=0.03)


def half_squeezed(outputs=3) -> nn.Module:
    """Return (relu x, y, relu x, 0...): a line for x < 0; with one output, a line everywhere."""
    module = mlp(2, 3, outputs)
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
        module[0].bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
        module[2].weight.copy_(torch.eye(3)[:outputs])
        module[2].bias.zero_()
    return module


def test_squeezed_cells_are_left_out_and_their_probability_is_compared():
    result = densities.measure(subject_of(half_squeezed()), **SMALL)
    assert failing(result) == set()
    (row,) = named(result, "squeezed cells")
    assert row.claimed
    assert "probability 0.5:" in row.note
    assert result.balls.cells.size == 1
    assert result.entropy.regular == pytest.approx(math.log(2) + math.log(2) / 2)
    assert (result.samples.drawn[:, 0] >= 0).all()
    assert (result.samples.accepted[:, 0] >= 0).all()


def test_a_decoder_that_is_squeezed_elsewhere_disagrees():
    module = half_squeezed()
    other = half_squeezed()
    with torch.no_grad():
        other[0].bias[[0, 2]] = -0.4
    result = densities.measure(subject_of(module, estimated=other), **SMALL)
    assert {"squeezed cells", VOLUME, ENTROPY, SAMPLES} <= failing(result)


def test_a_generator_squeezed_everywhere_says_so():
    result = densities.measure(subject_of(half_squeezed(1)), **SMALL)
    (row,) = result.rows
    assert (row.quantity, row.value, row.claimed) == ("squeezed cells", 1.0, False)
    assert "the output has no density to compare" in row.note
    figure = Figure()
    densities.draw(result, figure)
    assert "no density" in figure.texts[0].get_text()


# negative controls


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # 0.02 in psi, everywhere: samples do not depend on a common factor
        (lambda s: s * 1.01, {DENSITY, VOLUME, ENTROPY}),
        (lambda s: s / 1.01, {DENSITY, VOLUME, ENTROPY}),
        (lambda s: s**0.5, {DENSITY, VOLUME, ENTROPY, SAMPLES}),
        # psi without its last singular value
        (lambda s: np.stack([s[:, 0], np.ones(len(s))], axis=1),
         {DENSITY, VOLUME, ENTROPY, SAMPLES}),
    ],
)  # fmt: skip
def test_a_wrong_psi_disagrees(subject, monkeypatch, change, expected):
    monkeypatch.setattr(cpwl, "spectrum", scaled(change))
    settings = {**SMALL, "samples": 400_000, "balls": 300, "proposals": 100_000}
    result = densities.measure(subject, **settings)
    assert failing(result) == expected


def test_each_estimate_of_the_density_notices_a_dropped_factor(subject, monkeypatch):
    monkeypatch.setattr(cpwl, "spectrum", scaled(lambda s: s * 1.1))
    result = densities.measure(subject, **SMALL)
    disagreeing = {(r.quantity, r.statistic, r.case.split()[0]) for r in result.rows if r.claimed}
    agreeing = {(r.quantity, r.statistic, r.case.split()[0]) for r in result.rows if r.agrees}
    assert disagreeing & agreeing == {(SAMPLES, "p-value", "800")}


def test_one_wrong_cell_disagrees(subject, monkeypatch):
    right = densities.measure(subject, **SMALL)
    assert failing(right) == set()
    worst = right.balls.cells[right.balls.expected.argmax()]

    def change(s):
        s = s.copy()
        s[worst] *= 1.15
        return s

    monkeypatch.setattr(cpwl, "spectrum", scaled(change))
    result = densities.measure(subject, **SMALL)
    (row,) = named(result, DENSITY, "worst")
    assert not row.agrees
    assert row.note.startswith(f"cell {worst} at s = (")


def test_a_decoder_with_another_scale_disagrees(subject):
    double = replace(subject, decoder=decoder().double())
    assert failing(densities.measure(double, **SMALL)) == set()
    module = decoder()
    with torch.no_grad():
        module[4].weight *= 1.1
    other = replace(subject, decoder=module)
    assert failing(densities.measure(other, **SMALL)) == {DENSITY, VOLUME, ENTROPY}


def test_a_decoder_with_one_other_weight_disagrees(subject):
    module = decoder()
    with torch.no_grad():
        module[0].weight[0, 0] *= 1.5
    assert DENSITY in failing(densities.measure(replace(subject, decoder=module), **SMALL))


def test_uniform_latents_in_the_place_of_uniform_samples_disagree(subject, monkeypatch):
    right = cpwl.density.sample_image
    monkeypatch.setattr(cpwl, "sample_image", lambda *a, **k: right(*a, **{**k, "rho": 0.0}))
    result = densities.measure(subject, **SMALL)
    assert failing(result) == {SAMPLES}
    assert all(not r.agrees for r in named(result, SAMPLES, "against rejection"))
    # and the control says that they would
    (control,) = named(result, SAMPLES, "uniform latents")
    assert control.value < 0.01


# balls


@pytest.mark.parametrize("inputs", [1, 2, 3])
def test_balls_lie_in_their_cells_and_reach_almost_to_the_border(inputs):
    subject = curved(inputs)
    source = cpwl.spectrum(subject.partition)
    latents = uniform(subject, 60_000, np.random.default_rng(0))
    balls = count_in_balls(subject, source, latents, 50)
    assert len(set(balls.cells)) == len(balls.cells) >= 5
    triangles = decoding.stretches(subject, balls.centres).triangles
    rng = np.random.default_rng(1)
    u = rng.standard_normal((2_000, inputs))
    u /= np.linalg.norm(u, axis=1)[:, None]
    for cell, centre, radius, triangle in zip(
        balls.cells, balls.centres, balls.radii, triangles, strict=True
    ):
        away = np.linalg.solve(triangle, radius * u.T).T
        assert (cpwl.locate(subject.partition, centre + away) == cell).all()
        assert (cpwl.locate(subject.partition, centre + away / 0.9) != cell).any()


def test_balls_prefer_full_ones_and_all_densities(subject):
    source = cpwl.spectrum(subject.partition)
    latents = uniform(subject, 60_000, np.random.default_rng(0))
    every = count_in_balls(subject, source, latents, 10_000)
    some = count_in_balls(subject, source, latents, 12)
    assert len(some.cells) == 12
    assert every.expected.min() >= 25
    assert some.expected.mean() > 1.2 * every.expected.mean()
    low, high = np.quantile(every.log_density, [0.1, 0.9])
    assert some.log_density.min() < low
    assert some.log_density.max() > high


def test_no_cell_large_enough_is_said(subject):
    result = densities.measure(subject, **{**SMALL, "samples": 100})
    (row,) = named(result, DENSITY)
    assert math.isnan(row.value)
    assert not row.claimed
    assert "no cell is large enough for a ball in which 25 samples are expected" in row.note
    densities.draw(result, Figure(layout="constrained"))


# what is left out


def test_few_points_tell_no_bias(subject):
    assert neighbour_entropy(np.random.default_rng(0).standard_normal((30, 2)), 2).bias == math.inf
    result = densities.measure(subject, **{**SMALL, "nearest": 30})
    (row,) = named(result, ENTROPY, "nearest")
    assert not row.claimed
    assert row.note == "too few outputs to tell its bias"
    densities.draw(result, Figure(layout="constrained"))


def test_four_dimensions_leave_nearest_neighbours_out():
    subject = subject_of(mlp(4, 12, 6, seed=3), -0.2, 0.2, 4)
    result = densities.measure(subject, **SMALL)
    assert failing(result) == set()
    (row,) = named(result, ENTROPY, "nearest")
    assert "left out for P = 4: its bias falls like N^(-1/4)" in row.note
    assert result.nearest is None
    assert named(result, DENSITY, "chi-square")[0].claimed
    densities.draw(result, Figure(layout="constrained"))


def test_low_acceptance_leaves_the_test_out_and_says_so():
    # one of 400 strips is stretched a thousandfold
    module = mlp(1, 3, 1)
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[0].bias.copy_(torch.tensor([5.0, 0.0, -0.005]))
        module[2].weight.copy_(torch.tensor([[1.0, 1000.0, -1000.0]]))
    subject = subject_of(module, -1.0, 1.0, 1)
    result = densities.measure(subject, **{**SMALL, "proposals": 2_000})
    rows = named(result, SAMPLES, "against rejection")
    assert len(rows) == 2
    for row in rows:
        assert math.isnan(row.value)
        assert not row.claimed
        assert row.note.endswith("of 2,000 proposals were accepted")
    assert failing(result) == set()
    densities.draw(result, Figure(layout="constrained"))


# the decoder's side


def test_stretches_are_those_of_the_cells_and_batches_do_not_matter(subject):
    latents = uniform(subject, 500, np.random.default_rng(0))
    found = decoding.stretches(subject, latents.s)
    psi = cpwl.local_scaling(subject.partition)
    np.testing.assert_allclose(np.log(found.volume), psi[latents.cells], atol=1e-12)
    assert found.full(1e-12).all()
    again = decoding.stretches(subject, latents.s, numbers=2_000)
    np.testing.assert_allclose(again.triangles, found.triangles, rtol=1e-12)
    expected = decoder().double()(latents.z).detach()
    np.testing.assert_allclose(
        decoding.decode(subject, latents.s, numbers=2_000), expected, rtol=1e-12
    )
    assert next(subject.decoder.parameters()).dtype == torch.float32


def test_large_networks_get_fewer_samples(subject):
    limits = {"budget": 1_000 * decoding.cost(subject), "stored": 700 * subject.outputs}
    result = densities.measure(subject, **SMALL, **limits)
    assert result.balls.samples == 1_000
    assert result.samples.proposals == 62
    assert result.nearest.sizes[0] == 700


def test_a_decoder_of_digits_agrees(data):
    network, domain = slices.mnist_vae(data, 0.02)
    module = pretrained.mnist_vae_decoder(data)[:-1]
    settings = {**SMALL, "samples": 20_000, "nearest": 4_000, "proposals": 2_000, "pairs": 500}
    result = densities.measure(subject_on(network, module, domain), **settings)
    assert failing(result) == set()
    assert sum(r.claimed for r in result.rows) == 8


# results


def test_a_seed_gives_one_result(subject):
    settings = {**SMALL, "samples": 5_000, "nearest": 2_000, "proposals": 2_000}
    one, same, other = (densities.measure(subject, **settings, seed=seed) for seed in (3, 3, 4))
    assert one.rows == same.rows
    assert one.rows != other.rows


def test_a_network_that_is_not_piecewise_linear_is_refused(subject):
    smooth = replace(subject, network=None, partition=None)
    with pytest.raises(ValueError, match=r"Expected a subject with a partition, got None: dens"):
        densities.measure(smooth)


@pytest.mark.parametrize("inputs", [1, 2, 3])
def test_the_figure_shows_the_arrays(inputs):
    result = measured(inputs)
    figure = Figure(figsize=(11, 7), layout="constrained")
    densities.draw(result, figure.subfigures(1, 1))
    figure.draw_without_rendering()
    counts, deviations, entropies, drawn, accepted, test = figure.subfigs[0].axes
    every = next(line for line in counts.lines if line.get_label() == "one ball")
    np.testing.assert_allclose(
        np.sort(every.get_xdata()), np.exp(np.sort(result.balls.log_density))
    )
    assert sum(patch.get_height() for patch in deviations.patches) == len(result.balls.cells)
    exact = next(line for line in entropies.lines if line.get_label().startswith("exact"))
    assert exact.get_ydata()[0] == result.entropy.regular
    for ax, s in ((drawn, result.samples.drawn), (accepted, result.samples.accepted)):
        if inputs == 1:
            assert sum(patch.get_height() for patch in ax.patches) == len(s)
        else:
            np.testing.assert_array_equal(ax.collections[0].get_offsets(), s[:, :2])
    assert sum(patch.get_height() for patch in test.patches) == len(result.samples.outputs.null)
