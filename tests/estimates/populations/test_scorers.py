"""Scorers against closed forms, and Vendi scores against another program's."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch

from approx.populations import (
    classifier_margin,
    compressed_size,
    confounds,
    reconstruction_error,
    vendi,
)

INF = float("inf")


@pytest.mark.parametrize("q", [0, 0.5, 1, 2, INF])
def test_vendi_counts_equal_features_once_and_orthogonal_ones_each(q):
    assert vendi(np.tile([[3.0, 4.0, 0.0]], (7, 1)), q) == pytest.approx(1, abs=1e-9)
    assert vendi(np.diag([1.0, 2.0, 5.0, 0.1]), q) == pytest.approx(4, abs=1e-9)


def test_vendi_of_two_features_is_its_closed_form():
    """K / 2 has the eigenvalues (1 +- cosine) / 2."""
    cosine = 0.3
    a, b = (1 + cosine) / 2, (1 - cosine) / 2
    features = [[1.0, 0.0], [2 * cosine, 2 * math.sqrt(1 - cosine**2)]]
    assert vendi(features) == pytest.approx(math.exp(-a * math.log(a) - b * math.log(b)), abs=1e-12)
    assert vendi(features, 0) == 2
    assert vendi(features, 0.5) == pytest.approx((a**0.5 + b**0.5) ** 2, abs=1e-12)
    assert vendi(features, 2) == pytest.approx(1 / (a**2 + b**2), abs=1e-12)
    assert vendi(features, INF) == pytest.approx(1 / a, abs=1e-12)


def test_order_0_is_the_rank():
    rng = np.random.default_rng(0)
    assert vendi(rng.normal(size=(40, 5)) @ rng.normal(size=(5, 30)), 0) == 5


@pytest.mark.parametrize("q", [0.5, 1, 2, INF])
def test_vendi_is_that_of_the_package_vendi_score(q):
    other = pytest.importorskip("vendi_score.vendi")
    features = np.random.default_rng(0).normal(size=(30, 8))
    expected = other.score_dual(features, q="inf" if q == INF else q)
    assert vendi(features, q) == pytest.approx(expected, rel=1e-12)


def test_vendi_of_a_feature_without_direction_is_not_known():
    assert math.isnan(vendi([[0.0, 0.0], [1.0, 0.0]]))
    assert math.isnan(vendi(np.zeros((0, 3))))


def test_vendi_refuses_what_is_not_finite():
    features = np.ones((5, 3))
    features[3, 1] = features[4, 0] = np.nan
    with pytest.raises(ValueError, match=r"in 2 of 5 rows, the first in row 3: remove or replace"):
        vendi(features)
    with pytest.raises(ValueError, match=r"Expected features \(n, F\) and an order q >= 0"):
        vendi(np.ones((5, 3)), -1)


def test_compressed_size_is_that_of_8_bit_pixels():
    image = np.random.default_rng(0).random((2, 1, 9, 9)).astype(np.float32) * 1.4 - 0.2
    eight = [np.clip(np.round(255 * p), 0, 255).astype(np.uint8).tobytes() for p in image]
    assert compressed_size(image).tolist() == [len(zlib.compress(b, 9)) for b in eight]
    assert compressed_size(torch.from_numpy(image)).tolist() == compressed_size(image).tolist()
    image[1, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="got NaN among them"):
        compressed_size(image)


def test_margin_and_confounds():
    logits = torch.tensor([[3.0, -1.0, 2.5], [0.0, 0.0, -4.0]])
    assert classifier_margin(torch.nn.Identity())(logits).tolist() == [0.5, 0.0]
    found = confounds(np.array([[[0.0, 1.0]], [[0.5, 0.5]]]), latents=[[3.0, 4.0], [0.0, 2.0]])
    assert found["ink"].tolist() == [0.5, 0.5]
    assert found["norm"].tolist() == [5.0, 2.0]


def test_orders_next_to_one_are_order_one():
    features = np.random.default_rng(0).normal(size=(50, 8))
    for q in (1 + 2**-52, 1 - 2**-53, 1 + 1e-7):
        assert vendi(features, q) == pytest.approx(vendi(features), rel=1e-6)


def test_decoded_images_of_another_shape_are_refused():
    error = reconstruction_error(lambda x: x.unsqueeze(1), lambda z: z)
    with pytest.raises(ValueError, match=r"Expected images of shape \(4, 6, 6\) from the decoder"):
        error(torch.rand(4, 6, 6))
