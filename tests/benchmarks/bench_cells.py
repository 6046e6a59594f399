"""One cell of a published generator in its whole latent space: seconds of one core.

    CPWL_DATA=... pytest tests/benchmarks/bench_cells.py -s

Processor time of one thread, the median over latents; the box is [-4, 4] in every coordinate. The
faces' generator is interrupted after PATIENCE seconds: its line says how far that came.

On two busy cores: the VAE decoder 0.005 s a cell, 0.3 s its facets; the GAN 0.005 s and 3 to 6 s,
all of it proven. The faces' 122,880 half-spaces take 3.4 s, their ball 0.2 s; of the facets, 489
were found in the first 14 s by 67 programs, and the rest stayed open.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

import cpwl
from bridges.networks import pretrained

PATIENCE = 60
LATENTS = 3
T = TypeVar("T")

NETWORKS: dict[str, tuple[Callable[[Path], torch.nn.Module], tuple[int, ...], str]] = {
    "mnist_vae_decoder": (pretrained.mnist_vae_decoder, (20,), "sigmoid"),
    "mnist_gan": (pretrained.mnist_gan, (64,), "tanh"),
    "dcgan_faces": (pretrained.dcgan_faces, (100, 1, 1), "tanh"),
}


def timed(work: Callable[..., T], *arguments: Any) -> tuple[float, T]:
    """Return processor seconds and the result."""
    begun = time.process_time()
    result = work(*arguments)
    return time.process_time() - begun, result


def network_of(name: str, data: Path) -> tuple[cpwl.Network, np.ndarray]:
    make, shape, upto = NETWORKS[name]
    network = cpwl.Network.from_torch(make(data), shape, upto=upto)
    z = np.random.default_rng(0).standard_normal((LATENTS, int(np.prod(shape))))
    cpwl.cell_at(network, z[0])  # torch's first pass is slower
    return network, z


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["mnist_vae_decoder", "mnist_gan"])
def test_seconds(name: str, data: Path) -> None:
    network, latents = network_of(name, data)
    rows = []
    for z in latents:
        first, cell = timed(cpwl.cell_at, network, z)
        second, ball = timed(cpwl.chebyshev_ball, cell, -4, 4)
        third, found = timed(cpwl.facets, cell, -4, 4)
        fourth, across = timed(lambda found=found: list(cpwl.neighbours(found)))
        fifth, near = timed(cpwl.cells_near, network, z, 20, -4, 4)
        rows.append((first, second, third, fourth, fifth))
        print(
            f"\n{name}: {len(cell.distances)} half-spaces, nearest knot {cell.distance:.3g} +- "
            f"{cell.distance_error:.1g}; ball {ball.radius:.3g}; {len(found.halfspaces)} facets, "
            f"{len(found.unproven)} unproven, {found.programs} programs; "
            f"{sum(one is None for one in across)} facets uncrossed; "
            f"20 cells within {near.distances[-1]:.3g}"
        )
    t = [median(column) for column in zip(*rows, strict=True)]
    print("| network | cell_at s | ball s | facets s | all neighbours s | 20 nearest cells s |")
    print(f"|---|---|---|---|---|---|\n| {name} | " + " | ".join(f"{x:.3g}" for x in t) + " |")
    assert t[0] < 0.1
    assert t[1] + t[2] < 10


@pytest.mark.usefixtures("one_thread")
def test_a_deep_convolutional_generator(data: Path) -> None:
    network, latents = network_of("dcgan_faces", data)
    first, cell = timed(cpwl.cell_at, network, latents[0])
    print(
        f"\ndcgan_faces: {len(cell.distances):,} half-spaces in {first:.3g} s, nearest knot "
        f"{cell.distance:.3g} +- {cell.distance_error:.1g}, {len(cell.undecided)} undecided"
    )
    second, ball = timed(cpwl.chebyshev_ball, cell, -4, 4)
    print(f"ball {ball.radius:.3g} to {ball.radius_at_most:.3g} in {second:.3g} s")
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(PATIENCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        third, found = timed(cpwl.facets, cell, -4, 4)
    signal.alarm(0)
    print(f"after {third:.3g} s and {found.programs} programs: {found}")
