"""Scorers against closed forms, and Vendi scores against another program's."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch

from approx import DecoderError, level_sets
from approx.populations import (
    auroc,
    classifier_margin,
    compare,
    compressed_size,
    confounds,
    corrected,
    matched,
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
    assert math.isnan(vendi([]))


def test_vendi_refuses_what_is_not_finite():
    features = np.ones((5, 3))
    features[3, 1] = features[4, 0] = np.nan
    with pytest.raises(ValueError, match=r"in 2 of 5 rows, the first in row 3: remove or replace"):
        vendi(features)
    with pytest.raises(ValueError, match=r"Expected features \(n, F\) and an order q >= 0"):
        vendi(np.ones((5, 3)), -1)


def test_compressed_size_is_that_of_8_bit_pixels():
    whole = np.random.default_rng(0).integers(0, 256, (2, 1, 9, 9), dtype=np.uint8)
    sizes = [len(zlib.compress(picture.tobytes(), 9)) for picture in whole]
    image = (whole / 255).astype(np.float32)
    for given in (whole, torch.from_numpy(whole), image, torch.from_numpy(image).requires_grad_()):
        assert compressed_size(given).tolist() == sizes
        assert confounds(given)["ink"] == pytest.approx(whole.mean(axis=(1, 2, 3)) / 255)
    for value, shown in ((np.nan, "nan to nan"), (-0.2, "-0.2 to 0.976"), (255, "0 to 255")):
        image[1, 0, 0, 0] = value
        with pytest.raises(
            ValueError, match=rf"numbers in \[0, 1\], got .* from {shown}: scale or"
        ):
            compressed_size(image)
    with pytest.raises(
        ValueError, match=r"Expected one latent for each of 2 images, got shape \(3,"
    ):
        confounds(whole, np.zeros((3, 2)))


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


def test_modules_in_training_mode_are_refused():
    noisy, images = torch.nn.Dropout(), torch.rand(4, 3)
    for scorer, part in (
        (classifier_margin(noisy), "classifier"),
        (reconstruction_error(noisy, torch.nn.Identity()), "encoder"),
        (reconstruction_error(torch.nn.Identity(), noisy), "decoder"),
    ):
        with pytest.raises(DecoderError, match=rf"Dropout in .* call \.eval\(\) on the {part}"):
            scorer(images)


def test_a_classifier_that_returns_no_logits_is_refused():
    for other in (lambda x: (x, x), lambda x: x[:, :1], lambda x: x[1:]):
        with pytest.raises(ValueError, match=r"Expected logits \(4, C\) of two classes or more"):
            classifier_margin(other)(torch.rand(4, 3))


@pytest.mark.parametrize(
    "kind",
    [
        torch.tensor,
        lambda x: torch.tensor(x).bfloat16(),
        lambda x: torch.tensor(x).half(),
        lambda x: torch.tensor(x).requires_grad_(),
        lambda x: list(torch.tensor(x).bfloat16().requires_grad_()),
        lambda x: np.array(x, np.float16),
        lambda x: np.array(x, object),
    ],
)
def test_numbers_come_in_every_dress(kind):
    """Of tensors in half precision or with gradients, lists of them, and arrays."""
    x = [1.0, 3.0, 6.0, 8.0]
    assert auroc(kind(x[:2]), kind(x[2:])) == auroc(x[:2], x[2:])
    assert vendi(kind([[1.0, 0.0], [0.0, 2.0]])) == pytest.approx(2)
    labels = [0.0, 0.0, 1.0, 1.0]
    assert compare({"psi": kind(x)}, labels=kind(labels)).shift.tolist() == [-5]
    assert matched(kind(labels), {"ink": kind([1.0, 9.0, 9.0, 9.0])}, bins=2).rows.tolist() == [
        1,
        2,
    ]
    assert [rows.tolist() for rows in level_sets({"psi": kind(x)}, bins=2)] == [[0, 1], [2, 3]]
    assert corrected(kind([0.25, 0.5])).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("other", [list("ab"), np.array([1j, 2.0]), [{}, {}]])
def test_what_is_no_number_is_refused_by_name(other):
    for call, name in (
        (lambda: auroc(other, [1.0]), "inside"),
        (lambda: vendi(other), "features"),
        (lambda: level_sets({"psi": other}), "column 'psi'"),
        (lambda: corrected(other), "p"),
        (lambda: compressed_size(other), "images"),
    ):
        with pytest.raises(ValueError, match=f"Expected real numbers in {name}, got .*: convert"):
            call()
