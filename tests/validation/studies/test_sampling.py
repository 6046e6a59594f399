"""Samples weighed by psi: a run at tiny size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.studies import first_alone

from bridges.studies import load_study, sampling

RESULTS = Path(__file__).parents[3] / "notebooks" / "results" / "sampling.json"

TINY = sampling.Size(1, 120, 40, (-0.1, 0.0, 0.1), 1, 60, 4)


@pytest.fixture(scope="module")
def tiny(data, one_thread):
    return first_alone(sampling, TINY)


def test_the_invariants_hold(tiny):
    assert not tiny.failed(), tiny.failed()


def test_without_weights_samples_are_those_of_the_pool(tiny):
    """At rho = 0 no latent comes twice, whatever the map."""
    for network in tiny.data["networks"].values():
        assert network["polarity"]["distinct"][1, 0] == TINY.drawn
        assert network["polarity"]["ess"][1, 0] == pytest.approx(TINY.pool)


def test_pictures_are_one_for_a_map_and_the_same_before_its_last_layer(tiny):
    """Only weights differ between the two, and there are none at rho = 0."""
    for name in sampling.NETWORKS[::2]:
        both = [found for key, found in tiny.data["networks"].items() if key.startswith(name)]
        assert len(both) == 2
        for quantity in sampling.QUANTITIES:
            assert both[0]["polarity"][quantity][1] == both[1]["polarity"][quantity][1]


def test_the_whole_gan_loses_rank(tiny):
    """Its second layer has few active units: no pool of it can be weighed."""
    ranks = tiny.data["whole"]["ranks"]
    assert ranks.shape == (TINY.whole, 1)
    assert ranks.min() < 64
    assert (tiny.data["whole"]["ess"] < sampling.LEAST).all()


def test_every_claim_has_a_value_for_each_seed(tiny):
    assert all(len(claim.values) == 1 for claim in tiny.claims)
    assert len({(claim.claim, claim.effect) for claim in tiny.claims}) == len(tiny.claims)
    assert np.isfinite([claim.values for claim in tiny.claims]).all()
    half = [claim.paper == "none" for claim in tiny.claims]
    assert np.mean(half) == 0.5


def test_the_kept_results_are_whole():
    study = load_study(RESULTS)
    assert study.full
    assert study.seeds == tuple(range(sampling.FULL.seeds))
    assert not study.failed()
    assert all(len(claim.values) == len(study.seeds) for claim in study.claims)


@pytest.mark.nightly
def test_a_row_at_full_size_is_the_kept_one(data, one_thread):
    """One seed again at full size gives its effective sizes and its samples' psi again."""
    kept = load_study(RESULTS).data["networks"]
    again = sampling.study(sampling.FULL, [0]).data["networks"]
    for name, network in again.items():
        for column in ("ess", "psi"):
            before = np.array(kept[name]["polarity"][column])[:, 0]
            np.testing.assert_allclose(network["polarity"][column][:, 0], before, rtol=1e-3)
