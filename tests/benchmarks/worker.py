"""Time one engine on one benchmark network in a process of its own; print one line of JSON.

    python -m tests.benchmarks.worker cpwl 2-64-64-64-3 [--size 10] [--repeat 3] [--cores 2]

Engines, on the box [-size, size]^P whose dimension is the network's first width:

- ``cpwl``: cells, patterns, facets, adjacency; ``maps``: the same, and every cell's affine map.
- ``regioncam``: cells, facets, adjacency, in 2-D (one thread, float32).
- ``affinitree``: a decision tree whose leaves are the cells with their maps (one thread); it has
  neither vertices nor facets nor adjacency.
- ``relucent``: cells, the facets' units and adjacency by search, without vertices; all cores. It
  stops after ``--limit`` seconds with the cells that it has.
- ``floor``: one float64 forward pass of torch at the vertices of cpwl's final partition.

Compilation is warmed on a tiny network first. ``rss`` is the peak memory above what the process
held then. With ``--account 1``, ``proof`` has the seconds that went into bounds on rounding errors
and into rational arithmetic (in the round that took ``wall``).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

import torch
from torch import nn

import cpwl
from bridges.toys import random_mlp
from cpwl import _bounds, _exact, _refine


class Found(NamedTuple):
    """How many cells (for `floor`: vertices), and whether they are all."""

    cells: int
    complete: bool = True


def make_network(widths: str) -> nn.Sequential:
    """Make the network that a dashed list of widths names."""
    return random_mlp([int(n) for n in widths.split("-")])


def capture(module: nn.Sequential, size: float) -> tuple[cpwl.Network, cpwl.Domain]:
    """Return cpwl's network and domain."""
    dim = module[0].in_features
    assert isinstance(dim, int)  # the first layer is a Linear
    network = cpwl.Network.from_torch(module, (dim,))
    return network, cpwl.box([-size] * dim, [size] * dim)


def cpwl_engine(module: nn.Sequential, size: float, limit: float) -> Callable[[], Found]:
    """Subdivide the box; capturing the module is not timed."""
    network, domain = capture(module, size)

    def run() -> Found:
        partition = cpwl.subdivide(network, domain, progress=False)
        return Found(partition.num_cells, partition.status.exact)

    return run


def maps_engine(module: nn.Sequential, size: float, limit: float) -> Callable[[], Found]:
    """Subdivide the box and compute every map."""
    network, domain = capture(module, size)

    def run() -> Found:
        partition = cpwl.subdivide(network, domain, progress=False)
        maps = sum(len(A) for A, _ in cpwl.affine_maps(partition))
        return Found(maps, partition.status.exact)

    return run


def regioncam_engine(module: nn.Sequential, size: float, limit: float) -> Callable[[], Found]:
    """Add all layers to a new Regioncam."""
    import regioncam

    layers = [
        regioncam.nn.Linear(layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy())
        if isinstance(layer, nn.Linear)
        else regioncam.nn.ReLU()
        for layer in module
    ]

    def run() -> Found:
        camera = regioncam.Regioncam(size=size)
        camera.add(layers)
        return Found(camera.num_faces)

    return run


def affinitree_engine(module: nn.Sequential, size: float, limit: float) -> Callable[[], Found]:
    """Distil the module into a tree, on the box."""
    import affinitree

    dim = module[0].in_features
    architecture = affinitree.extract_pytorch_architecture(dim, module)
    sides = affinitree.Polytope.hyperrectangle(dim, [(-size, size)] * dim)

    def run() -> Found:
        box = affinitree.AffTree.from_poly(sides, affinitree.AffFunc.identity(dim))
        return Found(affinitree.builder.from_layers(architecture, box).num_terminals())

    return run


def relucent_engine(module: nn.Sequential, size: float, limit: float) -> Callable[[], Found]:
    """Search from cell to cell, until the limit."""
    import relucent

    class Stop(BaseException):
        """Nobody handles this one on its way."""

    def stop(*_: object) -> None:
        raise Stop

    def run() -> Found:
        complex_ = relucent.Complex(module)
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, limit, 10)  # and again where a callback lost it
        try:
            # without its verification: a second pass over all cells
            complex_.bfs(cube_mode="intersect", cube_radius=size, verify=False, verbose=0)
        except Stop:
            return Found(len(complex_), complete=False)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return Found(len(complex_), bool(complex_.complete))

    return run


def floor_engine(module: nn.Sequential, size: float, limit: float) -> Callable[[], Found]:
    """Evaluate the module in float64 at the final vertices."""
    network, domain = capture(module, size)
    points = torch.from_numpy(cpwl.subdivide(network, domain, progress=False).points)
    module = module.double()

    def run() -> Found:
        with torch.no_grad():
            for block in points.split(16384):
                module(block)
        return Found(len(points))

    return run


class Account:
    """Seconds spent in what only proofs need: bounds, definitions of vertices, exact signs."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False
        for owner, names in (
            (_exact.Arbiter, ("__init__", "corners", "add", "signs", "places", "points")),
            (_bounds.Bounds, ("__init__", "stage", "give")),
            (_refine, ("tighten", "sharpen")),
        ):
            for name in names:
                setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, function: Callable) -> Callable:
        @wraps(function)
        def timed(*arguments: object, **options: object) -> object:
            if self._inside:  # counted already
                return function(*arguments, **options)
            self._inside = True
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - start
                self._inside = False

        return timed


ENGINES = {
    "cpwl": cpwl_engine,
    "maps": maps_engine,
    "regioncam": regioncam_engine,
    "affinitree": affinitree_engine,
    "relucent": relucent_engine,
    "floor": floor_engine,
}


def main() -> None:
    """Run the engine named on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=list(ENGINES))
    parser.add_argument("widths")
    parser.add_argument("--size", type=float, default=10.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cores", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--account", type=int, default=0)
    args = parser.parse_args()
    if args.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
        torch.set_num_threads(args.cores)
    make = ENGINES[args.engine]
    inputs, outputs = args.widths.split("-")[0], args.widths.split("-")[-1]
    make(make_network(f"{inputs}-8-8-{outputs}"), args.size, args.limit)()
    run = make(make_network(args.widths), args.size, args.limit)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    account = Account() if args.account else None
    wall, cpu, proof, found = [], [], [], Found(0)
    for _ in range(args.repeat):
        if account is not None:
            account.seconds = 0.0
        start, start_cpu = time.perf_counter(), time.process_time()
        found = run()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
        proof.append(account.seconds if account is not None else 0.0)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    quickest = wall.index(min(wall))
    times = {"wall": wall[quickest], "cpu": min(cpu), "rss": rss * 1024, "proof": proof[quickest]}
    print(json.dumps({**found._asdict(), **times}))


if __name__ == "__main__":
    main()
