"""Comparisons of classes, and rows matched on confounds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support import decoders
from support.tables import quiet

from approx.populations import auroc, compare, comparisons, matched
from approx.populations.comparisons import corrected


def test_corrections_are_those_of_their_definitions():
    """Holm: 4, 3, 2 and 1 times the rising p-values, never falling; the worked case by hand."""
    p = [0.01, 0.04, 0.03, 0.005]
    assert corrected(p).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert corrected(p, "fdr").tolist() == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert corrected([[0.9], [0.8]]).tolist() == [[1.0], [1.0]]


def test_effect_sizes_of_four_numbers_by_hand():
    """1, 3 against 6, 8: variances 2, g = 0.571 x -5 / sqrt 2, with 1 - 3 / (16 - 9) = 4 / 7."""
    found = compare({"psi": [1.0, 3.0, 6.0, 8.0, np.nan]}, labels=list("aabbb"))
    assert found.hedges_g[0] == pytest.approx(4 / 7 * -5 / np.sqrt(2))
    assert (found.members[0], found.others[0], found.shift[0]) == (2, 2, -5)
    assert (found.auroc[0], found.auroc_low[0]) == (0, 0)
    assert found.p_rank[0] == pytest.approx(2 * 1 / 3)  # exact, 2 of 6 orders, two tests
    assert found.inside.tolist() == ["a"]


def test_classes_are_compared_with_the_rest_or_in_pairs():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    table = {"psi": rng.normal(labels), "delta": rng.integers(0, 5, 300), "other": labels}
    rest = compare(table, labels=labels)
    assert rest.column.tolist() == ["psi"] * 3 + ["delta"] * 3
    assert rest.outside.tolist() == ["rest"] * 6
    psi = table["psi"]
    assert rest.auroc[2] == auroc(psi[labels == 2], psi[labels != 2]).value
    pairs = compare(table, labels=labels, columns=["psi"], against="pairs")
    assert list(zip(pairs.inside, pairs.outside, strict=True)) == [(0, 1), (0, 2), (1, 2)]
    raw = [stats.mannwhitneyu(psi[labels == a], psi[labels == b]).pvalue
           for a, b in ((0, 1), (0, 2), (1, 2))]  # fmt: skip
    raw += [stats.ks_2samp(psi[labels == a], psi[labels == b]).pvalue
            for a, b in ((0, 1), (0, 2), (1, 2))]  # fmt: skip
    np.testing.assert_allclose([*pairs.p_rank, *pairs.p_shape], corrected(raw))


def test_false_findings_are_rare_under_no_difference():
    """24 tests of pure noise: with Holm's correction some finding in at most one of 20 tables."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(40):
        table = {name: rng.normal(size=60) for name in ("psi", "nu", "delta")}
        table["label"] = np.arange(60) % 4
        result = compare(table)
        found.append(min(result.p_rank.min(), result.p_shape.min()) < 0.05)
    assert np.mean(found) <= 0.1


def test_tables_of_every_kind():
    table = quiet(decoders.relu_conv()[0], decoders.latents((6, 2, 2), 12))
    labels = np.arange(12) % 2
    one = compare(table, labels=labels)
    pd = pytest.importorskip("pandas")
    frame = table.to_pandas().assign(label=labels)
    np.testing.assert_array_equal(one.p_shape, compare(frame).p_shape)
    assert list(one.to_pandas().columns)[:3] == ["column", "inside", "outside"]
    assert isinstance(one.to_pandas(), pd.DataFrame)


def test_bad_input_is_one_clear_error():
    table = {"psi": [1.0, 2.0, 3.0, 4.0]}
    with pytest.raises(ValueError, match=r"one label for each of 4 rows, got \(3,\)"):
        compare(table, labels=[0, 1, 1])
    with pytest.raises(ValueError, match="Expected labels, got none, and no column 'label'"):
        compare(table)
    with pytest.raises(ValueError, match=r"got 'nu': there are psi"):
        compare(table, labels=[0, 0, 1, 1], columns=["nu"])
    with pytest.raises(ValueError, match="got 3 of 'a' and 1 of 'b'"):
        compare(table, labels=list("aaab"))
    with pytest.raises(ValueError, match="Expected columns to compare, got none of x"):
        compare({"x": [1.0, 2.0]}, labels=[0, 1])
    with pytest.raises(ValueError, match="Expected two classes or more"):
        compare(table, labels=[1, 1, 1, 1])
    with pytest.raises(ValueError, match="Expected columns of one length"):
        compare({"psi": [1.0, 2.0], "nu": [1.0]}, labels=[0, 1])
    for rows, message in (
        ([0.0, 1.0], r"integers, or a mask \(4,\), got float64"),
        ([0, 9], "from 0 to 3, got 0 to 9"),
        ([True, False], "got bool of shape"),
    ):
        with pytest.raises(ValueError, match=f"Expected rows .*{message}"):
            compare(table, labels=[0, 0, 1, 1], rows=rows)
    for p, correction, message in (
        ([0.1, np.nan], "holm", "p-values from 0 to 1, got nan to nan"),
        ([0.1, 2.0], "fdr", "p-values from 0 to 1, got 0.1 to 2"),
        ([0.1], "bonferroni", "correction 'holm' or 'fdr', got 'bonferroni'"),
    ):
        with pytest.raises(ValueError, match=f"Expected {message}"):
            corrected(p, correction)


def test_values_that_are_not_finite_are_left_out_and_rows_may_be_a_mask():
    table = {"psi": [1.0, 3.0, np.inf, np.nan, 6.0, 8.0, -np.inf], "label": list("aaaabbb")}
    found = compare(table)
    assert (found.members[0], found.others[0], found.shift[0]) == (2, 2, -5)
    masked = compare(table, rows=np.isfinite(table["psi"]))
    assert masked.hedges_g[0] == found.hedges_g[0]


def test_an_interrupt_keeps_the_rows_that_are_done(monkeypatch):
    table = {"psi": [1.0, 2.0, 3.0, 4.0], "nu": [1.0, 5.0, 3.0, 4.0], "label": [0, 0, 1, 1]}
    whole, calls = compare(table), []

    def stopped(*pair):
        calls.append(pair)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return auroc(*pair)

    monkeypatch.setattr(comparisons, "auroc", stopped)
    found = compare(table)
    assert (found.column.tolist(), found.complete, whole.complete) == (["psi"], False, True)
    assert found.hedges_g[0] == whole.hedges_g[0]


# matching


def test_every_stratum_holds_as_many_of_every_class():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 900)
    on = {"ink": rng.normal(labels, 1), "norm": rng.normal(size=900)}
    found = matched(labels, on, bins=4)
    count = Counter(zip(found.strata.tolist(), labels[found.rows].tolist(), strict=True))
    each = [{count[s, c] for c in range(3)} for s in np.unique(found.strata)]
    assert all(len(numbers) == 1 for numbers in each)
    # as many as the rarest class has there, counted anew
    cell = [np.searchsorted(np.quantile(v, [0.25, 0.5, 0.75]), v, side="right")
            for v in on.values()]  # fmt: skip
    expected = sum(
        3 * min(((cell[0] == i) & (cell[1] == j) & (labels == c)).sum() for c in range(3))
        for i in range(4)
        for j in range(4)
    )
    assert len(found.rows) == expected == len(set(found.rows.tolist()))
    assert found.after["ink"] < found.before["ink"] / 4


def test_matching_takes_a_confound_away_and_leaves_an_effect():
    """psi = ink for all, nu = ink + class: matched, only nu still tells the classes."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 2000)
    ink = rng.normal(labels * 0.8, 1)
    table = {"psi": ink + rng.normal(size=4000), "nu": ink + labels, "label": labels}
    assert (compare(table).p_rank < 1e-6).all()
    rows = matched(labels, {"ink": ink}, bins=40).rows
    after = compare(table, rows=rows)
    assert after.p_rank[0] > 0.05
    assert after.p_rank[1] < 1e-6
    assert after.shift[1] == pytest.approx(-1, abs=0.15)


def test_matching_refuses_what_cannot_be_matched():
    with pytest.raises(ValueError, match="Expected a stratum with all of 2 classes, got none in 2"):
        matched([0, 0, 1, 1], {"ink": [0.0, 0.0, 1.0, 1.0]}, bins=2)
    with pytest.raises(ValueError, match="Expected rows of two classes"):
        matched([0, 0, 1], {"ink": [0.0, 1.0, np.nan]})
    with pytest.raises(ValueError, match=r"one label for each of 2 rows, got \(3,\)"):
        matched([0, 0, 1], {"ink": [0.0, 1.0]})


@pytest.mark.parametrize(
    "labels", [["a", None, "b", "b"], [0.0, np.nan, 1.0, 1.0], pd.array(["a", pd.NA, "b", "b"])]
)
def test_missing_labels_are_refused(labels):
    with pytest.raises(ValueError, match="Expected a label for each row, got none for 1 of 4"):
        compare({"psi": [1.0, 2.0, 3.0, 4.0]}, labels=labels)


def test_a_constant_has_no_effect_size():
    found = compare({"psi": [0.1] * 10}, labels=list("aaabbbbbbb"), columns=["psi"])
    assert np.isnan(found.hedges_g).all()
    assert matched(list("aaabbbbbbb"), {"c": [0.1] * 10}).before == {"c": 0.0}
