"""Small generators, and their partitions made once per test session."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import cpwl


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    """Return Linear, ReLU, ..., Linear with PyTorch's default initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


class Skip(nn.Module):
    """Two non-linearities joined by a sum and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 6), nn.Linear(6, 6)
        self.last = nn.Linear(12, 4)

    def forward(self, z: Tensor) -> Tensor:
        """Evaluate."""
        x = torch.nn.functional.leaky_relu(self.first(z), 0.1)
        y = x + self.second(x).clamp(-0.2, 0.3)
        return self.last(torch.cat([y, self.second(y).abs()], dim=1))


def _convolutional(pool: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (3, 2, 2)),
        nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.2),
        pool,
        nn.Conv2d(4, 2, 3, padding=1),
    ).eval()


_BUILDERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mlp": (lambda: mlp(2, 12, 12, 3), 2),
    "skip": (Skip, 2),
    "conv": (lambda: _convolutional(nn.ReLU6()), 12),
    "max-pool": (lambda: _convolutional(nn.MaxPool2d(2)), 12),
}
KINDS = tuple(_BUILDERS)


@cache
def sample(kind: str, dim: int = 2) -> tuple[nn.Module, cpwl.Partition]:
    """Return a module in float64 and its partition on a slice that is not orthonormal."""
    build, size = _BUILDERS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = build()
    network = cpwl.Network.from_torch(module, (size,))
    rng = np.random.default_rng(1)
    basis = rng.standard_normal((dim, size))
    place = cpwl.Slice(rng.standard_normal(size) / 4, basis)
    partition = cpwl.subdivide(network, place.box([-2] * dim, [2] * dim), progress=False)
    return copy.deepcopy(module).double(), partition


def partition_of(module: nn.Module, low: float = -1.0, high: float = 1.0) -> cpwl.Partition:
    """Return the partition of a module with one or two inputs over a cube."""
    parameters = list(module.parameters())
    size = parameters[0].shape[1]
    network = cpwl.Network.from_torch(module, (size,))
    return cpwl.subdivide(network, cpwl.box([low] * size, [high] * size), progress=False)


@cache
def generator() -> cpwl.Partition:
    """Return 2-12-12-3 on [-1, 1]^2, every cell of rank 2, no image overlap."""
    return partition_of(mlp(2, 12, 12, 3, seed=4))


def interior_points(partition: cpwl.Partition) -> NDArray[np.float64]:
    """Return the mean of every cell's corners, (C, P)."""
    offsets = partition.cell_offsets
    sums = np.add.reduceat(partition.points[partition.cell_corners], offsets[:-1], axis=0)
    return sums / np.diff(offsets)[:, None]


def linear(matrix: NDArray[np.float64]) -> nn.Sequential:
    """Return a generator z -> matrix @ z + 1 that still has two cells: |z_0| enters and leaves."""
    outputs, inputs = matrix.shape
    first = nn.Linear(inputs, inputs + 2, dtype=torch.float64)
    last = nn.Linear(inputs + 2, outputs, dtype=torch.float64)
    with torch.no_grad():
        # relu(z + 100) - 100 = z on the domain; relu(z0) - relu(z0) = 0 for the last two
        first.weight.copy_(torch.eye(inputs + 2, inputs))
        first.weight[inputs:, 0] = 1.0
        first.bias.fill_(100.0)
        first.bias[inputs:] = 0.0
        body = torch.as_tensor(matrix)
        last.weight[:, :inputs] = body
        last.weight[:, inputs:] = torch.tensor([1.0, -1.0])
        last.bias.copy_(1 - 100 * body.sum(dim=1))
    return nn.Sequential(first, nn.ReLU(), last)
