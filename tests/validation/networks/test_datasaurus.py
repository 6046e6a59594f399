"""The toy diffusion: its points, its training, its exact capture and the ideal denoiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cpwl
from bridges.networks.datasaurus import (
    IdealDenoiser,
    ToyDenoiser,
    read_datasaurus,
    signal_shares,
    toy_ddpm,
)

SHAPES = (
    "away", "bullseye", "circle", "dino", "dots", "h_lines", "high_lines", "slant_down", "slant_up",
    "star", "v_lines", "wide_lines", "x_shape",
)  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_unit_variance_and_its_proportions(name, data):
    points = read_datasaurus(name, data)
    assert points.shape == (142, 2)
    torch.testing.assert_close(points.mean(dim=0), torch.zeros(2, dtype=torch.float64))
    assert float(points.square().mean()) == pytest.approx(1)
    # the dozen share their standard deviations, 16.77 and 26.94
    deviations = points.std(dim=0)
    assert float(deviations[1] / deviations[0]) == pytest.approx(26.94 / 16.77, rel=2e-3)


def test_unknown_shapes_points_and_marks_are_refused(data):
    with pytest.raises(ValueError, match=r"Expected one of away, .*x_shape, got 'cat'"):
        read_datasaurus("cat", data)
    with pytest.raises(ValueError, match=r"Expected points of shape \(N, 2\), got \(3, 3\)"):
        toy_ddpm(torch.eye(3), steps=1)
    with pytest.raises(ValueError, match="Expected marks from 0 to 2 steps, got 3"):
        toy_ddpm(torch.eye(2), steps=2, marks=(3,))


def test_training_is_repeatable_and_reaches_the_ideal_of_two_points():
    points = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    options = {"steps": 400, "marks": (0, 10), "width": 32, "batch": 128, "rate": 1e-2}
    first, again = (toy_ddpm(points, **options, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.losses, again.losses)
    ideal = IdealDenoiser(points, signal_shares())
    t = torch.full((500,), 10)
    share = signal_shares()[10].float()
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    x = share.sqrt() * points.float().repeat(250, 1) + (1 - share).sqrt() * noise
    errors = [
        float((denoiser(x, t) - ideal(x, t)).square().mean())
        for denoiser in first.denoisers.values()
    ]
    assert list(first.denoisers) == [0, 10, 400]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_at_a_fixed_time_the_denoiser_is_captured_exactly():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = ToyDenoiser(8).eval()
    x = np.random.default_rng(0).uniform(-2, 2, (50, 2))
    partition = {}
    for t in (3, 40):
        network = cpwl.Network.from_torch(denoiser, (2,), fixed={"t": torch.tensor([t])})
        assert network.num_units == 24
        with torch.no_grad():
            expected = denoiser.double()(torch.from_numpy(x), torch.tensor([t])).numpy()
        partition[t] = cpwl.subdivide(network, cpwl.box([-2, -2], [2, 2]), progress=False)
        assert partition[t].status.exact
        cells = cpwl.locate(partition[t], x)
        A, b = next(cpwl.affine_maps(partition[t], cells))
        found = np.einsum("nij,nj->ni", A, x) + b
        np.testing.assert_allclose(found, expected, atol=1e-12)
    assert partition[3].num_cells != partition[40].num_cells  # the time moves the knots


def test_the_ideal_denoiser_is_bayes_rule_and_its_jacobian_a_covariance():
    """Another formula: eps is minus sqrt(1 - abar) times the score of a Gaussian mixture."""
    points = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shares = signal_shares()
    ideal = IdealDenoiser(points, shares)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for t in (1, 6, 50):
        a = shares[t]

        def score(z, a=a):
            covariance = (1 - a) * torch.eye(2, dtype=torch.float64)
            mixture = torch.distributions.MixtureSameFamily(
                torch.distributions.Categorical(torch.ones(7, dtype=torch.float64)),
                torch.distributions.MultivariateNormal(a.sqrt() * points, covariance),
            )
            return torch.func.grad(lambda y: mixture.log_prob(y))(z)

        def estimate(z, a=a, score=score):  # Tweedie
            return (z + (1 - a) * score(z)) / a.sqrt()

        times = torch.full((5,), t)
        expected = torch.stack([-(1 - a).sqrt() * score(z) for z in x])
        torch.testing.assert_close(ideal(x, times), expected, rtol=1e-8, atol=1e-8)
        jacobians = torch.stack([torch.func.jacrev(estimate)(z) for z in x])
        torch.testing.assert_close(ideal.jacobian(x, times), jacobians, rtol=1e-6, atol=1e-8)
