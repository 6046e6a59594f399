"""Models in training: a run at tiny size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.studies import first_alone

from bridges.networks.pretrained import read_images
from bridges.networks.training import train_vae
from bridges.studies import load_study, training

RESULTS = Path(__file__).parents[3] / "notebooks" / "results" / "training.json"

TINY = training.Size(
    1, (0.0, 1e-4), 100, 4, 12, 8, 8, 4, (0, 4, 8, 12), 4, 2, 16, 2, (0, 3), (1, 10), 1, 1
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(data, one_thread):
    return first_alone(training, TINY)


def test_descriptors_are_those_of_jacobians(tiny):
    """By autograd, the posterior's covariance and a Cholesky root of it, of the same training."""
    digits = read_images("mnist", 100, part="train").pixels
    vae = train_vae(
        digits, steps=12, batch=8, warmup=4, latents=2, width=16, depth=2, seed=3, progress=False
    ).module.double()
    with torch.no_grad():
        codes, log_variance = vae.encode(torch.from_numpy(digits).double())
        shown = vae.encode(torch.from_numpy(read_images("mnist", 4).pixels).double())[0]
    covariance = np.cov(codes.numpy().T) + np.diag(log_variance.exp().mean(dim=0))
    root = np.linalg.cholesky(covariance)
    expected: dict[str, list[float]] = {}
    for z in shown:
        for after, decoder in (("", vae.decoder), (" after", vae.decode)):
            jacobian = torch.autograd.functional.jacobian(decoder, z).numpy()
            for white, matrix in (("", jacobian), (" white", jacobian @ root)):
                values = np.linalg.svd(matrix, compute_uv=False)
                share = values / values.sum()
                psi, nu = np.log(values).sum(), np.exp(-(share * np.log(share)).sum())
                expected.setdefault(f"psi{white}{after}", []).append(psi)
                expected.setdefault(f"nu{white}{after}", []).append(nu)
    curves = tiny.data["curves"]["0"]
    for name in set(expected) & set(training.WORDS):
        assert curves[name][-1, 0] == pytest.approx(np.mean(expected[name]), abs=1e-3), name


def test_what_must_hold_holds_whatever_the_size(tiny):
    failed = {invariant.name for invariant in tiny.failed()}
    assert failed <= {"the loss falls in training"}  # 12 steps are few
    own, curves = tiny.data["classes"]["own"], tiny.data["curves"]["0"]
    for name in training.WHITE:  # ten classes are the training without noise, at its step 8
        np.testing.assert_array_equal(own[name][-1], curves[name][2])
        assert (own[name][0] != own[name][-1]).all()
    clothes, digits = (tiny.data["tuned"][k]["clothes: psi white"] for k in ("clothes", "digits"))
    np.testing.assert_array_equal(clothes[0], digits[0])  # before the first step
    assert (clothes[-1] != digits[-1]).all()


def test_every_claim_has_a_value_for_each_seed(tiny):
    assert all(len(claim.values) == 1 for claim in tiny.claims)
    assert len({claim.claim for claim in tiny.claims}) == len(tiny.claims)
    known = [np.isfinite(c.values).all() for c in tiny.claims]  # a dip needs other seeds
    assert known == ["dips" not in claim.claim for claim in tiny.claims]


def test_a_dip_is_below_both_ends_where_the_other_curves_are_least():
    steps = np.linspace(-1, 1, 21)[:, None]
    valleys = np.abs(steps) + np.array([[0.0, 5.0, -2.0]])
    np.testing.assert_allclose(training.dip(valleys), 1)
    np.testing.assert_allclose(training.dip(steps + np.zeros(3)), -0.1)  # a line, one step inside
    assert (training.dip(-valleys) <= 0).all()
    assert np.isnan(training.dip(valleys[:, :1])).all()


def test_curves_that_merely_scatter_have_no_dip_on_average():
    """The least of each curve itself would be far below its ends."""
    scatter = np.random.default_rng(0).normal(size=(10, 2000))
    assert training.dip(scatter).mean() < 0 < (scatter[[0, -1]].min(0) - scatter.min(0)).mean()


def test_the_kept_results_are_whole():
    study = load_study(RESULTS)
    assert study.full
    assert study.seeds == tuple(range(training.FULL.seeds))
    assert not study.failed()
    assert all(len(claim.values) == len(study.seeds) for claim in study.claims)


@pytest.mark.nightly
def test_a_row_at_full_size_is_the_kept_one(data, one_thread):
    """The training without noise, again; rounding grows in training, so the start is nearer."""
    size = training.FULL._replace(noises=(0.0, 1e-4), tuned=(0, 1), classes=(1, 10), denoiser=1)
    again = training.study(size, [0]).data["curves"]["0"]
    kept = load_study(RESULTS).data["curves"]["0"]
    for name in ("psi", "psi white", "nu white"):
        before = np.array(kept[name])[:, 0]
        np.testing.assert_allclose(again[name][:4, 0], before[:4], rtol=1e-2)
        np.testing.assert_allclose(again[name][:, 0], before, rtol=0.1)
