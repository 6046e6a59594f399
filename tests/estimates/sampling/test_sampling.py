"""Samples weighed by psi: exactly uniform ones, closed forms, and what is refused."""

from __future__ import annotations

import itertools
import math
import re
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy import stats
from support.samples import mlp
from torch import nn
from torch.distributions import Beta, Dirichlet, Normal, TransformedDistribution
from torch.distributions import Uniform as Coordinates
from torch.distributions.transforms import AffineTransform

import approx
import cpwl
from approx.sampling import Pool, PoolError, magnet, measure, polarity
from approx.sampling.manifold import HEAVY
from approx.sampling.resampling import (
    effective_size,
    largest_share,
    scaled,
    systematic,
    tail,
)
from bridges.validation.densities.two_samples import energy_test

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = {"progress": False, "seed": 0}


def box(d: int, low: float = 0.0, high: float = 1.0, dtype=torch.float64) -> Coordinates:
    return Coordinates(torch.full((d,), low, dtype=dtype), torch.full((d,), high, dtype=dtype))


def square(z):
    """Return a curve whose psi is log 2 z."""
    return z.square()


def steep(z):
    """Return exp(20 z): psi is 20 z + log 20."""
    return (20 * z).exp()


@pytest.fixture(scope="module", params=[2, 3])
def manifold(request):
    """Return a surface or a solid of wide psi in R^3 or R^5, enumerated, and its size."""
    d = request.param
    module = mlp(d, 12, 12, 2 * d - 1, seed=2).double()
    network = cpwl.Network.from_torch(module, (d,))
    return module, cpwl.subdivide(network, cpwl.box([-2] * d, [2] * d), progress=False)


def priors(d: int):
    """Return a flat prior of the cube, and one that is dense at its sides."""
    ends = Beta(torch.full((d,), 0.7).double(), 1.0)
    return box(d, -2, 2), TransformedDistribution(ends, AffineTransform(-2.0, 4.0))


def p_value(found, module, partition, rho: float) -> float:
    """Return how well a sample agrees with exact ones."""
    rng = np.random.default_rng(1)
    exact = cpwl.sample_image(partition, 700, rng, rho=rho).outputs
    images = found.images if isinstance(found, approx.sampling.Sample) else module(found).detach()
    return energy_test(exact, images.numpy(), 399, rng).p_value


@pytest.mark.parametrize("which", [0, 1], ids=["flat", "dense at sides"])
def test_magnet_is_uniform_on_the_image(manifold, which):
    module, partition = manifold
    prior = priors(partition.dim)[which]
    found = magnet(module, prior, 700, size=12_000, bounded=True, images=True, **QUIET)
    assert found.ess > 2_000
    assert p_value(found, module, partition, 1.0) > 0.02
    # the prior itself is not
    torch.manual_seed(0)
    assert p_value(prior.sample((700,)), module, partition, 1.0) <= 0.01


@pytest.mark.parametrize("rho", [-1.0, 0.5])
def test_polarity_tempers_the_image(manifold, rho):
    module, partition = manifold
    found = polarity(module, box(partition.dim, -2, 2), 700, rho, size=12_000, images=True, **QUIET)
    assert p_value(found, module, partition, rho) > 0.02
    assert p_value(found, module, partition, 1.0) <= 0.01


def test_a_sphere_is_covered_evenly():
    """Of polar angles: the area element is sin theta, and heights of a sphere are uniform."""

    def sphere(z):
        theta, phi = z.unbind(1)
        ring = theta.sin()
        return torch.stack([ring * phi.cos(), ring * phi.sin(), theta.cos()], dim=1)

    angles = Coordinates(torch.zeros(2).double(), torch.tensor([math.pi, 2 * math.pi]).double())
    found = magnet(sphere, angles, 1_000, size=8_000, images=True, **QUIET)
    theta = found.pool.latents(np.arange(8_000))[:, 0].numpy()
    np.testing.assert_allclose(found.weights, np.sin(theta) / np.sin(theta).sum(), rtol=1e-9)
    # (E sin)^2 / E sin^2 = (2 / pi)^2 / (1 / 2)
    assert found.ess / 8_000 == pytest.approx(8 / math.pi**2, abs=0.01)
    height, azimuth = found.images[:, 2].numpy(), found.latents[:, 1].numpy()
    assert stats.kstest(height, stats.uniform(-1, 2).cdf).pvalue > 0.05
    assert stats.kstest(azimuth, stats.uniform(0, 2 * math.pi).cdf).pvalue > 0.05
    assert stats.kstest(np.cos(theta), stats.uniform(-1, 2).cdf).pvalue < 1e-6


@pytest.mark.parametrize("rho", [-0.25, 0.0, 1.0, 3.0])
def test_polarity_of_a_curve_has_the_density_of_its_closed_form(rho):
    """z^2 on [0, 1]: latents of density (1 + rho) z^rho."""
    found = polarity(square, box(1), 2_000, rho, size=20_000, **QUIET)
    law = stats.powerlaw(1 + rho)
    assert stats.kstest(found.latents[:, 0].numpy(), law.cdf).pvalue > 0.05
    np.testing.assert_allclose(found.psi, np.log(2 * found.latents[:, 0].numpy()), atol=1e-12)
    assert found.ess / 20_000 == pytest.approx((1 + 2 * rho) / (1 + rho) ** 2, rel=0.03)


def test_systematic_resampling_takes_the_floor_or_the_ceiling():
    rng = np.random.default_rng(0)
    weights = rng.random(300) * (rng.random(300) < 0.8)
    expected = 1_000 * weights / weights.sum()
    counts = np.stack(
        [np.bincount(systematic(weights, 1_000, rng), minlength=300) for _ in range(400)]
    )
    assert (np.abs(counts - expected) < 1).all()
    assert not counts[:, weights == 0].any()
    # no more than five standard errors off
    assert np.abs(counts.mean(axis=0) - expected).max() < 5 * 0.5 / math.sqrt(400)


class Lowest(np.random.Generator):
    def random(self):
        return 0.0


def test_weights_of_zero_are_never_taken():
    """Not at the lowest offset either, which lands on the edge between two."""
    rng = Lowest(np.random.PCG64(0))
    assert systematic(np.array([0.0, 1.0, 0.0, 1.0, 0.0]), 2, rng).tolist() in ([1, 3], [3, 1])


def test_a_sample_comes_in_random_order():
    found = systematic(np.ones(1_000), 1_000, np.random.default_rng(0))
    assert abs(np.corrcoef(found, np.arange(1_000))[0, 1]) < 0.1


def test_effective_size_of_known_weights():
    assert effective_size(np.array([1.0, 1.0, 0.0, 0.0])) == 2
    assert effective_size(np.array([3.0, 1.0])) == pytest.approx(1.6)
    assert largest_share(np.zeros(60), 50) == pytest.approx(1)
    a = np.linspace(0, 9, 1_000)
    assert effective_size(scaled(largest_share(a, 400) * a)) == pytest.approx(400)


def numpy_state() -> np.ndarray:
    return np.random.get_state()[1].copy()  # noqa: NPY002 - the generator that others use


def test_a_seed_gives_the_same_and_leaves_generators_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state(), numpy_state()
    first, second = (polarity(square, box(1), 50, 1.0, size=500, **QUIET) for _ in range(2))
    assert torch.equal(first.latents, second.latents)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], numpy_state())
    other = polarity(square, box(1), 50, 1.0, size=500, seed=1, progress=False)
    assert not torch.equal(first.latents, other.latents)
    with pytest.raises(ValueError, match="read-only"):
        first.weights[0] = 1


def test_a_larger_pool_begins_with_the_smaller_one():
    small, large = (measure(square, box(1), size, **QUIET) for size in (100, 5_000))
    np.testing.assert_array_equal(small.table.psi, large.table.psi[:100])
    assert torch.equal(small.latents([7, 3]), large.latents([7, 3]))
    twice = large.latents([4_999, 0, 4_999])
    assert torch.equal(twice[0], twice[2])
    np.testing.assert_allclose(large.table.psi[[4_999, 0, 4_999]], (2 * twice[:, 0]).log())


class Stream:
    """Batches that exist only while they are read."""

    def __init__(self, changed: bool = False):
        self.changed, self.read = changed, 0

    def __iter__(self):
        self.read += 1
        seed = 100 if self.changed and self.read > 2 else 0
        for number in range(30):
            draw = torch.Generator().manual_seed(seed + number)
            z = torch.rand(40, 1, generator=draw, dtype=torch.float64)
            yield z, torch.zeros(40, dtype=torch.float64)


def test_streams_are_read_again_and_iterators_are_held():
    stream = magnet(square, Stream(), 100, bounded=True, **QUIET)
    held = magnet(square, iter(Stream()), 100, bounded=True, **QUIET)
    z, log_density = (torch.cat(parts) for parts in zip(*Stream(), strict=True))
    whole = magnet(square, (z, log_density), 100, bounded=True, **QUIET)
    assert torch.equal(stream.latents, held.latents)
    assert torch.equal(stream.latents, whole.latents)
    assert len(measure(square, Stream(), 50, **QUIET)) == 50
    assert len(polarity(square, z, 10, 1.0, **QUIET)) == 10


def test_latents_that_changed_are_refused_and_the_pool_is_kept():
    with pytest.raises(PoolError, match="read in the same order") as caught:
        polarity(square, Stream(changed=True), 10, 1.0, **QUIET)
    assert len(caught.value.pool) == 1_200


def test_a_conditional_generator_decodes_with_its_rows():
    z, shift = torch.rand(200, 1), torch.arange(200.0)[:, None]

    class Shifted(nn.Module):
        def forward(self, z, shift):
            return torch.cat([z.square(), z + shift], dim=1)

    found = polarity(approx.bind(Shifted(), shift=shift), z, 90, 0.1, images=True, **QUIET)
    assert torch.equal(found.images[:, 1], (z + shift)[found.indices.tolist(), 0])


def test_ctrl_c_keeps_what_is_measured():
    calls = itertools.count()

    def interrupted(z):
        if next(calls) == 60:
            raise KeyboardInterrupt
        return z.square()

    with pytest.warns(RuntimeWarning, match="the pool holds these") as heard:
        found = polarity(interrupted, box(1), 20, 1.0, size=5_000, batch=20, **QUIET)
    assert len(heard) == 1
    assert not found.pool.complete
    assert 50 < len(found.pool) < 5_000
    whole = measure(square, box(1), 5_000, **QUIET)
    np.testing.assert_array_equal(found.pool.table.psi, whole.table.psi[: len(found.pool)])


def test_ctrl_c_while_latents_are_read_again_keeps_the_pool():
    class Interrupted(Stream):
        def __iter__(self):
            if self.read == 2:
                raise KeyboardInterrupt
            return super().__iter__()

    error = refused(PoolError, polarity, square, Interrupted(), 10, 1.0)
    assert "Interrupted" in str(error)
    assert len(error.pool) == 1_200


def test_ctrl_c_while_images_are_made_keeps_the_latents():
    pool, interrupted = measure(square, box(1), 500, **QUIET), Mock(side_effect=KeyboardInterrupt)
    with pytest.warns(RuntimeWarning, match="latents alone"):
        found = polarity(interrupted, pool, 20, 1.0, images=True, **QUIET)
    assert found.images is None
    assert len(found.latents) == 20


def refused(error, call, *arguments, **options):
    with pytest.raises(error) as caught:
        call(*arguments, **QUIET | options)
    return caught.value


def advised(error: PoolError) -> float:
    found = re.search(r"or rho=(\S+)\. \[", str(error))
    assert found, str(error)
    return float(found[1])


def test_weights_worth_too_little_are_refused_with_what_works():
    error = refused(PoolError, polarity, steep, box(1), 10, 5.0, size=1_000)
    # density 100 exp(100 z): (E w)^2 / E w^2 = 2 / 100
    found = str(error)
    assert "worth at least 50 samples" in found
    rho, size = advised(error), found.split("about ")[1].split(" ")[0]
    assert polarity(None, error.pool, 10, rho, seed=0).ess >= 50
    refused(PoolError, polarity, None, error.pool, 10, rho * 1.1)
    bigger = int(int(size.replace(",", "")) * 1.3)
    assert polarity(steep, box(1), 10, 5.0, size=bigger, **QUIET).ess >= 50
    below = refused(PoolError, polarity, steep, box(1), 10, -9.0, size=1_000)
    rho = advised(below)
    assert -9 < rho < 0
    assert polarity(None, below.pool, 10, rho, seed=0).ess >= 50


def test_a_pool_below_fifty_is_refused():
    error = refused(PoolError, magnet, square, box(1), 10, size=40)
    assert "a pool of about" in str(error)
    assert "or rho=" not in str(error)
    assert len(error.pool) == 40


@pytest.mark.parametrize(
    ("options", "name"),
    [({"method": "predict"}, "psi_W"), ({"method": "topk", "k": 1}, "psi_k"), ({"k": 1}, "psi_k")],
)
def test_psi_of_less_than_the_jacobian_is_refused_before_the_pool(options, name):
    seen = []

    def counted(z):
        seen.extend(z)
        return z.sin()

    error = refused(ValueError, polarity, counted, box(2), 10, 1.0, size=10_000, **options)
    assert f"got {name} (" in str(error)
    assert len(seen) < 200


def squeezed(by: float):
    return lambda z: z * torch.tensor([1.0, by], dtype=torch.float64)


@pytest.mark.parametrize(
    ("by", "words"), [(1e-14, "NaN at 200 of 200"), (5e-14, "at most 0.1 nats")]
)
def test_psi_that_is_not_known_is_refused(by, words):
    error = refused(PoolError, magnet, squeezed(by), box(2), 10, size=200)
    assert words in str(error)
    assert isinstance(error.pool, Pool)
    assert len(magnet(squeezed(1e-10), box(2), 10, size=200, **QUIET)) == 10


def test_latents_that_fail_are_refused_by_name():
    def broken(z):
        return torch.where(z > 0.99, torch.nan, z.square())

    error = refused(PoolError, polarity, broken, box(1), 10, 1.0, size=1_000, on_error="nan")
    assert "NaN at " in str(error)
    assert "finite" in str(error)
    error = refused(PoolError, polarity, broken, box(1), 10, 1.0, size=1_000, batch=20)
    assert 0 < len(error.pool) < 1_000


def test_lost_rank_weighs_nothing():
    found = magnet(nn.ReLU(), box(1, -1), 100, size=1_000, **QUIET)
    assert found.excluded == pytest.approx(0.5, abs=0.05)
    assert (found.latents > 0).all()
    assert (polarity(nn.ReLU(), box(1, -1), 100, 0.0, size=1_000, **QUIET).latents < 0).any()
    error = refused(PoolError, magnet, nn.ReLU(), box(1, -2, -1), 10, size=100)
    assert "full rank" in str(error)


@pytest.mark.parametrize(
    "prior",
    [
        Normal(torch.zeros(2), 1.0),
        Dirichlet(torch.ones(2)),
        torch.rand(100, 2),
        Stream(),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_magnet_refuses_a_domain_that_is_not_known_to_be_bounded(prior):
    assert "bounded domain" in str(refused(ValueError, magnet, square, prior, 10))


def test_magnet_takes_a_ball_that_is_said_to_be_bounded():
    """A curved disc (x, y, x^2 + y^2): latents of density sqrt(1 + 4 r^2)."""
    draw = torch.Generator().manual_seed(0)
    z = torch.rand(20_000, 2, generator=draw, dtype=torch.float64) * 2 - 1
    z = z[z.norm(dim=1) < 1]
    bowl = (z, torch.full((len(z),), -math.log(math.pi)).double())

    def raised(z):
        return torch.cat([z, z.square().sum(dim=1, keepdim=True)], dim=1)

    found = magnet(raised, bowl, 1_000, bounded=True, **QUIET)
    radii = found.latents.norm(dim=1).numpy()
    law = lambda r: ((1 + 4 * r**2) ** 1.5 - 1) / (5**1.5 - 1)  # noqa: E731
    assert stats.kstest(radii, law).pvalue > 0.05
    assert "log-density" in str(refused(PoolError, magnet, raised, z, 10, bounded=True, size=99))


def test_what_cannot_be_sampled_is_refused():
    pool = measure(square, box(1), 100, **QUIET)
    assert "as many outputs" in str(refused(PoolError, magnet, nn.Linear(3, 2), box(3), 9, size=99))
    labels = (torch.rand(9, 1), torch.arange(9))
    for words, call, *arguments in [
        ("n as an integer of at least 1", magnet, square, box(1), 0),
        ("finite rho", polarity, square, box(1), 5, math.nan),
        ("float64 can hold", polarity, lambda z: 100 * z, box(1), 5, -1e308),
        ("labels are none", polarity, square, labels, 5, 1.0),
        ("Expected a prior", polarity, square, 3, 5, 1.0),
        ("with latents, got none", polarity, square, [], 5, 1.0),
        ("Expected a generator", polarity, None, box(1), 5, 1.0),
    ]:
        assert words in str(refused(ValueError, call, *arguments))
    assert "which is measured" in str(refused(ValueError, magnet, square, pool, 5, size=9))
    assert "options of describe" in str(refused(ValueError, magnet, square, box(1), 5, methd="x"))
    assert "at least 0" in str(refused(ValueError, measure, square, box(1), seed=-1))
    assert "size as an integer of" in str(refused(ValueError, measure, square, box(1), 0))
    for n in (0, 2.5, True, "5", None):
        assert "n as an integer of at least 1" in str(refused(ValueError, magnet, None, pool, n))
    for rho in (math.inf, "1", None, 1j, torch.ones(2)):
        assert "finite rho, got" in str(refused(ValueError, polarity, None, pool, 5, rho))
    for seed in (-1, 2.5, "5"):
        assert "a seed as an integer" in str(refused(ValueError, magnet, None, pool, 5, seed=seed))
    for rows in ([0.5], [True], None):
        assert "from 0 to 99" in str(refused(ValueError, lambda x, **_: pool.latents(x), rows))
    other = refused(PoolError, polarity, nn.Linear(3, 3), pool, 5, 0.1, images=True)
    assert "Expected a decoder that runs on latents of shape (B, 1)" in str(other)
    assert "from 0 to 99" in str(refused(ValueError, lambda x, **_: pool.latents(x), [100]))


@pytest.mark.parametrize(
    "rho", [torch.tensor(0.5, requires_grad=True), np.float32(0.5), np.array(0.5)]
)
def test_numbers_of_numpy_and_torch_are_numbers(rho):
    pool = measure(square, box(1), np.int64(200), **QUIET)
    found = polarity(None, pool, np.int64(5), rho, seed=torch.tensor(0))
    assert (found.rho, len(found), found.seed) == (0.5, 5, 0)
    assert torch.equal(found.latents, polarity(None, pool, 5, 0.5, seed=0).latents)


@pytest.mark.parametrize("m", [1.5, 2.0, 3.0, 5.0])
def test_the_tail_of_weights_is_that_of_their_closed_form(m):
    """z of density m z^(m - 1): 1 / p exceeds t in a share t^(-m / (m - 1)), of shape 1 - 1 / m."""
    rng = np.random.default_rng(0)
    found = [tail(rng.beta(m, 1, 4_096) ** (1 - m)) for _ in range(12)]
    assert np.mean(found) == pytest.approx(1 - 1 / m, abs=0.1)


def test_weights_without_a_tail_have_no_shape_above_zero():
    rng = np.random.default_rng(0)
    assert tail(np.ones(100)) == -math.inf
    assert tail(rng.random(4_096)) < -0.5


def test_a_prior_that_vanishes_at_an_edge_is_told():
    """Not one that is dense there, nor a flat one with weights of a few values."""
    ends = [Beta(torch.full((2,), m).double(), 1.0) for m in (6.0, 0.7)]
    with pytest.warns(RuntimeWarning, match=r"vanishes towards an edge .* of shape .* flat"):
        magnet(torch.sin, ends[0], 10, size=20_000, bounded=True, **QUIET)
    magnet(torch.sin, ends[1], 10, size=2_000, bounded=True, **QUIET)
    steps = mlp(2, 12, 12, 3, seed=0).double()
    assert tail(magnet(steps, box(2, -2, 2), 10, size=4_096, **QUIET).weights) > HEAVY
