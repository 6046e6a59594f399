"""Planes through encoded images and the radius of delta: a run at tiny size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.bisection import changes, pattern_of

import cpwl
from bridges.networks import pretrained
from bridges.studies import geometry, load_study

RESULTS = Path(__file__).parents[3] / "notebooks" / "results" / "geometry.json"

TINY = geometry.Size(1, 1, 0, 3, 2, (1e-6, 1.0), 50)


@pytest.fixture(scope="module")
def tiny(data, one_thread):
    pytest.importorskip("skimage", reason="needs scikit-image, for its photographs")
    return geometry.study(TINY, [3])


def test_the_invariants_hold(tiny):
    assert not tiny.failed(), tiny.failed()


def test_a_small_enough_neighbourhood_lies_in_one_cell(tiny):
    """Latents in general position are further from every knot than 1e-6."""
    for model, most in (("toy", 2), ("gan", 3)):
        counts = tiny.data["cells"][model]
        assert set(counts) == {str(p) for p in range(1, most + 1)}
        for count in counts.values():
            assert count.shape == (2, 2, TINY.latents, 1)
            assert (count[:, 0] == 1).all()
            assert (count >= 1).all()


def test_the_denoiser_is_counted_as_far_as_time_allows(tiny):
    cells = tiny.data["cells"]["denoiser"]["1"]
    assert (cells[:, 0] == 1).all()
    assert np.isnan(cells[:, 1]).all()


def test_knots_of_a_small_stack_are_those_of_its_partition():
    """Oracle: the exact engine, which proves two convolutions of 3 channels."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(3, 1, 3, padding=1),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    patch, way = rng.standard_normal((2, 4, 4))
    way /= np.linalg.norm(way)
    network = cpwl.Network.from_torch(body, (1, 4, 4))
    domain = cpwl.cross_polytope(patch[None], 3.0, way[None, None])
    partition = cpwl.subdivide(network, domain, progress=False)
    assert partition.status.exact
    found = geometry.knots(body.double(), patch, way, 3.0)
    assert len(found) > 20
    np.testing.assert_allclose(found, np.sort(partition.points.ravel())[1:-1], atol=1e-9)


def test_knots_of_the_denoiser_are_where_activation_patterns_change(data, one_thread):
    """Oracle: bisection of every interval whose ends differ; a pattern's points are convex."""
    module = pretrained.bias_free_dncnn(data).double()
    noisy = np.load(data / "denoiser" / "noisy_im_30.npy")
    patch = noisy[7 : 7 + geometry.PATCH, 11 : 11 + geometry.PATCH]
    z = torch.from_numpy(patch[None].copy())
    way = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(5))
    way /= way.norm()
    radius = 1e-3
    switches = changes(
        lambda t: pattern_of(module, z + t[:, None, None, None] * way), -radius, radius,
        1e-9 * radius,
    )  # fmt: skip
    found = geometry.knots(module.body, patch, way[0].numpy(), radius)
    assert len(found) > 5
    np.testing.assert_allclose(found, switches, atol=1e-8 * radius)


def test_every_claim_has_a_value_for_each_seed(tiny):
    assert all(len(claim.values) == 1 for claim in tiny.claims)
    assert len({claim.claim for claim in tiny.claims}) == len(tiny.claims)
    assert np.isfinite([claim.values for claim in tiny.claims]).all()
    # each decoder and descriptor: as encoded, permuted, and the one less the other
    hulls = [claim for claim in tiny.claims if "hull" in claim.claim]
    assert len(hulls) == 18
    for both, control, rest in zip(hulls[::3], hulls[1::3], hulls[2::3], strict=True):
        assert rest.values[0] == pytest.approx(both.values[0] - control.values[0])


def test_the_kept_results_are_whole():
    study = load_study(RESULTS)
    assert study.full
    assert study.seeds == tuple(range(geometry.FULL.seeds))
    assert not study.failed()
    assert all(len(claim.values) == len(study.seeds) for claim in study.claims)


@pytest.mark.nightly
def test_a_row_at_full_size_is_the_kept_one(data, one_thread):
    """One seed again at full size gives its cells of the GAN and the denoiser again, and its nu."""
    pytest.importorskip("skimage", reason="needs scikit-image, for its photographs")
    kept = load_study(RESULTS).data
    again = geometry.study(geometry.FULL, [0]).data
    for model in ("gan", "denoiser"):
        for p, counts in again["cells"][model].items():
            before = np.array(kept["cells"][model][p], dtype=float)
            np.testing.assert_array_equal(counts[..., 0], before[..., 0])
    nu = again["planes"]["digits"]["encoded"]["nu"]["inside"][0]
    assert nu == pytest.approx(kept["planes"]["digits"]["encoded"]["nu"]["inside"][0], rel=1e-3)
