"""Knots of twelve architectures against signs at the vertices that they tell themselves."""

from __future__ import annotations

import pytest
import torch
from support.decoders import latents
from support.signed import MAKERS, changed, make
from torch import nn

from approx import knots


def miscounted(module: nn.Module, batch: int, radius: float) -> tuple[int, int]:
    """Return how many latents are miscounted, and how many knots there are."""
    z = latents((12,), batch, seed=5).double()
    found = knots(module, z, radius=radius, batch=250)
    truth = changed(module, z, found.directions, radius)
    assert not found.undecided.any()
    hull = knots(module, z[:40], radius=radius, directions=found.directions, method="hull")
    assert torch.equal(hull.count, truth[:40].to(hull.count))
    return int((found.count != truth).sum()), int(truth.sum())


@pytest.mark.parametrize("name", MAKERS)
def test_no_latent_of_some_is_off(name):
    off, met = miscounted(make(name), 300, 1e-3)
    assert off == 0
    assert met > 5


@pytest.mark.nightly
@pytest.mark.parametrize("radius", [1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("name", MAKERS)
def test_no_latent_of_2000_is_off(name, radius):
    off, met = miscounted(make(name), 2000, radius)
    assert off == 0
    assert radius < 1e-3 or met > 50


@pytest.mark.nightly
def test_curvature_at_the_threshold_is_seen():
    # two of these latents are on the other side of the threshold than their derivatives say
    module = make("transformer")
    for part in module.modules():
        if isinstance(part, nn.Linear):
            with torch.no_grad():
                part.weight *= 3
    assert miscounted(module, 2000, 1e-3)[0] == 0


def test_a_negative_control_is_off():
    module, z = make("pooling of relu"), latents((12,), 200, seed=5).double()
    found = knots(module, z, radius=1e-2)
    assert torch.equal(found.count, changed(module, z, found.directions, 1e-2).to(found.count))
    assert not torch.equal(found.count, changed(module, z, -2 * found.directions, 1e-2).double())
