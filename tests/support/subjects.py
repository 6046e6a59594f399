"""Subjects of a validation, made of a module and a domain."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

import cpwl
from bridges.validation.findings import Row
from bridges.validation.subject import Subject


def exact(module: nn.Module, domain: cpwl.Domain, decoder: nn.Module | None = None) -> Subject:
    """Return a subject with both sides; the estimated one may be another module."""
    network = cpwl.Network.from_torch(module, domain.slice.latent_shape)
    partition = cpwl.subdivide(network, domain, progress=False)
    return Subject(decoder or module, domain, network, partition, math.prod(network.output_shape))


def smooth(module: nn.Module, domain: cpwl.Domain) -> Subject:
    """Return a subject without an exact side."""
    with torch.no_grad():
        dtype = next((p.dtype for p in module.parameters()), torch.float64)
        y = module(torch.zeros(1, *domain.slice.latent_shape, dtype=dtype))
    return Subject(module, domain, None, None, y[0].numel())


def perturbed(module: nn.Module, share: float = 1e-6) -> nn.Module:
    """Return a copy in float64 with one weight, the first layer's largest, off by this share."""
    other = copy.deepcopy(module).double()
    with torch.no_grad():
        weights = next(other.parameters()).view(-1)
        weights[weights.abs().argmax()] *= 1 + share
    return other


class Sawtooth(nn.Module):
    """Fold [0, 1] onto itself `depth` times: 2^depth pieces of slope +-2^depth."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth

    def forward(self, z: Tensor) -> Tensor:
        for _ in range(self.depth):
            z = 2 * torch.relu(z) - 4 * torch.relu(z - 0.5)
        return z


def picked(rows: tuple[Row, ...], **wanted: str) -> list[Row]:
    """Return the rows whose columns begin with these words."""
    return [row for row in rows if all(getattr(row, k).startswith(v) for k, v in wanted.items())]
