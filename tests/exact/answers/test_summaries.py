"""A partition in a few numbers: against closed forms, and unknown where they are unknown."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from support.samples import mlp
from torch import nn

import cpwl


def found(module, low, high):
    network = cpwl.Network.from_torch(module, (len(low),))
    return cpwl.summary(cpwl.subdivide(network, cpwl.box(low, high), progress=False))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_closed_forms_of_a_stretch_by_half_below_zero(dim):
    """Each axis from -1 to 3: a quarter is halved, and the image is a box."""
    numbers = found(nn.LeakyReLU(0.5), [-1.0] * dim, [3.0] * dim)
    halved = [math.comb(dim, k) * 0.25**k * 0.75 ** (dim - k) for k in range(dim + 1)]
    reached = np.cumsum(halved[::-1])  # psi = -k log 2 ascends as k falls
    for level in (5, 25, 50, 75, 95):
        k = dim - int(np.searchsorted(reached, level / 100 - 1e-12))
        assert numbers[f"psi_q{level:02d}"] == pytest.approx(-k * math.log(2))
    mean = -dim / 4 * math.log(2)
    assert numbers["psi_mean"] == pytest.approx(mean)
    if dim == 3:  # whether a map of 3-D space onto itself is injective is not decided
        assert math.isnan(numbers["entropy"])
    else:
        assert numbers["entropy"] == pytest.approx(dim * math.log(4) + mean)
    assert numbers["total_image_volume"] == pytest.approx(3.5**dim)
    assert (numbers["cells"], numbers["regions"], numbers["squeezed"]) == (2**dim, 2**dim, 0)
    if dim == 1:
        assert {numbers[f"nu_{k}"] for k in ("mean", "q05", "q50", "q95")} == {1.0}


def test_volumes_weigh_not_cells():
    """Repeat each cell's psi as often as random points fall into it."""
    network = cpwl.Network.from_torch(mlp(2, 8, 6, 3, seed=3), (2,))
    partition = cpwl.subdivide(network, cpwl.box([-2, -2], [2, 2]), progress=False)
    points = np.random.default_rng(0).uniform(-2, 2, (40_000, 2))
    drawn = cpwl.local_scaling(partition)[cpwl.locate(partition, points)]
    numbers = cpwl.summary(partition)
    stderr = drawn.std() / len(drawn) ** 0.5
    assert abs(numbers["psi_mean"] - drawn.mean()) < 4 * stderr
    for level in (0.05, 0.25, 0.5, 0.75, 0.95):
        value = numbers[f"psi_q{round(100 * level):02d}"]
        slack = 4 * (level * (1 - level) / len(drawn)) ** 0.5
        assert (drawn < value - 1e-9).mean() - slack <= level <= (drawn <= value).mean() + slack


def test_entropy_is_unknown_where_images_overlap_and_minus_infinity_where_they_are_flat():
    class Fold(nn.Module):
        def forward(self, x):
            return x.abs()

    numbers = found(Fold(), [-1.0, 1.0], [1.0, 2.0])
    assert math.isnan(numbers["entropy"])
    assert (numbers["psi_mean"], numbers["total_image_volume"]) == (0.0, 2.0)
    numbers = found(nn.ReLU(), [-1.0, 1.0], [3.0, 2.0])
    assert (numbers["entropy"], numbers["squeezed"]) == (-math.inf, 0.25)
    assert numbers["total_image_volume"] == 3.0


def test_cells_of_one_map_are_one_region():
    identity = nn.Sequential(nn.LeakyReLU(0.5), nn.LeakyReLU(2.0))
    numbers = found(identity, [-1.0, -1.0], [1.0, 1.0])
    assert (numbers["cells"], numbers["regions"]) == (4, 1)


def test_what_is_unknown_is_nan_under_the_same_names(tmp_path):
    network = cpwl.Network.from_torch(mlp(3, 12, 12, 3), (3,))
    cube = cpwl.box([-3] * 3, [3] * 3)
    whole = cpwl.subdivide(network, cube, progress=False)
    cpwl.save_partition(whole, tmp_path / "p.npz")
    part = cpwl.subdivide(network, cube, memory=2**17, progress=False)
    assert not part.status.complete
    known = cpwl.summary(whole)
    for partition in (part, cpwl.load_partition(tmp_path / "p.npz")):
        numbers = cpwl.summary(partition)
        assert list(numbers) == list(known)
        assert numbers["cells"] == partition.num_cells
        assert numbers["complete"] == partition.status.complete
        unknown = {key for key, value in numbers.items() if math.isnan(value)}
        assert unknown == set(known) - {"complete", "cells", "seconds"}, partition


def test_numbers_are_plain():
    numbers = found(mlp(2, 5, 3), [-1.0, -1.0], [1.0, 1.0])
    assert {type(value) for value in numbers.values()} <= {bool, int, float}
    assert json.loads(json.dumps(numbers)) == numbers
    assert all(torch.as_tensor(value).ndim == 0 for value in numbers.values())


def test_one_pass_over_the_maps_tells_what_each_function_tells_alone(monkeypatch):
    network = cpwl.Network.from_torch(mlp(2, 8, 6, 3, seed=3), (2,))
    partition = cpwl.subdivide(network, cpwl.box([-0.1, -0.1], [0.1, 0.1]), progress=False)
    entropy, image = cpwl.entropy(partition), cpwl.total_image_volume(partition)
    regions, passes = cpwl.regions(partition).count, []
    stream = cpwl.affine.columns_and_offsets

    def counted(*args, **kwargs):
        passes.append(args)
        return stream(*args, **kwargs)

    monkeypatch.setattr(cpwl.affine, "columns_and_offsets", counted)
    numbers = cpwl.summary(partition)
    assert len(passes) == 1
    assert (numbers["regions"], numbers["total_image_volume"]) == (regions, image.value)
    assert entropy.overlap.injective == "yes"
    assert numbers["entropy"] == pytest.approx(entropy.value, rel=1e-14)
