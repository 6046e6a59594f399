"""The project's own engines for the benchmarks, and the floor."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps

import torch
from benchmarks.common import Found
from torch import nn

import cpwl
from cpwl.engine import bounds
from cpwl.engine.plane import refinement
from cpwl.engine.rational import arbiter


def capture(module: nn.Sequential, size: float) -> tuple[cpwl.Network, cpwl.Domain]:
    """Return cpwl's network and domain."""
    dim = module[0].in_features
    assert isinstance(dim, int)  # the first layer is a Linear
    network = cpwl.Network.from_torch(module, (dim,))
    return network, cpwl.box([-size] * dim, [size] * dim)


def cells_engine(module: nn.Sequential, size: float, limit: float) -> Callable[[], Found]:
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
        return Found(
            maps, partition.status.exact, lambda: torch.from_numpy(cpwl.centroids(partition))
        )

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


def seconds_of_a_pass(network: cpwl.Network, latents: torch.Tensor) -> float:
    """Processor seconds of a float64 forward pass, a latent, in the blocks that suit it best."""
    best = float("inf")
    for rows in (4, 16, 64):
        blocks = latents.split(rows)
        network(blocks[0])
        start = time.process_time()
        for block in blocks:
            network(block)
        best = min(best, (time.process_time() - start) / len(latents))
    return best


class Account:
    """Seconds spent in what only proofs need: bounds, definitions of vertices, exact signs."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False
        for owner, names in (
            (arbiter.Arbiter, ("__init__", "corners", "add", "signs", "places", "points")),
            (bounds.Bounds, ("__init__", "stage", "give")),
            (refinement, ("tighten", "sharpen")),
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


ENGINES = {"cpwl": cells_engine, "maps": maps_engine, "floor": floor_engine}
