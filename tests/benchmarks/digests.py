"""Digests of partitions, array by array, to tell whether two versions make the same bits.

    CPWL_DATA=... python tests/benchmarks/digests.py [NAME ...] > digests.txt

prints a line for each array of each partition: benchmark networks, degenerate and convolutional
ones, domains worked off in strips, and, with CPWL_DATA, the slices of the real networks. Two
versions on the same machine with the same torch are compared by `diff`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from common import make_network
from torch import nn

import cpwl

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does

Make = Callable[[], cpwl.Partition]


def _cube(widths: str, half: float = 10.0, **options: int) -> cpwl.Partition:
    """The benchmark network of dashed widths on [-half, half]^P."""
    dim = int(widths.split("-")[0])
    network = cpwl.Network.from_torch(make_network(widths), input_shape=(dim,))
    return cpwl.subdivide(network, cpwl.box([-half] * dim, [half] * dim), progress=False, **options)


def _integers(dim: int) -> cpwl.Partition:
    """A network of small integer weights without biases: many knots through one point."""
    generator = torch.Generator().manual_seed(dim)
    module = make_network(f"{dim}-8-6-2")
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randint(-2, 3, p.shape, generator=generator) if p.ndim > 1 else 0 * p)
    network = cpwl.Network.from_torch(module, input_shape=(dim,))
    return cpwl.subdivide(network, cpwl.box([-1] * dim, [1] * dim), progress=False)


def _pooling(dim: int) -> cpwl.Partition:
    """A small convolutional decoder with leaky ReLU and max-pooling."""
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Linear(dim, 32), nn.LeakyReLU(0.1), nn.Unflatten(1, (2, 4, 4)),
        nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3),
    ).eval()  # fmt: skip
    network = cpwl.Network.from_torch(module, input_shape=(dim,))
    return cpwl.subdivide(network, cpwl.box([-3] * dim, [3] * dim), progress=False)


def partitions() -> Iterator[tuple[str, Make]]:
    """Name every partition, with the function that makes it."""
    for widths in ("1-64-64-1", "2-20-20-20-3", "2-64-64-64-3", "2-128-128-128-3",
                   "2-256-256-256-3", "3-16-16-3", "3-32-32-3", "4-10-10-3"):  # fmt: skip
        yield widths, lambda widths=widths: _cube(widths)
    yield "2-64-64-64-3 in strips", lambda: _cube("2-64-64-64-3", memory=2**21)
    yield "3-16-16-3 cut short", lambda: _cube("3-16-16-3", memory=2**18)
    for dim in (1, 2, 3, 4):
        yield f"integers, {dim}-D", lambda dim=dim: _integers(dim)
    for dim in (2, 3):
        yield f"max-pooling, {dim}-D", lambda dim=dim: _pooling(dim)
    if folder := os.environ.get("CPWL_DATA"):
        from real.slices import all_slices

        for name, make in all_slices(Path(folder)):
            yield name, lambda make=make: cpwl.subdivide(*make(), progress=False)


def arrays(partition: cpwl.Partition) -> Iterator[tuple[str, np.ndarray]]:
    """Name every array of a partition."""
    for field in dataclasses.fields(partition):
        value = getattr(partition, field.name)
        if isinstance(value, np.ndarray):
            yield field.name, value
    for k, faces in enumerate(partition.skeleton, 1):
        yield f"skeleton[{k}].offsets", faces.offsets
        yield f"skeleton[{k}].items", faces.items


def main() -> None:
    """Print the digests of the partitions that are named, or of all."""
    for name, make in partitions():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        partition = make()
        print(f"{name}: {partition} {tuple(partition.status)}")
        for label, values in arrays(partition):
            data = np.ascontiguousarray(values)
            kind = f"{data.dtype} {data.shape}"
            print(f"  {label} {kind} {hashlib.sha256(data.tobytes()).hexdigest()}", flush=True)


if __name__ == "__main__":
    main()
