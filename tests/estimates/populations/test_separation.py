"""AUROC against pairs counted one by one, its variance by hand, its interval by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from approx.populations import auroc


def test_the_value_counts_pairs_and_ties_as_one_half():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 6, 15), rng.integers(0, 6, 35)
    found = auroc(one, other)
    u = stats.mannwhitneyu(one, other).statistic
    assert found.value == pytest.approx(u / (15 * 35), abs=1e-14)
    assert auroc(-one, -other).value == pytest.approx(1 - found.value, abs=1e-14)
    assert (found.inside, found.outside) == (15, 35)
    assert np.isnan(auroc(one, []).value)
    assert auroc([*one, np.nan], other) == found  # NaN is left out


def test_the_interval_is_delongs_on_the_logits_scale():
    """2 x 3 pairs: shares 1 and 2/3 above, 1, 1 and 1/2 below; variances 1/18 and 1/12."""
    found = auroc([5, 2], [1, 0, 3])
    value, variance = 5 / 6, 1 / 36 + 1 / 36
    freedom = (2 / 36) ** 2 / ((1 / 36) ** 2 / 1 + (1 / 36) ** 2 / 2)  # Welch: 8 / 3
    wide = stats.t.isf(0.025, freedom) * math.sqrt(variance) / (value * (1 - value))
    ends = [1 / (1 + math.exp(-(math.log(value / (1 - value)) + s * wide))) for s in (-1, 1)]
    assert found[:3] == pytest.approx((value, *ends), abs=1e-12)


def test_strata_hold_pairs_apart_and_add_their_variances():
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=20), rng.normal(size=30)
    where = rng.integers(0, 3, 20), rng.integers(0, 3, 30)
    found = auroc(one, other, where)
    pairs, parts = 0, []
    total = 0.0
    for s in range(3):
        above = one[where[0] == s][:, None] > other[where[1] == s]
        pairs, total = pairs + above.size, total + above.sum()
        for shares in (above.mean(1), above.mean(0)):
            parts.append((above.size**2 * shares.var(ddof=1) / len(shares), len(shares) - 1))
    variance = sum(v for v, _ in parts)
    wide = stats.t.isf(0.025, variance**2 / sum(v**2 / n for v, n in parts))
    assert found.value == pytest.approx(total / pairs, abs=1e-14)
    logit = math.log(found.value / (1 - found.value))
    error = math.sqrt(variance) / pairs / (found.value * (1 - found.value))
    assert math.log(found.high / (1 - found.high)) == pytest.approx(logit + wide * error, 1e-9)


def test_a_number_that_only_knows_the_stratum_has_no_effect_within_it():
    strata = np.repeat([0, 1], 20)
    inside = np.arange(40) % np.where(strata, 2, 5) == 0
    pair = strata[inside], strata[~inside]
    assert auroc(*pair).value > 0.6
    assert auroc(*pair, strata=pair).value == 0.5


def test_pairs_that_all_agree_leave_a_bound_and_not_a_point():
    found = auroc([5.0, 6.0, 7.0], [1.0, 2.0, 3.0, 4.0])
    assert found[:3] == pytest.approx((1.0, 0.025 ** (1 / 3), 1.0))
    assert auroc([1.0] * 30, [5.0] * 9)[:3] == pytest.approx((0.0, 0.0, 1 - 0.025 ** (1 / 9)))
    assert auroc([1.0] * 30, [5.0] * 9).direction == "lower"
    assert auroc([2.0], [1.0]).direction == "undecided"


@pytest.mark.parametrize("n", [5, 10])
def test_few_against_many_of_the_same_are_seldom_told_apart(n):
    rng = np.random.default_rng(n)
    told = [auroc(rng.normal(size=n), rng.normal(size=100)).direction for _ in range(400)]
    assert np.mean([d != "undecided" for d in told]) < 0.075


@pytest.mark.parametrize(("shift", "n"), [(0.0, 20), (1.0, 20), (2.0, 40)])
def test_the_interval_holds_the_true_value_in_95_percent(shift, n):
    """Normal numbers of variance 1: the true AUROC is Phi(shift / sqrt 2)."""
    rng = np.random.default_rng(2)
    true = stats.norm.cdf(shift / math.sqrt(2))
    runs = [auroc(rng.normal(shift, 1, n), rng.normal(0, 1, n)) for _ in range(600)]
    held = np.mean([run.low <= true <= run.high for run in runs])
    assert 0.93 <= held <= 0.975
    directions = [run.direction for run in runs]
    assert "lower" not in directions or shift == 0
    if shift == 0:
        assert 0.02 < np.mean([d != "undecided" for d in directions]) < 0.075


def test_a_stratum_is_needed_for_each_number():
    with pytest.raises(ValueError, match=r"Expected one stratum for each of 2 rows, got \(3,\)"):
        auroc([1, 2], [1, 2], ([0, 0, 0], [0, 0]))
