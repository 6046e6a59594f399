"""Descriptors in white coordinates: closed forms, and what a change of the latents leaves alone."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from support import decoders
from torch import Tensor, nn

from approx import bind, describe, whitening

OPTIONS = {"seed": 0, "progress": False}


def correlated(count: int = 400, size: int = 3) -> Tensor:
    mix = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-1.0, 0.3, 0.1]])[:size, :size]
    return decoders.latents((size,), count, seed=3) @ mix.mT + 5


def test_codes_are_white_in_their_coordinates_and_come_back():
    codes = correlated()
    white = whitening(codes)
    u = white.coordinates(codes.double())
    torch.testing.assert_close(torch.cov(u.mT), torch.eye(3).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(u.mean(dim=0), torch.zeros(3).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(white.latents(u), codes.double())
    assert white.coordinates(codes).dtype == torch.float32


def test_psi_of_a_linear_decoder_in_closed_form():
    codes, layer = correlated(), nn.Linear(3, 7, bias=False)
    white = whitening(codes)
    A, C = layer.weight.detach().double(), torch.cov(codes.double().mT)
    expected = 0.5 * torch.logdet(A.mT @ A) + 0.5 * torch.logdet(C)
    table = describe(white.decoder(layer), white.coordinates(codes[:4]), **OPTIONS)
    np.testing.assert_allclose(table.psi, expected.item(), atol=1e-4)
    assert white.log_volume == pytest.approx(0.5 * torch.logdet(C).item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaling_the_latents_leaves_everything_in_white_coordinates_unchanged(dtype):
    module, shape = decoders.relu_mlp()
    module.to(dtype)
    codes, c = decoders.latents(shape, 200).to(dtype) * 3, 0.01

    def tables(scale):
        shrunk = nn.Sequential(nn.Linear(12, 12, dtype=dtype), copy.deepcopy(module))
        with torch.no_grad():
            shrunk[0].weight.copy_(torch.eye(12) / scale)
            shrunk[0].bias.zero_()
        white, z = whitening(codes * scale), codes[:5] * scale
        options = OPTIONS | {"neighbourhood": (4, 0.3), "method": "exact"}
        plain = describe(shrunk, z, **options)
        return plain, describe(white.decoder(shrunk), white.coordinates(z), **options)

    (plain, white), (plain_c, white_c) = tables(1.0), tables(c)
    np.testing.assert_allclose(plain_c.psi - plain.psi, 12 * math.log(1 / c), rtol=1e-4)
    np.testing.assert_allclose(white_c.psi, white.psi, atol=1e-3)
    np.testing.assert_allclose(white_c.nu, white.nu, rtol=1e-4)
    np.testing.assert_allclose(white.psi - plain.psi, whitening(codes).log_volume, atol=1e-3)
    assert white.delta.min() > 0
    assert np.abs(white_c.delta - white.delta).max() <= 1  # a knot at the radius itself
    assert (plain_c.delta != plain.delta).all()


def test_posteriors_add_their_variances():
    means = torch.zeros(4, 2, 1)
    means[:, 0, 0] = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    variances = torch.tensor([[1.0], [9.0]]).expand(4, 2, 1)
    white = whitening(means, variances)
    assert white.log_volume == pytest.approx(0.5 * math.log((4 / 3 + 1) * 9))
    assert white.latent_shape == (2, 1)
    assert white.coordinates(means).shape == means.shape


def test_arguments_of_a_conditional_decoder_stay_bound():
    layer, codes, scale = nn.Linear(3, 5), correlated(), torch.arange(1.0, 5)[:, None]

    def conditional(z, scale):
        return scale * layer(z)

    white = whitening(codes)
    decode = white.decoder(bind(conditional, scale=scale))
    inside = describe(decode, white.coordinates(codes[:4]), **OPTIONS)
    np.testing.assert_allclose(np.diff(inside.psi), 3 * np.diff(np.log([1, 2, 3, 4])), atol=1e-3)


@pytest.mark.parametrize(
    ("codes", "variances", "message"),
    [
        (torch.ones(5), None, r"codes \(N, \*latent_shape\), got shape \(5,\): encode"),
        (torch.full((5, 2), math.nan), None, "with NaN or infinite entries"),
        (torch.ones(5, 2), None, "vary in all 2 directions, got 5 that vary in 0"),
        (correlated(3), None, "vary in all 3 directions, got 3 that vary in 2: give more"),
        (correlated(1), None, "got 1 that vary in 0"),
        (correlated(5), torch.ones(4, 3), r"shape \(5, 3\), got shape \(4, 3\): exp"),
        (correlated(5), -torch.ones(5, 3), "with -1: exp"),
    ],
)
def test_codes_that_have_no_white_coordinates_are_refused(codes, variances, message):
    with pytest.raises(ValueError, match=message):
        whitening(codes, variances)
