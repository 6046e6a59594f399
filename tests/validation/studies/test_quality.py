"""Precision and recall against loops written by hand, ink and edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bridges.studies.quality import ink_and_edges, precision_recall


def _share(inside, around, k):
    """Return the share of `inside` within a ball of `around`, by loops."""
    hits = 0
    for point in inside:
        hit = False
        for i, centre in enumerate(around):
            others = sorted(math.dist(centre, o) for j, o in enumerate(around) if j != i)
            hit = hit or math.dist(centre, point) <= others[k - 1]
        hits += hit
    return hits / len(inside)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_loops(k):
    rng = np.random.default_rng(k)
    real, drawn = rng.normal(size=(23, 4)), 0.7 * rng.normal(size=(17, 4)) + 1.2
    expected = _share(drawn, real, k), _share(real, drawn, k)
    assert 0 < expected[0] < 1
    assert expected[0] != expected[1]
    assert precision_recall(real, drawn, k) == pytest.approx(expected, abs=1e-12)


def test_too_few_features_are_refused():
    with pytest.raises(ValueError, match=r"Expected more than k = 3 features .* got 3 and 9"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))


def test_ink_and_edges_are_those_of_loops():
    pictures = torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    found = ink_and_edges(pictures)
    for i, picture in enumerate(pictures[:, 0].tolist()):
        down = [(picture[r + 1][c] - picture[r][c]) ** 2 for r in range(3) for c in range(5)]
        across = [(picture[r][c + 1] - picture[r][c]) ** 2 for r in range(4) for c in range(4)]
        ink = sum(map(sum, picture)) / 20
        assert found["ink"][i] == pytest.approx(ink, rel=1e-5)
        assert found["edge"][i] == pytest.approx(sum(down) / 15 + sum(across) / 16, rel=1e-5)
