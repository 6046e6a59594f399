"""Densities, entropies and samples against closed forms and Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from support.grids import grid, grid_with, intervals
from support.samples import generator, linear, mlp, partition_of, sample
from torch import nn

import cpwl
from cpwl.density.density import ImageSample
from cpwl.density.latents import Gaussian, Uniform, cell_masses
from cpwl.descriptors.spectra import spectrum


def _squeezing() -> cpwl.Partition:
    """Return a generator that is constant in z_0 for z_0 < 0, else injective; D = 3."""
    with torch.random.fork_rng():
        module = mlp(2, 3, 3)
        with torch.no_grad():
            # hidden: relu(z0), relu(z1 + 5), relu(z0) again
            module[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
            module[0].bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
            module[2].weight.copy_(torch.eye(3))
            module[2].bias.zero_()
    return partition_of(module)


def _folding(outputs: int) -> cpwl.Partition:
    """Return (|z_0|, z_1, 0, ...): the two halves of the square have one image."""
    module = mlp(2, 3, outputs)
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        module[0].bias.copy_(torch.tensor([0.0, 0.0, 5.0]))
        module[2].weight.zero_()
        module[2].bias.zero_()
        module[2].weight[0, :2] = 1.0
        module[2].weight[1, 2] = 1.0
    return partition_of(module)


def test_uniform_density_integrates_to_one_over_the_image():
    partition = generator()
    density = np.exp(cpwl.log_density(partition))
    assert (density * cpwl.image_volumes(partition)).sum() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("latent", [Uniform(), Gaussian(np.array([0.3, -0.2]), np.eye(2) / 4)])
def test_density_at_points_integrates_to_one_by_monte_carlo(latent):
    partition = generator()
    drawn = cpwl.sample_image(partition, 200_000, np.random.default_rng(0))
    density = np.exp(cpwl.log_density(partition, drawn.points, latent))
    values = density * cpwl.total_image_volume(partition).value
    error = values.std() / math.sqrt(len(values))
    assert values.mean() == pytest.approx(1.0, abs=4 * error)
    assert error < 0.02


def test_density_at_points_is_the_prior_over_the_stretch():
    partition = generator()
    s = np.random.default_rng(1).uniform(-1, 1, (50, 2))
    cells = cpwl.locate(partition, s)
    psi = cpwl.local_scaling(partition)
    uniform = cpwl.log_density(partition, s)
    np.testing.assert_allclose(uniform, -psi[cells] - math.log(4), rtol=1e-12)
    np.testing.assert_array_equal(uniform, cpwl.log_density(partition)[cells])
    latent = Gaussian(np.array([0.3, -0.2]), np.array([[0.5, 0.2], [0.2, 0.4]]))
    prior = stats.multivariate_normal(latent.mean, latent.covariance)
    box = prior.cdf([1, 1], lower_limit=[-1, -1])
    expected = prior.logpdf(s) - math.log(box) - psi[cells]
    found = cpwl.log_density(partition, s, latent)
    np.testing.assert_allclose(found, expected, atol=1e-4)  # scipy's cdf is good to 1e-5
    assert cpwl.log_density(partition, [[3.0, 0.0]])[0] == -math.inf


@pytest.mark.parametrize("dim", [1, 2])
def test_gaussian_masses_are_those_of_the_product_measure(dim):
    _, partition = sample("skip", dim)
    masses = cell_masses(partition, Gaussian(np.zeros(dim), np.eye(dim)))
    box = stats.norm.cdf(2) - stats.norm.cdf(-2)
    assert masses.total == pytest.approx(box**dim, rel=1e-12)
    assert masses.mass.sum() == pytest.approx(1.0, rel=1e-12)
    assert masses.error < 1e-10
    if dim == 1:
        ends = partition.points[partition.cell_corners, 0].reshape(-1, 2)
        np.testing.assert_allclose(
            masses.mass, np.diff(stats.norm.cdf(ends))[:, 0] / box, rtol=1e-9
        )
    # the truncated normal's entropy, one axis at a time
    own = stats.truncnorm(-2, 2).entropy() * dim
    assert cpwl.entropy(partition, Gaussian(np.zeros(dim), np.eye(dim))).latent == pytest.approx(
        own
    )


def test_standard_gaussian_on_a_slice_is_the_conditional():
    rng = np.random.default_rng(2)
    place = cpwl.Slice(rng.standard_normal((3, 2)), rng.standard_normal((2, 3, 2)))
    latent = Gaussian.standard(place)
    s = rng.standard_normal((20, 2))
    z = place.embed(s).reshape(20, -1)
    ours = stats.multivariate_normal(latent.mean, latent.covariance).logpdf(s)
    theirs = stats.norm.logpdf(z).sum(axis=1)
    np.testing.assert_allclose(ours - ours[0], theirs - theirs[0], atol=1e-10)


@pytest.mark.parametrize("latent", [None, Gaussian(np.zeros(2), np.eye(2) / 9)])
def test_entropy_against_monte_carlo(latent):
    partition = generator()
    found = cpwl.entropy(partition, latent)
    assert found.overlap.injective == "yes"
    rng = np.random.default_rng(5)
    if latent is None:
        s = rng.uniform(-1, 1, (100_000, 2))
    else:
        s = rng.standard_normal((120_000, 2)) / 3
        s = s[(np.abs(s) < 1).all(axis=1)]
    surprise = -cpwl.log_density(partition, s, latent)
    error = surprise.std() / math.sqrt(len(s))
    assert error < 0.01
    assert surprise.mean() == pytest.approx(found.value, abs=4 * error)
    assert found.value == found.regular
    assert found.error < 1e-9
    # chain rule over the cells
    held = found.mass > 0
    mixing = -(found.mass[held] * np.log(found.mass[held])).sum()
    chained = mixing + found.mass[held] @ found.conditional[held]
    assert chained == pytest.approx(found.value, abs=1e-10)


def test_entropy_of_a_linear_generator_is_log_volume_plus_log_det():
    partition = partition_of(linear(np.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])))
    assert cpwl.entropy(partition).value == pytest.approx(math.log(4) + math.log(6), abs=1e-12)
    assert cpwl.total_image_volume(partition).value == pytest.approx(24.0)


def test_entropy_difference_is_the_difference_of_psi():
    partition = generator()
    psi = cpwl.local_scaling(partition)
    found = cpwl.entropy_difference(partition, [0, 1], [2, 3])
    np.testing.assert_allclose(found, psi[[0, 1]] - psi[[2, 3]], atol=1e-12)
    assert cpwl.entropy_difference(spectrum(partition), 0, 1) == pytest.approx(psi[0] - psi[1])


def test_squeezed_cells_have_infinite_density_and_no_samples():
    partition = _squeezing()
    assert partition.num_cells == 2
    drawn = cpwl.sample_image(partition, 500, np.random.default_rng(0))
    assert (drawn.points[:, 0] >= 0).all()
    assert drawn.excluded == pytest.approx(0.5)
    lost = cpwl.locate(partition, [[-0.5, 0.0]])[0]
    assert cpwl.log_density(partition)[lost] == math.inf
    found = cpwl.entropy(partition)
    assert found.value == -math.inf
    assert found.squeezed == pytest.approx(0.5)
    assert found.conditional[lost] == -math.inf
    # the other half: z -> (z0, z1 + 5, z0) stretches by sqrt 2 on an area of 2
    assert found.regular == pytest.approx(math.log(2) + math.log(2) / 2)
    assert found.overlap.injective == "no"
    assert found.overlap.squeezed == 1
    assert found.overlap.between_cells == "none"
    uniform = cpwl.sample_image(partition, 500, np.random.default_rng(0), rho=0)
    assert uniform.excluded == 0
    assert (uniform.points[:, 0] < 0).any()


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("rho", [1.0, 0.0, 3.0, -2.0])
def test_sampled_cells_have_the_stated_weights(dim, rho):
    _, partition = sample("skip", dim)
    psi = cpwl.local_scaling(partition)
    drawn = cpwl.sample_image(partition, 20_000, np.random.default_rng(7), rho=rho)
    assert isinstance(drawn, ImageSample)
    weight = cpwl.volumes(partition) * np.exp(rho * (psi - psi.max()))
    expected = weight / weight.sum() * len(drawn.cells)
    order = np.argsort(expected)
    # rare cells are pooled until every class expects ten
    pools = np.minimum(np.cumsum(expected[order]) // 10, (expected.sum() - 10) // 10).astype(int)
    counts = np.bincount(drawn.cells, minlength=partition.num_cells)[order]
    found, wanted = np.bincount(pools, counts), np.bincount(pools, expected[order])
    used = wanted > 0
    assert stats.chisquare(found[used], wanted[used]).pvalue > 1e-3
    np.testing.assert_array_equal(cpwl.locate(partition, drawn.points), drawn.cells)
    z = partition.domain.slice.embed(drawn.points)
    np.testing.assert_allclose(drawn.outputs, partition.network(z).reshape(len(z), -1), atol=1e-12)


def test_points_are_uniform_within_a_triangle():
    partition = partition_of(linear(np.eye(2)))  # cells: two rectangles of two triangles
    s = cpwl.sample_image(partition, 50_000, np.random.default_rng(3)).points
    counts = np.histogram2d(*s.T, bins=12, range=[[-1, 1], [-1, 1]])[0].ravel()
    assert stats.chisquare(counts).pvalue > 1e-3


def test_samples_agree_with_rejection_sampling_on_the_outputs():
    partition = generator()
    rng = np.random.default_rng(11)
    drawn = cpwl.sample_image(partition, 20_000, rng).outputs
    s = rng.uniform(-1, 1, (400_000, 2))
    stretch = np.exp(cpwl.local_scaling(partition))
    keep = rng.random(len(s)) < (stretch / stretch.max())[cpwl.locate(partition, s)]
    rejected = partition.network(s[keep]).numpy()
    for axis in range(3):
        assert stats.ks_2samp(drawn[:, axis], rejected[:, axis]).pvalue > 1e-3


def test_sampling_is_a_function_of_the_generator():
    draws = [cpwl.sample_image(generator(), 9, np.random.default_rng(1)).points for _ in range(2)]
    np.testing.assert_array_equal(*draws)
    assert cpwl.sample_image(generator(), 0, np.random.default_rng(1)).outputs.shape == (0, 3)


@pytest.mark.parametrize("outputs", [2, 3])
def test_a_fold_is_found(outputs):
    partition = _folding(outputs)
    found = cpwl.overlap(partition)
    assert found.injective == "no"
    assert found.between_cells == "some"
    assert ("G folds" if outputs == 2 else "overlap in one plane") in found.reason
    assert cpwl.total_image_volume(partition).value == pytest.approx(4.0)
    assert cpwl.total_image_volume(partition).overlap.injective == "no"


def test_one_orientation_and_a_simple_boundary_prove_injectivity():
    for matrix in (np.eye(2), np.diag([1.0, -2.0])):
        found = cpwl.overlap(partition_of(linear(matrix)))
        assert (found.injective, found.squeezed) == ("yes", 0)
        assert "does not meet itself" in found.reason


def test_a_map_that_winds_twice_is_found_from_the_boundary():
    # (|x| - |y|, |x + y| - |x - y|) doubles angles: det = 2 on all eight cells, two preimages
    module = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
        module[0].weight.copy_(torch.cat([rows, -rows]))
        module[0].bias.zero_()
        signs = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
        module[2].weight.copy_(torch.cat([signs, signs], dim=1))
    partition = partition_of(module)
    assert partition.num_cells == 8
    found = cpwl.overlap(partition)
    assert (found.injective, found.between_cells) == ("no", "some")
    assert "an area of 4 has several preimages" in found.reason
    assert cpwl.total_image_volume(partition).value == pytest.approx(8.0)


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_overlap_of_curves(slope):
    # 1-D: z + slope' relu(z) is monotone for slope' > -1 and folds below
    module = mlp(1, 2, 1)
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[0].bias.copy_(torch.tensor([5.0, 0.0]))
        module[2].weight.copy_(torch.tensor([[1.0, 2 * slope]]))
    assert cpwl.overlap(partition_of(module)).injective == ("yes" if slope > 0 else "no")


def test_fewer_outputs_than_coordinates_squeeze_every_cell():
    partition = partition_of(mlp(2, 4, 1))
    assert cpwl.overlap(partition).squeezed == partition.num_cells
    with pytest.raises(ValueError, match="Expected cells of rank 2 to draw from, got none among"):
        cpwl.sample_image(partition, 3, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: cpwl.log_density(p, latent=Gaussian(np.zeros(2), np.eye(2))),
            "Expected points for a Gaussian latent, whose density varies within a cell, got none",
        ),
        (
            lambda p: cpwl.entropy(p, Gaussian(np.zeros(1), np.eye(1))),
            "Expected a Gaussian in 2 slice coordinates, got 1. Use Gaussian.standard",
        ),
        (
            lambda p: cell_masses(p, Gaussian(np.full(2, 1e3), np.eye(2))),
            "Expected a Gaussian with some mass on the domain, got none",
        ),
        (
            lambda p: Gaussian(np.zeros(2), np.diag([1.0, -1.0])),
            "Expected a mean .P,. and a symmetric positive definite covariance",
        ),
        (
            lambda p: cpwl.sample_image(p, 3, np.random.RandomState(0)),
            "Expected n >= 0, a numpy.random.Generator and a finite rho, got 3, RandomState, 1.0",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(generator())


@pytest.mark.parametrize("cuts", [((0.1, 0.4), (-0.3,), (0.7,)), ((0.2,), (), (-0.5,), ())])
@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_samples_in_space_are_uniform_in_their_cells(cuts, rho):
    partition = grid(*cuts)
    dim, count = len(cuts), 20_000
    drawn = cpwl.sample_image(partition, count, np.random.default_rng(0), rho=rho)
    low, high = np.moveaxis(intervals(partition), 1, 0)
    share = (drawn.points - low[drawn.cells]) / (high - low)[drawn.cells]
    assert share.min() >= 0
    assert share.max() <= 1
    # in a box the coordinates are independent and uniform, within every cell
    for axis in range(dim):
        assert stats.kstest(share[:, axis], "uniform").pvalue > 1e-4
    assert np.abs(np.corrcoef(share.T) - np.eye(dim)).max() < 4.5 / math.sqrt(count)
    weight = cpwl.volumes(partition) * np.exp(rho * cpwl.local_scaling(partition))
    found = np.bincount(drawn.cells, minlength=partition.num_cells)
    assert stats.chisquare(found, count * weight / weight.sum()).pvalue > 1e-4


def test_entropy_and_density_in_space():
    partition = grid((0.1, 0.4), (-0.3,), (0.7,))
    found = cpwl.entropy(partition)
    share = cpwl.volumes(partition) / 8
    assert found.value == pytest.approx(math.log(8) + share @ cpwl.local_scaling(partition))
    assert found.overlap.between_cells == "none"
    density = np.exp(cpwl.log_density(partition))
    assert (density * cpwl.image_volumes(partition)).sum() == pytest.approx(1.0, rel=1e-12)
    centres = cpwl.centroids(partition)
    np.testing.assert_allclose(np.exp(cpwl.log_density(partition, centres)), density)


@pytest.mark.parametrize(
    "evaluate",
    [cpwl.entropy, cell_masses, lambda p, latent: cpwl.log_density(p, np.zeros((1, 3)), latent)],
)
def test_gaussians_in_space_are_refused(evaluate):
    partition = grid((0.1, 0.4), (-0.3,), (0.7,))
    message = "Expected a domain of dimension 1 or 2 for a Gaussian latent, .* got 3. Use a uniform"
    with pytest.raises(ValueError, match=message):
        evaluate(partition, Gaussian(np.zeros(3), np.eye(3)))


def test_overlap_in_space_says_what_it_cannot_decide():
    cuts = ((0.1,), (), ())
    assert cpwl.overlap(grid(*cuts, outputs=7)).injective == "yes"
    assert cpwl.overlap(grid(*cuts, outputs=2)).squeezed == 2

    def bent(slope: float, outputs: int) -> cpwl.Partition:
        # x stays as it is below the cut and is stretched or turned back above
        return grid_with(np.hstack([np.eye(outputs, 3), slope * np.eye(outputs, 1)]), cuts)

    for slope, outputs, verdict, reason in (
        (-2.0, 3, "some", "G folds: 1 of 2 cells keep their orientation"),
        (1.0, 3, "unknown", "one orientation; the boundary's image in 3-D is not examined"),
        (-2.0, 4, "unknown", "2 images share 3-dimensional planes with others"),
    ):
        found = cpwl.overlap(bent(slope, outputs))
        assert found.between_cells == verdict
        assert reason in found.reason
