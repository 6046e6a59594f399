"""Cost of the exact side beside a step of training.

    pytest tests/benchmarks/bench_training.py -s

CPU milliseconds of one process with one thread, all of them taking turns; the best of the rounds
counts. A step is Adam on 256 latents in float32. Target: 5 ms for `with_weights` on 2-20-20-20-3.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from benchmarks.common import make_network
from torch import nn

import cpwl

ROUNDS = 20


def convolutional() -> nn.Sequential:
    """Return a decoder from the plane to images of 8 x 8, 244 units."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(2, 64), nn.ReLU(), nn.Unflatten(1, (16, 2, 2)),
        nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 4, 2, 1),
    ).eval()  # fmt: skip


@pytest.mark.usefixtures("one_thread")
def test_overhead() -> None:
    names = ("step", "with_weights", "subdivide", "summary", "regions", "from_torch")
    print("\n| network | cells | regions | " + " ms | ".join(names) + " ms | all three / step |\n"
          + "|---" * 10 + "|")  # fmt: skip
    for name in ("2-20-20-20-3", "2-64-64-64-3", "convolutional"):
        module = convolutional() if name == "convolutional" else make_network(name)
        best = _row(name, module)
        if name == "2-20-20-20-3":
            assert best["with_weights"] < 5e-3


def _row(name: str, module: nn.Module) -> dict[str, float]:
    optimiser, square = torch.optim.Adam(module.parameters(), 1e-3), cpwl.box([-1, -1], [1, 1])
    z = torch.randn(256, 2)
    target = torch.randn(module(z).shape)
    network = cpwl.Network.from_torch(module, (2,))
    partition = cpwl.subdivide(network, square, progress=False)  # compiles the kernels

    def step() -> None:
        optimiser.zero_grad()
        (module(z) - target).square().mean().backward()
        optimiser.step()

    calls: dict[str, Callable[[], object]] = {
        "step": step,
        "with_weights": lambda: network.with_weights(module),
        "subdivide": lambda: cpwl.subdivide(again, square, progress=False),
        "summary": lambda: cpwl.summary(partition),
        "regions": lambda: cpwl.regions(partition),
    }
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        again = network.with_weights(module)
        partition = cpwl.subdivide(again, square, progress=False)
        for key, call in calls.items():
            best[key] = min(best[key], _seconds(call))
    capture = min(_seconds(lambda: cpwl.Network.from_torch(module, (2,))) for _ in range(3))
    times = " | ".join(f"{1e3 * value:.2f}" for value in (*best.values(), capture))
    three = best["with_weights"] + best["subdivide"] + best["summary"]
    print(f"| {name} | {partition.num_cells:,} | {cpwl.regions(partition).count:,} | {times} "
          f"| {three / best['step']:.0f} |", flush=True)  # fmt: skip
    return best


def _seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began
