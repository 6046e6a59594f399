"""Maps of the toy diffusion over the plane: their descriptors, exact and estimated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import shapely
import torch
from torch import Tensor, nn

import cpwl
from approx import describe
from approx.diffusion import Schedule, diffusion_levels, maps
from bridges.networks.datasaurus import STEPS, signal_shares
from bridges.studies.digits import Floats, Table

HALF = 3.0
"""Half the side of the square that the maps show; the data have unit variance."""

RADIUS = 0.1  # of the neighbourhoods, two thirds of a pixel at full size
MAPS: dict[str, Callable[..., Any]] = {"step": maps.step, "clean": maps.clean}


def toy_schedule() -> Schedule:
    """Return the noise levels of the toy diffusion, from 50 to 1; steps draw no noise (DDIM)."""
    levels = diffusion_levels(signal_shares().tolist(), range(STEPS, 0, -1))
    return Schedule(levels, "epsilon")


class ExactMap(nn.Module):
    """One of `MAPS`, as a module of x and t that `cpwl` captures at a fixed t.

    Its coefficients come from abar alone and not from `approx`. All maps are a x + b eps(x, t): the
    estimate of x_0 is (x - sqrt(1 - abar) eps) / sqrt(abar), and the step mixes it with eps anew.
    """

    def __init__(self, denoiser: nn.Module, name: str, t: int) -> None:
        super().__init__()
        share, after = (float(a) for a in signal_shares()[[t, t - 1]])
        self.denoiser = denoiser
        self.a, self.b = share**-0.5, -((1 - share) ** 0.5) * share**-0.5
        if name == "step":
            self.a, self.b = after**0.5 * self.a, after**0.5 * self.b + (1 - after) ** 0.5

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return what the map makes of x (B, 2)."""
        return self.a * x + self.b * self.denoiser(x, t)


def exact_partition(denoiser: nn.Module, name: str, t: int, half: float = HALF) -> cpwl.Partition:
    """Return the cells of one of `MAPS` on [-half, half]^2: `cpwl` has psi and nu of each."""
    network = cpwl.Network.from_torch(
        ExactMap(denoiser, name, t), (2,), fixed={"t": torch.tensor([t])}
    )
    return cpwl.subdivide(network, cpwl.box([-half] * 2, [half] * 2), progress=False)


def cells_nearby(partition: cpwl.Partition, points: Floats) -> Floats:
    """Return delta, the number of cells that meet {x : |x - point|_1 < RADIUS}, of points (N, 2).

    Counted in one partition of the square, which must hold the neighbourhoods.
    """
    offsets = RADIUS * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    diamonds = shapely.polygons(points[:, None] + offsets)
    tree = shapely.STRtree(cpwl.polygons(partition))
    who, _ = tree.query(diamonds, predicate="intersects")
    return np.bincount(who, minlength=len(points)).astype(np.float64)


def plane(pixels: int) -> Tensor:
    """Return the middles of the square's pixels (pixels^2, 2), x_1 running fastest."""
    step = 2 * HALF / pixels
    line = torch.arange(pixels, dtype=torch.float64) * step - HALF + step / 2
    return torch.cartesian_prod(line, line).flip(1)


def estimated(denoiser: nn.Module, t: int, x: Tensor, *, delta: bool = True) -> Table:
    """Return `QUANTITIES` at points x (N, 2) by `approx`: the whole Jacobians, in float64."""
    table: Table = {}
    neighbourhood = (torch.eye(2, dtype=torch.float64), RADIUS)
    for name, make in MAPS.items():
        found = describe(
            make(denoiser, toy_schedule(), t), x, method="exact", seed=0, progress=False,
            dtype=torch.float64, neighbourhood=neighbourhood if name == "step" and delta else None,
        )  # fmt: skip
        table |= {f"{name} psi": found.psi, f"{name} nu": found.nu}
        if found.delta is not None:
            table["delta"] = found.delta
    return table


def distances(points: Tensor, t: int, x: Tensor) -> Floats:
    """Return the distances (N,) of x to the data as they lie at time t: sqrt(abar) x_0."""
    there = signal_shares()[t].sqrt() * points
    exactly = "donot_use_mm_for_euclid_dist"
    return torch.cdist(x, there, compute_mode=exactly).amin(dim=1).numpy()


def noisy(points: Tensor, t: int, count: int, seed: int) -> Tensor:
    """Return samples x_t (count, 2)."""
    generator = torch.Generator().manual_seed(1000 * t + seed)
    rows = torch.randint(len(points), (count,), generator=generator)
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    share = signal_shares()[t]
    return share.sqrt() * points[rows] + (1 - share).sqrt() * noise
