"""Error bounds of vertices from residuals, against their rational coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import cpwl
from cpwl.engine import enumeration
from cpwl.engine.plane import refinement
from cpwl.engine.residuals import covering

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("act", [nn.ReLU, nn.Hardtanh, nn.LeakyReLU])
@pytest.mark.parametrize("dim", [1, 2])
def test_tightened_bounds_hold(act, dim, monkeypatch):
    torch.manual_seed(dim)
    width = 24 if dim == 1 else 14
    layers: list[nn.Module] = []
    for fan_in in (dim, width, width, width):
        layers += [nn.Linear(fan_in, width), act()]
    module = nn.Sequential(*layers, nn.Linear(width, 2)).double()
    with torch.no_grad():
        for p in module.parameters():
            p *= 2
    judges, tightened = [], []

    class Arbiter(enumeration.Arbiter):
        def __init__(self, *args):
            super().__init__(*args)
            judges.append(self)

    def tighten(before, *args):
        after = plain(before, *args)
        better = np.flatnonzero(after.error < before.error)[::dim]
        exact = judges[-1].points(after.names[better])
        off = np.linalg.norm(after.points[better] - exact, axis=1)
        assert (off <= after.error[better] + np.abs(exact).max(initial=0) * 2.0**-52).all()
        tightened.append(len(better))
        return after

    plain = refinement.tighten
    monkeypatch.setattr(enumeration, "Arbiter", Arbiter)
    monkeypatch.setattr(refinement, "tighten", tighten)
    monkeypatch.setattr(refinement, "_TIGHTEN_ABOVE", 1e-14)
    monkeypatch.setattr(refinement, "_TIGHTEN_SUMS_ABOVE", 0.0)
    network = cpwl.Network.from_torch(module, (dim,))
    partition = cpwl.subdivide(network, cpwl.box([-1] * dim, [1] * dim), progress=False)
    assert partition.status.exact
    assert sum(tightened) > 10


def test_few_cells_have_all_vertices():
    """On a board of n x n cells: n^2 / 4 of them have its (n + 1)^2 vertices, or nearly."""
    n = 40
    i, j, a, b = np.indices((n, n, 2, 2)).reshape(4, -1)
    vertex, cell = (i + a) * (n + 1) + j + b, i * n + j
    chosen = covering(vertex, cell, (n + 1) ** 2)
    pairs = set(zip(vertex.tolist(), cell.tolist(), strict=True))
    assert all(pair in pairs for pair in enumerate(chosen.tolist()))
    assert len(np.unique(chosen)) < 0.45 * n**2
