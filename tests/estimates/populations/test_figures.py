"""Figures of populations: what they show, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy import stats

from approx import level_sets, plot, score_sets


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


def strip(ax: Any) -> Any:
    (picture,) = ax.get_images()
    return np.asarray(picture.get_array())


def flat(count: int, size: int = 3) -> torch.Tensor:
    """Images of one grey each: image i has the value i / count."""
    return (torch.arange(count) / count)[:, None, None].expand(count, size, size)


def test_joint_distributions_by_class():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    table = {"psi": rng.normal(10 * labels), "nu": rng.normal(10 * labels), "delta": rng.random(60)}
    figure = plot.joint(table, labels=labels, names={0: "zero"})
    figure.canvas.draw()
    panels = figure.axes[:6]
    assert [ax.get_xlabel() != "" for ax in panels] == [False] * 3 + [True] * 3
    assert len(panels[0].patches) == 4  # two classes, each filled and outlined
    dots = panels[1].collections[0]
    assert len(dots.get_offsets()) == 60
    whole = stats.spearmanr(table["psi"], table["nu"]).statistic
    inner = sum(
        (labels == c).sum()
        / 60
        * stats.spearmanr(*(table[n][labels == c] for n in ("psi", "nu")))[0]
        for c in (0, 1)
    )
    expected = f"$r_s$ = {whole:.2f}, within {inner:.2f}".replace("-", "\N{MINUS SIGN}")
    assert panels[1].get_title(loc="left") == expected
    assert [t.get_text() for t in figure.axes[-1].get_legend().get_texts()] == ["zero", "1"]


def test_joint_distributions_leave_out_what_is_not_finite():
    table = {"psi": [1.0, np.nan, 3.0, 4.0], "nu": [1.0, 2.0, np.inf, 9.0]}
    figure = plot.joint(table, ("psi", "nu"))
    assert len(figure.axes[1].collections[0].get_offsets()) == 2
    with pytest.raises(ValueError, match="got 'delta': there are psi, nu"):
        plot.joint(table)
    with pytest.raises(
        ValueError, match=r"one label for each of 4 rows .* got 2 columns, 3 labels"
    ):
        plot.joint(table, ("psi", "nu"), [0, 1, 1])


def test_scores_show_their_intervals_and_the_permuted_sets():
    data = np.r_[np.zeros(30), np.random.default_rng(0).normal(size=30)]
    data[30:] += 5
    sets = level_sets({"psi": range(60)}, bins=3)
    scorers = {"mean": lambda x: x, "most": np.max}
    found = score_sets(sets, data, scorers, n=6, repeats=60, within=None, progress=False)
    figure = plot.set_scores(found, names={"most": "largest"})
    figure.canvas.draw()
    assert [ax.get_ylabel() for ax in figure.axes] == ["mean", "largest"]
    ax = figure.axes[0]
    full, open_ = ax.lines[-2:]
    assert full.get_xdata().tolist() == np.flatnonzero(found.p[:3] < 0.05).tolist()
    assert len(full.get_xdata()) + len(open_.get_xdata()) == 3
    assert ax.get_xticks().tolist() == [-0.5, 0.5, 1.5, 2.5]
    (bars,) = ax.containers
    ends = np.array([segment[:, 1] for segment in bars[2][0].get_segments()])
    np.testing.assert_allclose(ends, np.stack([found.score_low, found.score_high], 1)[:3])


def test_a_plate_has_level_sets_as_columns_and_classes_as_rows():
    labels = np.array([0, 1] * 6)
    labels[labels.size // 2 :] = 1  # class 0 is in the first sets alone
    sets = level_sets({"psi": range(12), "label": labels}, bins=3)
    figure = plot.plate(flat(12), sets, k=1, names={1: "one"})
    axes = np.array(figure.axes).reshape(2, 3)
    assert [len(ax.get_images()) for ax in axes[0]] == [1, 1, 0]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["0", "one"]
    assert axes[0, 0].get_title() == r"$\psi$: 0.00 to 3.67"
    # the one nearest to the median of class 1 in set 2 (rows 8 to 11): 9, the first of two
    assert np.allclose(strip(axes[1, 2]), 9 / 12)
    two = np.array(plot.plate(flat(12), sets, k=2).axes).reshape(2, 3)[1, 2]
    assert strip(two).shape == (3, 3 + 1 + 3)
    assert strip(two)[0, [0, 3, 4]] == pytest.approx([9 / 12, 1, 10 / 12])
    with pytest.raises(ValueError, match=r"Expected an image for each of 12 rows .* got 11"):
        plot.plate(flat(11), sets)


def test_the_ends_of_every_class_from_the_lowest_to_the_highest():
    values = np.array([3.0, 1.0, np.nan, 2.0, 9.0, 8.0, 7.0, 6.0])
    figure = plot.ends(flat(8), values, [0, 0, 0, 0, 1, 1, 1, 1], k=2)
    low, high, _, last = figure.axes
    assert strip(low)[0, [0, 4]] == pytest.approx([1 / 8, 3 / 8])
    assert strip(high)[0, [0, 4]] == pytest.approx([3 / 8, 0 / 8])
    assert strip(last)[0, [0, 4]] == pytest.approx([5 / 8, 4 / 8])
    with pytest.raises(ValueError, match=r"each of 3 rows and k >= 1, got 8"):
        plot.ends(flat(8), values, [0, 0, 1])
