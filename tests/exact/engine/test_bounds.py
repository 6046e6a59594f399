"""Bounds on rounding errors over a domain, against fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import cpwl
from cpwl.engine.bounds import Bounds

MASK = torch.tensor([True, True, False, False])
LARGE = 1e8
WITH_CONSTANTS = {
    "cat": lambda x: torch.cat([torch.full((x.shape[0], 2), LARGE), x], dim=1),
    "pad": lambda x: functional.pad(x, (2, 0), value=LARGE),
    "masked_fill": lambda x: torch.cat([x, x], dim=1).masked_fill(MASK, LARGE),
    "where": lambda x: torch.where(MASK, LARGE, torch.cat([x, x], dim=1)),
    "add": lambda x: functional.pad(x, (2, 0)) + LARGE * MASK,
}


@pytest.mark.parametrize("name", WITH_CONSTANTS)
def test_constants_between_the_entries_count(name):
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 64).double()

        def forward(self, x):
            return torch.relu(self.layer(WITH_CONSTANTS[name](x)))

    module = Mixed()
    network, domain = cpwl.Network.from_torch(module, (2,)), cpwl.box([-1, -1], [1, 1])
    slack = Bounds(network, domain.slice, domain.corners).stage(0).slack
    z = np.array([0.3, -0.7])
    computed = network.preactivations(z[None], 0)[0].tolist()
    inputs = [Fraction(x) for x in (LARGE, LARGE, *z.tolist())]
    off = _errors(computed, _layer(module.layer, inputs))
    assert off.max() > 1e-9
    assert (off <= slack).all()


def _layer(layer: nn.Linear, inputs: list[Fraction]) -> list[Fraction]:
    W, b = (p.detach().tolist() for p in (layer.weight, layer.bias))
    return [_exact(row, inputs) + Fraction(c) for row, c in zip(W, b, strict=True)]


def _errors(computed: list[float], exact: list[Fraction]) -> np.ndarray:
    pairs = zip(computed, exact, strict=True)
    return np.array([float(abs(Fraction(h) - value)) for h, value in pairs])


def _exact(row: list[float], inputs: list[Fraction]) -> Fraction:
    return sum((Fraction(w) * x for w, x in zip(row, inputs, strict=True)), Fraction(0))
