"""Deep networks out of reach of rational arithmetic: signs are float64's, and none is missed.

Behind some ten layers the bound on float64's error exceeds the values, while the errors themselves
stay small.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from oracles.bisection import changes, pattern_of
from torch import nn

import cpwl
from cpwl.network.program import read_matrices

pytestmark = pytest.mark.usefixtures("one_thread")

DEPTH = 24
# Half the width of the domain, so that there are some 10 to 100 cells.
HALF = {1: 1.0, 2: 0.05, 3: 0.02}
WIDTH = {1: 16, 2: 12, 3: 10}


def deep(kind: str, dim: int, seed: int) -> nn.Sequential:
    """Draw a narrow network of convolutions or dense layers, with zeros of its units near 0."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, dim))] if kind == "conv" else []
    inputs, width = (1 if kind == "conv" else dim), WIDTH[dim]
    for _ in range(DEPTH):
        affine = (
            nn.Conv1d(inputs, width, 3, padding=1) if kind == "conv" else nn.Linear(inputs, width)
        )
        weight, bias = affine.parameters()
        nn.init.normal_(weight, 0, (2 / weight[0].numel()) ** 0.5)
        nn.init.normal_(bias, 0, 0.3)
        layers += [affine, nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers).double()


def subdivided(module: nn.Module, dim: int) -> tuple[cpwl.Partition, cpwl.Partition]:
    """Partition with the signs of float64, and with those that are proven."""
    low, high = [-HALF[dim]] * dim, [HALF[dim]] * dim
    domain = cpwl.segment(low, high) if dim == 1 else cpwl.box(low, high)
    network = cpwl.Network.from_torch(module, (dim,))
    large = replace(network, matrices=read_matrices(network.program, most_entries=10))
    found, proven = (
        cpwl.subdivide(one, domain, proof="float64", progress=False) for one in (large, network)
    )
    assert proven.status.exact
    assert found.status.complete
    assert not found.status.exact
    assert found.status.arbitrated == found.status.broken == 0
    return found, proven


def patterns(partition: cpwl.Partition) -> NDArray[np.int32]:
    """Return the cells' pieces in an order of their own."""
    return np.unique(partition.pieces(), axis=0)


@pytest.mark.parametrize(
    ("kind", "dim", "seed"),
    [
        ("dense", 1, 0), ("dense", 2, 0), ("conv", 2, 3), ("conv", 3, 2),
        *(pytest.param(*case, marks=pytest.mark.nightly)
          for case in (("dense", 1, 3), ("conv", 2, 5), ("conv", 3, 0))),
        *(pytest.param(kind, dim, seed, marks=pytest.mark.nightly)
          for kind in ("dense", "conv") for dim in (1, 2, 3) for seed in range(6, 16)
          if (kind, dim) != ("conv", 1)),
    ],
)  # fmt: skip
def test_no_unit_that_switches_is_missed_where_bounds_exceed_values(kind, dim, seed) -> None:
    module = deep(kind, dim, seed)
    found, proven = subdivided(module, dim)
    assert found.num_cells == proven.num_cells
    np.testing.assert_array_equal(patterns(found), patterns(proven))
    # along chords of the domain, against forward passes alone
    rng = np.random.default_rng(seed)
    low, high = found.domain.corners.min(axis=0), found.domain.corners.max(axis=0)
    for _ in range(1 if dim == 1 else 3):
        ends = np.stack([low, high]) if dim == 1 else rng.uniform(low, high, (2, dim))

        def place(t, ends=ends):
            return ends[0] + np.asarray(t)[:, None] * (ends[1] - ends[0])

        def at(t, place=place):
            return pattern_of(module, torch.from_numpy(found.domain.slice.embed(place(t))))

        knots = changes(at, 0.0, 1.0, 1e-10)
        if dim == 1:
            inner = np.sort(found.points, axis=0)[1:-1]
            np.testing.assert_allclose(place(knots), inner, rtol=0, atol=1e-9)
        limits = torch.cat([torch.zeros(1), knots, torch.ones(1)])
        middle = (limits[1:] + limits[:-1]) / 2
        cells = cpwl.locate(found, place(middle))
        np.testing.assert_array_equal(found.pieces()[cells], at(middle).numpy())
