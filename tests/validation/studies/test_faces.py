"""Faces weighed by psi: a run at tiny size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bridges.studies import faces, load_study

RESULTS = Path(__file__).parents[3] / "notebooks" / "results" / "faces.json"

TINY = faces.Size(1, 52, 20, (-0.05, 0.0, 0.05), 1, 3)


@pytest.fixture(scope="module")
def tiny(data, one_thread):
    return faces.study(TINY, [3])


def test_the_invariants_hold(tiny):
    assert not tiny.failed(), tiny.failed()


def test_whole_psi_spreads_by_tens_of_nats(tiny):
    whole = tiny.data["whole"]
    assert np.ptp(whole["psi"]) > 10
    assert whole["ess"][1] == pytest.approx(TINY.whole)


def test_a_pool_is_worth_half_at_the_rho_that_is_said():
    psi = np.array([[25.0], [92.0], [47.0]])
    low, high = faces._half(psi)
    assert low < 0 < high
    for rho in (low, high):
        weights = np.exp(rho * (psi - psi.mean()))
        assert weights.sum() ** 2 / np.square(weights).sum() == pytest.approx(1.5, abs=1e-6)
    assert np.isnan(faces._half(np.zeros((3, 1)))).all()  # no rho tells them apart


def test_variety_is_that_of_the_pictures():
    """Two black ones and two white ones: half of the pairs are 1 apart for each of the others."""
    pixels = np.repeat([[0.0], [1.0]], 2, axis=0) * np.ones(9)
    found = faces._variety(pixels, np.arange(4))
    assert found["distance"] == pytest.approx(4 / 6)
    assert found["brightness"] == pytest.approx(0.5)
    assert found["vendi"] == pytest.approx(1.0)  # all differ from the mean in one direction
    both = np.concatenate([np.eye(3), -np.eye(3)])
    assert faces._variety(both, np.arange(6))["vendi"] == pytest.approx(3.0)


def test_every_claim_has_a_value_for_each_seed(tiny):
    assert all(len(claim.values) == 1 for claim in tiny.claims)
    assert len({(claim.claim, claim.effect) for claim in tiny.claims}) == len(tiny.claims)
    assert {claim.effect.split(",")[0] for claim in tiny.claims} == set(faces.WORDS.values())
    assert np.mean([claim.paper == "none" for claim in tiny.claims]) == 0.5


def test_the_kept_results_are_whole():
    study = load_study(RESULTS)
    assert study.full
    assert study.seeds == tuple(range(faces.FULL.seeds))
    assert not study.failed()
    assert all(len(claim.values) == len(study.seeds) for claim in study.claims)


@pytest.mark.nightly
def test_a_row_at_full_size_is_the_kept_one(data, one_thread):
    """One seed again at full size gives its psi, its effective sizes and its variety again."""
    kept = load_study(RESULTS).data
    again = faces.study(faces.FULL, [0]).data
    before = np.array(kept["whole"]["psi"])[:, 0]
    np.testing.assert_allclose(again["whole"]["psi"][:, 0], before, rtol=1e-3)
    for column in ("ess", "vendi"):
        before = np.array(kept["section"]["polarity"][column])[:, 0]
        np.testing.assert_allclose(again["section"]["polarity"][column][:, 0], before, rtol=1e-3)
