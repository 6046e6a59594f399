"""Domains whose axes have very different lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cpwl

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("lengths", [[1e8, 1e4, 1.0], [1.0, 1e8, 1e4], [1e4, 1.0, 1e8]])
@pytest.mark.parametrize("even", [True, False])
def test_vertices_are_in_the_domain_and_on_its_sides_axis_by_axis(lengths, even):
    torch.manual_seed(0)
    layers = torch.nn.Linear(3, 10), torch.nn.ReLU(), torch.nn.Linear(10, 10), torch.nn.ReLU()
    module = torch.nn.Sequential(*layers, torch.nn.Linear(10, 2)).double()
    length = np.array(lengths)
    with torch.no_grad():  # even: all axes bend as often; otherwise the longest one alone
        module[0].weight *= torch.from_numpy(3 / length) if even else 3 / length.max()
    network = cpwl.Network.from_torch(module, (3,))
    partition = cpwl.subdivide(network, cpwl.box([0, 0, 0], lengths), progress=False)
    assert partition.status.exact
    assert cpwl.check(partition).ok
    share = partition.points / length
    assert share.min() >= -1e-11
    assert share.max() <= 1 + 1e-11
    for facet in np.flatnonzero((partition.facet_cells < 0).any(axis=1)):
        corners = share[partition.facet_corners[slice(*partition.facet_offsets[facet : facet + 2])]]
        off = np.minimum(np.abs(corners).max(axis=0), np.abs(corners - 1).max(axis=0))
        assert off.min() <= 1e-11
