"""No alarm where rounding is coarse: weights of any size, and latents far from zero."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import cpwl

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = [  # exponent of the weights, origin, size of the domain, dimension, activation
    (0, 0.0, 1.0, 2, nn.ReLU()),
    (100, 1e6, 1e-3, 2, nn.Hardtanh()),
    (100, 1e6, 1e3, 2, nn.ReLU()),
    (100, 1e6, 1e-3, 1, nn.ReLU()),
    (-100, 1e6, 1.0, 3, nn.LeakyReLU(0.1)),
    (-100, -1e9, 1.0, 2, nn.ReLU()),
]


def far_out(seed, exponent, origin, size, dim, act):
    """A random network that bends around `origin`, its weights 2^exponent times as large."""
    draw = np.random.default_rng(seed)
    sizes = [8, *([24] if dim < 3 else [8, 8]), 5]
    layers = []
    start = origin * draw.normal(size=8)
    for i, (a, b) in enumerate(pairwise(sizes)):
        layer = nn.Linear(a, b).double()
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(draw.normal(size=(b, a)) * 2.0**exponent / a**0.5))
            bias = torch.from_numpy(draw.normal(size=b) * size / 2 * 2.0 ** (exponent * (i + 1)))
            layer.bias.copy_(bias - (0 if i else layer.weight @ torch.from_numpy(start)))
        layers += [layer, act]
    network = cpwl.Network.from_torch(nn.Sequential(*layers[:-1]), (8,))
    basis = np.linalg.qr(draw.normal(size=(8, dim)))[0].T
    domain = cpwl.Slice(start, basis).box([-2 * size] * dim, [2 * size] * dim)
    return cpwl.subdivide(network, domain, progress=False)


@pytest.mark.parametrize("case", CASES)
def test_rounding_raises_no_alarm(case):
    partition = far_out(3, *case)
    assert partition.num_cells > 10
    report = cpwl.check(partition)
    assert report.ok, report


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_rounding_raises_no_alarm_on_more_networks(seed):
    for case in CASES:
        assert cpwl.check(far_out(seed, *case)).ok


@pytest.mark.parametrize("case", CASES)
def test_faults_are_found_all_the_same(case):
    partition = far_out(3, *case)
    # one vertex, neither on the boundary nor nearby, moves by a thousandth of the domain
    middle = np.abs(partition.points).max(axis=1) < 1.5 * case[2]
    moved = partition.points.copy()
    moved[np.flatnonzero(middle)[0]] += 4e-3 * case[2]
    assert not cpwl.check(replace(partition, points=moved)).ok
