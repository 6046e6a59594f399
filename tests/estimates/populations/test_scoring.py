"""Level sets, and their scores: closed forms, coverage, the null, and what goes wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from approx import level_sets, score_sets
from approx.populations import LevelSets, ScoreError, vendi

QUIET: dict[str, Any] = {"progress": False}


def total(x: Any) -> float:
    return float(np.sum(x))


def same(x: Any) -> Any:
    return x


# level sets


def test_equal_counts_and_equal_widths():
    values = np.array([5.0, 0.0, np.nan, 1.0, 2.0, 3.0, 4.0, 100.0, 99.0])
    sets = level_sets({"psi": values}, bins=4)
    assert [values[rows].tolist() for rows in sets] == [[0, 1], [2, 3], [5, 4], [100, 99]]
    assert sets.edges.tolist() == [0, 1.75, 3.5, 28.5, 100]
    wide = level_sets({"psi": values}, bins=2, equal="width")
    assert wide.edges.tolist() == [0, 50, 100]
    assert [len(rows) for rows in wide] == [6, 2]


def test_equal_values_stay_together():
    sets = level_sets({"delta": [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]}, "delta", 2)
    assert [rows.tolist() for rows in sets] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_labels_are_a_column_or_given():
    frame = pytest.importorskip("pandas").DataFrame({"psi": range(6), "label": list("ababab")})
    assert level_sets(frame, bins=2).labels.tolist() == list("ababab")
    assert level_sets(frame, bins=2, labels=[0] * 6).labels.tolist() == [0] * 6


def test_level_sets_refuse_bad_input():
    with pytest.raises(ValueError, match=r"level set of psi, got \[3, 0, 1\]: .* equal='count'"):
        level_sets({"psi": [0.0, 0.1, 0.2, 9.0]}, bins=3, equal="width")
    with pytest.raises(ValueError, match=r"got \[0, 4\]: ask for fewer bins; equal values stay"):
        level_sets({"delta": [3, 3, 3, 3]}, "delta", 2)
    with pytest.raises(ValueError, match=r"got \[0\]"):
        level_sets({"psi": [np.nan, np.nan]}, bins=1)
    with pytest.raises(ValueError, match=r"one label for each of 4 rows, got \(3,\)"):
        level_sets({"psi": range(4)}, bins=2, labels=[1, 2, 3])
    with pytest.raises(ValueError, match="Expected a column of the table, got 'nu': there are psi"):
        level_sets({"psi": range(4)}, "nu")
    with pytest.raises(ValueError, match="Expected equal 'count' or 'width', got 'area'"):
        level_sets({"psi": range(4)}, equal="area")  # pyright: ignore
    for bins in (0, 2.5, True, "2"):
        with pytest.raises(ValueError, match="Expected bins as an integer of at least 1, got "):
            level_sets({"psi": range(4)}, bins=bins)  # pyright: ignore
    with pytest.raises(ValueError, match=r"Expected a table of `describe`, .* got list"):
        level_sets([1.0, 2.0])
    with pytest.raises(ValueError, match="Expected labels that can be sorted, got text and other"):
        level_sets({"psi": range(4)}, bins=2, labels=np.array(["a", 1, 1, 2], object))


# scores


def two(size: int, labels: Any = None) -> LevelSets:
    rows = np.arange(size)
    return LevelSets("psi", np.arange(3.0), (rows[: size // 2], rows[size // 2 :]),
                     rows.astype(float), labels)  # fmt: skip


def test_a_number_an_image_and_a_number_a_set_are_told_apart():
    data, seen = np.arange(40.0), []

    def counted(x: Any) -> Any:
        seen.append(len(x))
        return x

    scorers = {"each": counted, "set": total}
    found = score_sets(two(40), data, scorers, n=4, repeats=400, within=None, null=None, **QUIET)
    assert found.scorer.tolist() == ["each", "each", "set", "set"]
    np.testing.assert_allclose(found.score[2:], 4 * found.score[:2])  # the same draws
    assert sum(seen) == 4 + 20 + 4 + 20  # once an image, and a look at the kind
    np.testing.assert_allclose(found.score[:2], [9.5, 29.5], atol=0.5)
    assert np.isnan(found.p).all()
    assert found.to_value.tolist() == [1, 2, 1, 2]


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    """Of 200 numbers the standard error of the mean is s / sqrt 200; draws of any n tell it."""
    data = np.random.default_rng(0).normal(size=400)
    error = data[:200].std(ddof=1) / np.sqrt(200)
    for n in (20, 100, 180):
        found = score_sets(two(400), data, {"mean": same}, n=n, repeats=2000, within=None,
                           null=None, **QUIET)  # fmt: skip
        half = (found.score_high - found.score_low)[0] / 2
        assert half == pytest.approx(1.96 * error, rel=0.08)
        assert found.score[0] == pytest.approx(data[:200].mean(), abs=4 * error / np.sqrt(2000 / n))


def test_the_interval_holds_the_true_score_in_95_percent():
    """Means within two classes of 0 and 10: their mean is 5, whatever the classes' shares."""
    rng = np.random.default_rng(1)
    labels = np.arange(120) % 3 // 2
    held = []
    for seed in range(200):
        data = rng.normal(10 * labels, 1 + labels)
        found = score_sets(two(120, labels), data, {"mean": same}, n=12, repeats=60, null=None,
                           seed=seed, **QUIET)  # fmt: skip
        held += (np.abs(found.score - 5) <= found.score_high - found.score).tolist()
    assert found.classes == (0, 1)
    assert 0.91 <= np.mean(held) <= 0.98


def test_scores_within_a_class_are_those_of_its_members_alone():
    """Vendi: orthogonal classes, one direction each. Whole sets hold two, and classes one."""
    labels = np.arange(80) % 2
    features = np.eye(2)[labels]
    sets = two(80, labels)
    whole = score_sets(sets, features, {"v": vendi}, n=19, repeats=5, within=None, **QUIET)
    inner = score_sets(sets, features, {"v": vendi}, n=19, repeats=5, **QUIET)
    assert whole.score.min() > 1.8
    np.testing.assert_allclose(inner.score, 1)
    assert inner.classes == (0, 1)
    rare = np.where(np.arange(80) < 3, 2, labels)  # in one set, and fewer than n
    few = score_sets(two(80, rare), features, {"v": vendi}, n=17, repeats=2, **QUIET)
    assert few.classes == (0, 1)


def test_permuted_sets_keep_the_mixture_of_classes():
    """The score is the class alone: sets of other mixtures differ, and not from their null."""
    labels = np.r_[np.arange(60) % 4 == 0, np.arange(60) % 4 != 0].astype(int)
    sets, scorers = two(120, labels), {"share": same}
    found = score_sets(sets, labels, scorers, n=20, repeats=200, within=None, **QUIET)
    np.testing.assert_allclose(found.score, [0.25, 0.75], atol=0.03)
    np.testing.assert_allclose(found.null, [0.25, 0.75], atol=0.01)
    assert (found.p > 0.05).all()
    free = score_sets(two(120), labels, scorers, n=20, repeats=200, within=None, **QUIET)
    np.testing.assert_allclose(free.null, 0.5, atol=0.02)
    np.testing.assert_allclose(free.p, 1 / 201)


def test_a_false_finding_among_the_sets_comes_in_one_of_twenty():
    rng = np.random.default_rng(2)
    least = []
    for seed in range(120):
        sets = level_sets({"psi": rng.random(90), "label": np.arange(90) % 2}, bins=3)
        noise = rng.normal(size=90)
        found = score_sets(sets, noise, {"m": same}, n=6, repeats=39, seed=seed, **QUIET)
        least.append(found.p.min())
    assert np.mean(np.array(least) <= 0.05) <= 0.1
    assert np.mean(np.array(least) <= 0.5) == pytest.approx(0.5, abs=0.14)


def test_a_seed_gives_the_same_scores_and_tensors_will_do():
    data = torch.rand(40, 2, 3, generator=torch.Generator().manual_seed(0))
    scorers = {"ink": lambda x: x.mean((1, 2)), "most": lambda x: x.max()}
    options: dict[str, Any] = {"n": 5, "repeats": 9, "within": None, **QUIET}
    one = score_sets(two(40), data, scorers, **options)
    again = score_sets(two(40), {"ink": data, "most": data}, scorers, **options)
    for name, column in one.columns().items():
        np.testing.assert_array_equal(column, again.columns()[name])
    assert (score_sets(two(40), data, scorers, seed=1, **options).score != one.score).any()
    half = {"mean": lambda x: x.bfloat16().mean((1, 2))}
    assert np.isfinite(score_sets(two(40), data, half, **options).score).all()
    frame = one.to_pandas()
    assert frame.shape == (4, 12)


def test_a_scorer_that_fails_on_one_set_loses_nothing():
    data = np.arange(40.0)

    def fails(x: Any) -> float:
        if x.max() < 20:
            raise RuntimeError("no score\nfor these")
        return total(x)

    def unknown(x: Any) -> Any:
        return np.where(x < 20, x, np.nan)

    scorers = {"fails": fails, "unknown": unknown, "shape": lambda x: x[:2], "good": total}
    options: dict[str, Any] = {"n": 4, "repeats": 20, "within": None, **QUIET}
    with pytest.raises(ScoreError, match=r"got from 'fails' on set 0 RuntimeError: no score") as e:
        score_sets(two(40), data, scorers, **options)
    found = e.value.partial
    assert np.isfinite(found.score).tolist() == [False, True, True, False, False, False, True, True]
    assert [f[:2] for f in found.failures] == [("fails", "set 0"), ("unknown", "set 1"),
                                               ("shape", "set 0"), ("shape", "set 1")]  # fmt: skip
    assert "an array of shape (2,)" in found.failures[2][2]
    assert isinstance(e.value.__cause__, RuntimeError)
    good = score_sets(two(40), data, {"good": total}, **options)
    np.testing.assert_array_equal(found.p[6:], good.p)
    assert found.complete
    features = np.ones((40, 2))
    features[33] = np.nan
    with pytest.raises(ScoreError, match=r"on set 1 ValueError: Expected finite features, got NaN"):
        score_sets(two(40), features, {"v": vendi}, **options)


def test_an_interrupt_keeps_what_is_measured():
    calls = []

    def stopped(x: Any) -> float:
        calls.append(x)
        if len(calls) == 60:
            raise KeyboardInterrupt
        return total(x)

    options: dict[str, Any] = {"n": 4, "repeats": 20, "within": None, **QUIET}
    data = np.arange(40.0)
    with pytest.warns(RuntimeWarning, match="Interrupted while 'stopped' was measured"):
        found = score_sets(two(40), data, {"m": same, "stopped": stopped, "no": total}, **options)
    assert not found.complete
    assert found.scorer.tolist() == ["m", "m", "stopped", "stopped"]
    assert np.isfinite(found.score).all()
    assert np.isfinite(found.p).all()
    calls[:] = [0] * 59
    with pytest.raises(KeyboardInterrupt):
        score_sets(two(40), data, {"stopped": stopped}, **options)


def test_score_sets_refuse_bad_input():
    sets, data = two(40, np.arange(40) % 2), np.arange(40.0)
    with pytest.raises(ValueError, match=r"of some class in every set, got n=10: n can be up to 9"):
        score_sets(sets, data, {"m": same}, n=10)
    with pytest.raises(ValueError, match=r"in every set, got n=20: n can be up to 19"):
        score_sets(sets, data, {"m": same}, n=20, within=None)
    with pytest.raises(ValueError, match="Expected labels to score within them, got none"):
        score_sets(two(40), data, {"m": same}, n=5)
    with pytest.raises(ValueError, match=r"of 40 latents, got shape \(39,\) for 'm'"):
        score_sets(sets, data[1:], {"m": same}, n=5)
    with pytest.raises(ValueError, match=r"of 40 latents, got shape \(0,\) for 'm'"):
        score_sets(sets, {"other": data}, {"m": same}, n=5)
    with pytest.raises(ValueError, match="Expected at least one scorer by name, got"):
        score_sets(sets, data, {}, n=5)
    with pytest.raises(ValueError, match="Expected within 'label' or None"):
        score_sets(sets, data, {"m": same}, within="class")  # pyright: ignore
    for option, value in (("n", 2.5), ("n", 1), ("repeats", 1), ("repeats", "9"), ("seed", -1)):
        with pytest.raises(ValueError, match=f"Expected {option} as an integer of at least"):
            score_sets(sets, data, {"m": same}, **{"n": 5, option: value})  # pyright: ignore
    with pytest.raises(ValueError, match="Expected level sets, got list"):
        score_sets([[0, 1], [2, 3]], data, {"m": same}, n=2)  # pyright: ignore
    noisy = torch.nn.Dropout()
    with pytest.raises(
        ValueError, match=r"deterministic scorer 'm' .* got Dropout in training mode"
    ):
        score_sets(sets, data, {"m": lambda x: noisy(torch.from_numpy(x))}, n=5)
