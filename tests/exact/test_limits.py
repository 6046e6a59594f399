"""Limits and tolerances that no work can keep: refused, by name, before the work."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import cpwl
from cpwl.checks import Limits, Tolerances


@pytest.fixture(scope="module")
def partition():
    network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    return cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]), progress=False)


NORMAL = ([0, 0], [[1, 0], [0, 1]])
LIMITS = {
    "memory": lambda p, x: cpwl.subdivide(p.network, p.domain, memory=x, progress=False),
    "memory ": lambda p, x: cpwl.local_complexity(p.network, [0, 0], 1, np.eye(2), memory=x),
    "chunk": lambda p, x: next(cpwl.affine_maps(p, chunk=x)),
    "the limit of cells": lambda p, x: cpwl.check(p, limits=Limits(cells=x)),
    "the limit of bytes": lambda p, x: cpwl.check(p, limits=Limits(bytes=x)),
}
TOLERANCES = {
    "samples": lambda p, x: cpwl.check(p, samples=x),
    "the tolerance of knots": lambda p, x: cpwl.check(p, tolerances=Tolerances(knots=x)),
    "tolerance": lambda p, x: cpwl.local_rank(p, tolerance=x),
    "tolerance ": lambda p, x: cpwl.regions(p, tolerance=x),
    "tolerance  ": lambda p, x: cpwl.overlap(p, tolerance=x),
    "tolerance   ": lambda p, x: cpwl.locate(p, [[0, 0]], tolerance=x),
    "tolerance    ": lambda p, x: cpwl.cell_masses(p, cpwl.Gaussian(*NORMAL), tolerance=x),
    "tolerance     ": lambda p, x: cpwl.entropy(p, tolerance=x),
}


@pytest.mark.parametrize("value", [0, -1, -(2**30), math.nan, -math.inf, "much", True, None])
@pytest.mark.parametrize("name", LIMITS)
def test_limits_below_one_are_refused(partition, name, value):
    if name == "chunk" and value in (None, True):
        return
    with pytest.raises(ValueError, match=rf"Expected (a )?{name.strip()} .*, got .*\. \w+"):
        LIMITS[name](partition, value)


@pytest.mark.parametrize("value", [-1, -1e-9, math.nan, math.inf, "much"])
@pytest.mark.parametrize("name", TOLERANCES)
def test_tolerances_below_zero_are_refused(partition, name, value):
    with pytest.raises(ValueError, match=rf"Expected {name.strip()} as .*, got .*\. Leave it out"):
        TOLERANCES[name](partition, value)


def test_small_limits_that_can_be_kept_are_kept(partition):
    assert not cpwl.subdivide(
        partition.network, partition.domain, memory=1, progress=False
    ).status.complete
    assert cpwl.check(partition, samples=0).ok
