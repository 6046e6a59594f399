"""Guidance by rewards: a run at tiny size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.studies import first_alone

from bridges.studies import load_study, reward_guidance

RESULTS = Path(__file__).parents[3] / "notebooks" / "results" / "reward_guidance.json"

TINY = reward_guidance.Size(1, (-2.0, 0.0, 2.0), 10, 4, 1, 2, 2, 1, 8, 1, 8)


@pytest.fixture(scope="module")
def tiny(data, one_thread):
    pytest.importorskip("diffusers", reason="needs the extra cpwl[diffusers]")
    return first_alone(reward_guidance, TINY)


def test_no_strength_changes_nothing(tiny):
    """Whatever a reward is, rho = 0 gives the samples without it."""
    held = {invariant.name: invariant for invariant in tiny.invariants}
    assert held["rho = 0 is bitwise the result without a reward"].holds
    assert held["psi of the exact reward is that of describe"].holds
    for kind in reward_guidance.KINDS:
        psi = tiny.data["rewards"][kind]["psi"]
        assert psi.shape == (3, 1)
        assert psi[1, 0] == 0
        assert psi[0, 0] != 0 != psi[2, 0]


def test_every_claim_has_a_value_for_each_seed(tiny):
    assert all(len(claim.values) == 1 for claim in tiny.claims)
    assert len({claim.claim for claim in tiny.claims}) == len(tiny.claims)
    assert np.isfinite([claim.values for claim in tiny.claims]).all()
    cosines = np.array([tiny.data["cosines"][k] for k in ("uniform", "quantile", "sketch")])
    assert (np.abs(cosines) <= 1).all()


def test_the_kept_results_are_whole():
    study = load_study(RESULTS)
    assert study.full
    assert study.seeds == tuple(range(reward_guidance.FULL.seeds))
    assert not study.failed()
    assert all(len(claim.values) == len(study.seeds) for claim in study.claims)


@pytest.mark.nightly
def test_a_row_at_full_size_is_the_kept_one(data, one_thread):
    """One seed again at full size gives its values again where no classifier is trained."""
    pytest.importorskip("diffusers", reason="needs the extra cpwl[diffusers]")
    kept = load_study(RESULTS).data["rewards"]
    again = reward_guidance.study(reward_guidance.FULL, [0]).data["rewards"]
    for kind in ("exact", "sketch"):
        before = np.array(kept[kind]["psi"])[:, 0]
        np.testing.assert_allclose(again[kind]["psi"][:, 0], before, rtol=1e-2, atol=0.02)
