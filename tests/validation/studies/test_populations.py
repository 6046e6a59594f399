"""Parts of the study, and all of it at a tiny size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from support.studies import first_alone

from bridges.networks.diffusion import mnist_decoder
from bridges.studies import interval, load_study, outside, populations, save_study
from bridges.studies.associations import explained, rank_correlation, slant
from bridges.studies.population_claims import claims_of
from bridges.studies.populations import FULL, SMALL

RESULTS = Path(__file__).parents[3] / "notebooks" / "results" / "populations.json"
TINY = SMALL._replace(digits=200, apart=2, repeats=2, images=6, smooth=2, inverted=4, steps=4,
                      inversion=3)  # fmt: skip


def test_a_partial_rank_correlation_is_that_of_the_textbook():
    """Of one confound: (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2))."""
    x, y, z = np.random.default_rng(0).normal(size=(3, 50))
    x, y = x + z, y - z
    xy, xz, yz = (stats.spearmanr(*pair).statistic for pair in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert rank_correlation(x, y, {"z": z}) == pytest.approx(expected, rel=1e-12)
    assert rank_correlation(x, y) == pytest.approx(xy, rel=1e-12)
    assert np.isnan(rank_correlation(z**3, y, {"z": z}))
    assert np.isnan(rank_correlation(x, np.ones(50)))


def test_what_classes_explain_is_nothing_by_chance():
    rng = np.random.default_rng(0)
    values = [explained(rng.random(60), np.arange(60) % 3) for _ in range(400)]
    mean, low, high = interval(values)
    assert low < 0 < high
    assert abs(mean) < 0.01
    assert explained([1.0, 2.0], [3, 3]) == 0


def test_slants_add_a_shear():
    """A shear by s columns per row adds s, whatever the picture is."""
    rng = np.random.default_rng(0)
    points = rng.integers(10, 20, (30, 2))
    pictures = np.zeros((2, 30, 60))
    for row, column in points:
        pictures[0, row, column + 20] = pictures[1, row, column + 20 - (row - 15)] = 1
    plain, sheared = slant(pictures)
    assert sheared - plain == pytest.approx(1, abs=1e-9)


def test_the_mahalanobis_distance_is_that_of_scipy():
    rng = np.random.default_rng(0)
    training, labels = rng.normal(size=(90, 3)) @ rng.normal(size=(3, 3)), np.arange(90) % 2
    x = 3 * rng.normal(size=(5, 3))
    means = [training[labels == c].mean(axis=0) for c in (0, 1)]
    inner = np.concatenate([training[labels == c] - means[c] for c in (0, 1)])
    covariance = np.cov(inner.T, bias=True)
    covariance += 1e-3 * np.diag(covariance).mean() * np.eye(3)
    from scipy.spatial.distance import mahalanobis

    inverse = np.linalg.inv(covariance)
    expected = [min(mahalanobis(row, mean, inverse) for mean in means) for row in x]
    np.testing.assert_allclose(outside.mahalanobis(x, training, labels), expected, rtol=1e-9)


def test_sets_within_a_class_say_nothing_of_classes():
    """Features that the class alone decides: level sets differ, and those of a class do not."""
    labels = np.arange(600) % 10
    values = labels + np.random.default_rng(0).random(600)
    size = SMALL._replace(together=20, apart=4)
    found = populations._levels(values, labels, np.eye(10)[labels], size, 0)
    assert found["vendi"]["score"].max() < 2.1  # each set has two classes
    np.testing.assert_allclose(found["within"]["score"], 1, rtol=1e-9)


@pytest.fixture(scope="module")
def tiny(data, one_thread):
    """Return the study at a tiny size."""
    return first_alone(populations, TINY, (1, 0))


def test_the_study_at_a_tiny_size(tiny, tmp_path):
    assert all(np.isfinite(claim.values).all() for claim in tiny.claims)
    assert len({(c.claim, c.effect) for c in tiny.claims}) == len(tiny.claims)
    controls = [c for c in tiny.claims if c.claim.startswith("control")]
    assert {c.paper for c in controls} == {"none"}
    assert {i.name for i in tiny.invariants if not i.holds} <= {
        "the GAN's own digits are inverted better than others"  # not in three steps
    }
    save_study(tiny, tmp_path / "study.json")
    assert load_study(tmp_path / "study.json").claims == tiny.claims


def test_the_latent_autoencoder_has_populations_too(data):
    """Few: its digits are drawn as asked, and its descriptors those of the plain decoder."""
    size = TINY._replace(digits=1, latent=20)
    found = list(populations._populations(populations._parts(), size, 0))
    starts = ["", *["autoencoder: "] * 3]
    assert [start for start, *_ in found[2:]] == starts
    _, source, pixels, labels, table = found[-1]
    assert source == "generated"
    assert (labels == np.arange(20) % 10).mean() > 0.9
    assert pixels.min() >= 0
    z = outside.drawn(outside.latent_autoencoder(), 20, 1_000_000)[0]
    jacobian = torch.autograd.functional.jacobian(mnist_decoder(), z[None]).view(784, 36)
    values = torch.linalg.svdvals(jacobian)
    assert table["psi"][0] == pytest.approx(float(values.log().sum()), abs=1e-2)
    assert "psi after" not in table


def test_more_seeds_than_images_are_refused(data):
    with pytest.raises(ValueError, match=r"Expected seeds below 6, got 6: each has images"):
        populations.study(FULL, [6])


def test_the_kept_results_are_whole():
    study = load_study(RESULTS)
    assert study.full
    assert study.seeds == tuple(range(FULL.seeds))
    assert not study.failed()
    for kept, again in zip(study.claims, claims_of(_arrays(study.data)), strict=True):
        assert (kept.claim, kept.paper, kept.effect) == (again.claim, again.paper, again.effect)
        np.testing.assert_allclose(kept.values, again.values, atol=1e-4)  # data have six digits
    assert {len(claim.values) for claim in study.claims} == {len(study.seeds)}


def _arrays(data):
    return {k: _arrays(v) if isinstance(v, dict) else np.array(v) for k, v in data.items()}


@pytest.mark.nightly
def test_a_row_at_full_size_is_the_kept_one(data, one_thread):
    """The descriptors of a published decoder, which no training of ours changes."""
    kept = load_study(RESULTS).data["auroc"]["VAE"]["letters"]
    parts = populations._parts()
    kinds = [parts.shown[kind].pixels[: FULL.images] for kind in ("mnist", "notmnist")]
    samples = [torch.from_numpy(pixels) for pixels in kinds]
    inside, others = outside.measured(parts.vae, samples)
    for name in ("psi", "nu", "delta", "psi after", "norm", "error"):
        above = np.sign(others[name][:, None] - inside[name]).mean() / 2 + 0.5  # by pairs
        assert above == pytest.approx(kept[name][0], abs=2e-3), name
