"""Images in the order of a descriptor: closed forms, encoders of every kind, what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from approx import DecoderError, order

QUIET: dict[str, Any] = {"progress": False, "neighbourhood": None}


class Square(nn.Module):
    """z -> (z^2 / 2, 3 z): the singular values are sqrt(z^2 + 9), one a coordinate."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z.square() / 2, 3 * z], dim=1)


def images() -> Tensor:
    return torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 5.0], [-3.0, 0.5], [4.0, 4.0]])


def test_images_come_in_the_order_of_psi() -> None:
    """psi is half the sum of log(z^2 + 9); the encoder doubles."""
    found = order(images(), lambda x: 2 * x, Square(), dtype=torch.float64, **QUIET)
    psi = 0.5 * np.log(4 * images().double().numpy() ** 2 + 9).sum(axis=1)
    np.testing.assert_allclose(found.values, psi, rtol=1e-9)
    assert found.order.tolist() == np.argsort(-psi).tolist() == [4, 2, 3, 0, 1]
    torch.testing.assert_close(found.latents, 2 * images())
    assert found.table.complete


def test_encoders_of_diffusers_give_their_mode() -> None:
    def vae(x: Tensor) -> Any:
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: 2 * x))

    def tiny(x: Tensor) -> Any:
        return SimpleNamespace(latents=2 * x)

    expected = order(images(), lambda x: 2 * x, Square(), seed=0, **QUIET).values
    for encoder in (vae, tiny):
        np.testing.assert_array_equal(
            order(images(), encoder, Square(), seed=0, **QUIET).values, expected
        )


def test_latents_that_cannot_be_described_are_left_out_of_the_order() -> None:
    x = images()
    x[2, 0] = torch.nan
    found = order(x, nn.Identity(), Square(), on_error="nan", **QUIET)
    assert found.order.tolist() == [4, 3, 0, 1]
    assert np.isnan(found.values[2])


def test_an_interrupt_keeps_the_first_images() -> None:
    def encoder(x: Tensor) -> Tensor:
        if len(x) < 64:  # the last of three batches
            raise KeyboardInterrupt
        return x

    x = images()[:, :1].repeat(26, 1)
    with pytest.warns(RuntimeWarning, match="Interrupted after 128 latents"):
        found = order(x, encoder, Square(), batch=1, **QUIET)
    assert (len(found.table), len(found.latents), found.table.complete) == (128, 128, False)
    assert (found.order[:26] % 5 == 4).sum() == 25


def test_order_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="Expected a column, got 'size': there are psi, "):
        order(images(), nn.Identity(), Square(), "size")
    with pytest.raises(ValueError, match="Expected a neighbourhood for delta, got None"):
        order(images(), nn.Identity(), Square(), "delta", **QUIET)
    for none in (images()[:0], images().numpy()):
        with pytest.raises(ValueError, match="Expected at least one image in a tensor"):
            order(none, nn.Identity(), Square())  # pyright: ignore
    with pytest.raises(
        ValueError, match=r"runs on 5 images \(2,\) of torch\.float32, got .*: check"
    ):
        order(images(), nn.Linear(3, 2), Square(), **QUIET)
    with pytest.raises(ValueError, match=r"got tuple: give a function that returns them"):
        order(images(), lambda x: (x, x), Square(), **QUIET)
    with pytest.raises(ValueError, match=r"Expected latents \(5, \*latent_shape\) .* got \(2, 2\)"):
        order(images(), lambda x: x[:2], Square(), **QUIET)


def test_an_encoder_or_a_decoder_in_training_mode_is_refused() -> None:
    """Also where it is called by a function."""
    noisy = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for encoder in (noisy, lambda x: noisy(x)):
        with pytest.raises(DecoderError, match=r"'1' \(BatchNorm1d\) .* \.eval\(\) on the encoder"):
            order(images(), encoder, Square(), **QUIET)
    with pytest.raises(DecoderError, match=r"call \.eval\(\) on the decoder"):
        order(images(), nn.Identity(), noisy, **QUIET)
    assert len(order(images(), noisy.eval(), Square(), **QUIET).order) == 5
