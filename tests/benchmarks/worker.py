"""Time one engine on one benchmark network in a process of its own; print one line of JSON.

    python -m tests.benchmarks.worker cpwl 2-64-64-64-3 [--size 10] [--repeat 3] [--cores 2]

Engines: ``cpwl`` (cells, patterns, facets, adjacency), ``regioncam`` (the same, one thread) and
``floor`` (one float64 forward pass of torch at the vertices of cpwl's final partition). Compilation
is warmed on a tiny network first. ``rss`` is the peak memory above what the process held then.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable

import torch
from torch import nn

from bridges.toys import random_mlp


def make_network(widths: str) -> nn.Sequential:
    """Make the network that a dashed list of widths names."""
    return random_mlp([int(n) for n in widths.split("-")])


def cpwl_engine(module: nn.Sequential, size: float) -> Callable[[], int]:
    """Subdivide the square; capturing the module is not timed."""
    import cpwl

    network = cpwl.Network.from_torch(module, (2,))
    domain = cpwl.box([-size, -size], [size, size])
    return lambda: cpwl.subdivide(network, domain, progress=False).num_cells


def regioncam_engine(module: nn.Sequential, size: float) -> Callable[[], int]:
    """Add all layers to a new Regioncam."""
    import regioncam

    layers = [
        regioncam.nn.Linear(layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy())
        if isinstance(layer, nn.Linear)
        else regioncam.nn.ReLU()
        for layer in module
    ]

    def run() -> int:
        camera = regioncam.Regioncam(size=size)
        camera.add(layers)
        return camera.num_faces

    return run


def floor_engine(module: nn.Sequential, size: float) -> Callable[[], int]:
    """Evaluate the module in float64 at the final vertices."""
    import cpwl

    network = cpwl.Network.from_torch(module, (2,))
    domain = cpwl.box([-size, -size], [size, size])
    points = torch.from_numpy(cpwl.subdivide(network, domain, progress=False).points)
    module = module.double()

    def run() -> int:
        with torch.no_grad():
            for block in points.split(16384):
                module(block)
        return len(points)

    return run


def main() -> None:
    """Run the engine named on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=["cpwl", "regioncam", "floor"])
    parser.add_argument("widths")
    parser.add_argument("--size", type=float, default=10.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cores", type=int, default=0)
    args = parser.parse_args()
    if args.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
        torch.set_num_threads(args.cores)
    engines = {"cpwl": cpwl_engine, "regioncam": regioncam_engine, "floor": floor_engine}
    make = engines[args.engine]
    make(make_network("2-8-8-3"), args.size)()
    run = make(make_network(args.widths), args.size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu, cells = [], [], 0
    for _ in range(args.repeat):
        start, start_cpu = time.perf_counter(), time.process_time()
        cells = run()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"cells": cells, "wall": min(wall), "cpu": min(cpu), "rss": rss * 1024}))


if __name__ == "__main__":
    main()
