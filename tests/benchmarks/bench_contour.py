"""Level sets of signed distance fields: cells, triangles, seconds.

    pytest tests/benchmarks/bench_contour.py -s

Networks are fitted to the distance from a torus, in this process and on one thread. Each test
prints its table and asserts that the mesh is closed and lies on the level.
"""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cpwl

WIDTHS = ("3-16-16-1", "3-32-32-1", "3-32-32-32-1", "3-64-64-64-1")


def torus(z: Tensor) -> Tensor:
    """Return the signed distance from a torus of radii 0.6 and 0.25."""
    ring = torch.hypot(z[:, 0], z[:, 1]) - 0.6
    return torch.hypot(ring, z[:, 2:].squeeze(1))[:, None] - 0.25


def fit(widths: str, steps: int = 1500) -> nn.Sequential:
    """Return Linear, ReLU, ..., Linear of dashed widths, fitted to the torus."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(int(n) for n in widths.split("-")):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    module = nn.Sequential(*layers[:-1])
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        z = 2 * torch.rand(1024, 3) - 1
        loss = (module(z) - torus(z)).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    return module.eval()


@pytest.mark.usefixtures("one_thread")
def test_signed_distance_fields() -> None:
    print("\n| network | fit s | cells | subdivide s | cells cut | triangles | contour s "
          "| off the level | handles | mean error |\n" + "|---" * 10 + "|")  # fmt: skip
    for widths in WIDTHS:
        began = time.perf_counter()
        module = fit(widths)
        fitted = time.perf_counter()
        network = cpwl.Network.from_torch(module, (3,))
        box = cpwl.box([-1.0] * 3, [1.0] * 3)
        traced = time.perf_counter()
        partition = cpwl.subdivide(network, box, progress=False)
        cut = time.perf_counter()
        found = cpwl.contour(partition)
        done = time.perf_counter()
        off = float(network(found.latents).abs().max())
        mesh = cpwl.surface(found)
        error = torus(torch.from_numpy(found.vertices)).abs().mean()
        handles = mesh.body_count - mesh.euler_number // 2
        print(f"| {widths} | {fitted - began:.1f} | {partition.num_cells:,} | {cut - traced:.2f} "
              f"| {len(np.unique(found.cells)):,} | {len(found.simplices):,} | {done - cut:.2f} "
              f"| {off:.0e} | {handles} | {error:.4f} |", flush=True)  # fmt: skip
        assert partition.status.complete
        assert off < 1e-14
        assert mesh.is_watertight
        assert mesh.is_winding_consistent
        assert mesh.volume > 0
