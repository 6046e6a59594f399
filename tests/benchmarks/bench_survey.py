"""Surveys of 10^7 cells: cells per second against `subdivide` on parts in the same run, and memory.

    CPWL_DATA=... pytest tests/benchmarks/bench_survey.py -s

Each row is a process of its own. A plane of the MNIST GAN has 113,352 cells, however far it reaches
(`CPWL_DATA=... PYTHONPATH=tests python -m benchmarks.bench_survey everything`), so 10^7 cells are
those of a box in three dimensions there, and those of a plane in a wider network, too large for
rational arithmetic and left in float64. Ratios are of
processor seconds, which a busy machine leaves alone; parts are tiles of the survey, with `summary`
where the survey has maps. Memory is the peak of the process above what it held before.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks.common import make_network

import cpwl
from bridges.networks import pretrained
from cpwl.surveys.tiles import Tile, halves, middle

PARTS = 3
MEMORY = 2**29  # of the work of one tile


def gan(dim: int, radius: float) -> tuple[cpwl.Network, cpwl.Domain]:
    """The MNIST GAN before its tanh, about a latent, along others."""
    network = cpwl.Network.from_torch(
        pretrained.mnist_gan(Path(os.environ["CPWL_DATA"])), (64,), upto="tanh"
    )
    latents = torch.randn(dim + 1, 64, generator=torch.Generator().manual_seed(0))
    return network, cpwl.Slice.through(*latents).box([-radius] * dim, [radius] * dim)


def mlp(widths: str, radius: float) -> tuple[cpwl.Network, cpwl.Domain]:
    """A random network as of the other benchmarks."""
    network = cpwl.Network.from_torch(make_network(widths), (2,))
    return network, cpwl.box([-radius] * 2, [radius] * 2)


# what is made, the tiles, and whether with maps
ROWS: dict[str, tuple[Callable[[], tuple[cpwl.Network, cpwl.Domain]], object, bool]] = {
    "MNIST GAN, plane": (lambda: gan(2, 1e3), (3, 3), True),
    "MNIST GAN, 3-D box": (lambda: gan(3, 14), "auto", False),
    "2-1536-1536-1536-3": (lambda: mlp("2-1536-1536-1536-3", 10), "auto", False),
    "2-1536-1536-1536-3, maps": (lambda: mlp("2-1536-1536-1536-3", 10), "auto", True),
    "2-512-512-512-3": (lambda: mlp("2-512-512-512-3", 10), "auto", False),
    "2-256-256-256-3, maps": (lambda: mlp("2-256-256-256-3", 10), (2, 2), True),
}


def measured(name: str) -> dict[str, object]:
    """Survey one row's domain, then enumerate some of its tiles alone."""
    make, tiles, maps = ROWS[name]
    network, domain = make()
    small = domain
    while small.volume > domain.volume / 5000:
        small = halves(Tile(1, small), middle(small))[0].domain
    cpwl.survey(network, small, tiles=1, maps=maps, proof="float64", progress=False)  # kernels
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, begun = time.perf_counter(), time.process_time()
    found = cpwl.survey(network, domain, tiles=tiles, maps=maps, memory=MEMORY, proof="float64")
    made = {"cells": found.cells, "tiles": len(found.tiles), "exact": found.status.exact,
            "unmatched": found.unmatched}  # fmt: skip
    made["wall"] = time.perf_counter() - wall
    seconds = made["seconds"] = time.process_time() - begun
    made["rss"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    made["total"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1e3
    every = list(found.tiles.values())
    cells, begun = 0, time.process_time()
    for k in range(PARTS):
        part = every[(2 * k + 1) * len(every) // (2 * PARTS)]
        partition = cpwl.subdivide(network, part, memory=MEMORY, proof="float64", progress=False)
        cells += partition.num_cells
        if maps:
            cpwl.summary(partition)
    alone = (time.process_time() - begun) / cells
    return made | {"parts": alone * 1e6, "ratio": alone * found.cells / seconds}


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("name", ROWS)
def test_rate_and_memory(name: str) -> None:
    command = [sys.executable, "-m", "benchmarks.bench_survey", name]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    row = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{name}: {row}")
    assert row["ratio"] > 0.8
    assert row["rss"] < 1000


def main() -> None:
    """Measure the row that is named, or count how many cells a whole plane of the GAN has."""
    if sys.argv[1] != "everything":
        print(json.dumps(measured(sys.argv[1])))
        return
    for radius in (10, 100, 1e3, 1e5):
        network, domain = gan(2, radius)
        print(radius, cpwl.subdivide(network, domain, progress=False).num_cells)


if __name__ == "__main__":
    main()
