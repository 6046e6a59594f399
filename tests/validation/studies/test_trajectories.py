"""Effects of guidance by seed, on data with a known one, and the kept results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.studies import first_alone

from bridges.studies import load_study, trajectories

RESULTS = Path(__file__).parents[3] / "notebooks" / "results" / "trajectories.json"


def test_slopes_are_those_of_the_rows_in_use():
    x = np.array([1.0, 3.0, 5.0, 9.0])
    y = np.stack([2 * x + 1, -x, x], axis=1)
    y[3, 1] = 100  # not in use
    use = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 0, 1]], dtype=bool)
    np.testing.assert_allclose(trajectories._slopes(x, y, use), (2, -1), atol=1e-12)


def test_the_regression_tells_guidance_from_the_norm():
    rng = np.random.default_rng(0)
    x, other, seeds = np.array([1.0, 3.0, 5.0, 9.0]), rng.normal(size=(4, 7)), rng.normal(size=7)
    y = 0.5 * x[:, None] - 3 * other + seeds
    np.testing.assert_allclose(trajectories._beside(x, y, other), 0.5, atol=1e-10)
    assert np.isnan(trajectories._beside(x, y[:, :2], other[:, :2])).all()


def test_the_study_at_a_tiny_size(data, one_thread, monkeypatch):
    """But for the transformer, whose every map has a Jacobian of 784 x 784."""
    pytest.importorskip("diffusers", reason="needs the extra cpwl[diffusers]")
    monkeypatch.setattr(trajectories, "TOGETHER", 1)
    dit = {"unrolled": np.zeros((2, 1))}, []
    monkeypatch.setattr(trajectories, "_transformer", lambda size, seeds: dit)
    tiny = first_alone(trajectories, trajectories.Size(1, (1, 9), 2, 2, 1, 1, 1))
    assert len({claim.claim + claim.effect for claim in tiny.claims}) == len(tiny.claims)
    own = [invariant for invariant in tiny.invariants if "pictures" not in invariant.name]
    assert len(own) == 3
    assert all(invariant.holds for invariant in own)
    assert tiny.data["steps"] == [0, 1]
    assert np.shape(tiny.data["ends"]["psi"]["9"]) == (1,)


def test_the_kept_results_are_whole():
    """Every claim has a value for each seed, but where LeNet-5 leaves seeds out."""
    study = load_study(RESULTS)
    assert study.full
    assert study.seeds == tuple(range(trajectories.FULL.seeds))
    assert not study.failed()
    whole = [c for c in study.claims if "LeNet" not in c.claim and "transformer" not in c.claim]
    assert len(whole) > 20
    assert all(len(claim.values) == len(study.seeds) for claim in whole)


@pytest.mark.nightly
def test_a_row_at_full_size_is_the_kept_one(data):
    """One seed again at full size gives its values again."""
    pytest.importorskip("diffusers", reason="needs the extra cpwl[diffusers]")
    kept = load_study(RESULTS)
    again = trajectories.study(trajectories.FULL, kept.seeds[:1])
    for name in trajectories.NAMES:
        for guidance, values in again.data["ends"][name].items():
            before = kept.data["ends"][name][guidance][:1]
            np.testing.assert_allclose(values, before, rtol=1e-3, err_msg=f"{name} {guidance}")
