"""Proofs in about 106 bits: the bound and the true error by layer, and what a proof costs.

CPWL_DATA=... python tests/benchmarks/bench_proving.py bounds.png   the figure of architecture.md
CPWL_DATA=... python tests/benchmarks/bench_proving.py dncnn        a row of the table there
CPWL_DATA=... python tests/benchmarks/bench_proving.py mnist_convnet    of real/slices.py
CPWL_DATA=... python tests/benchmarks/bench_proving.py certify denoiser 600   certified in 600 s
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import cpwl
from bridges.networks import pretrained
from cpwl.engine.bounds import Bounds
from cpwl.engine.precise import Evaluator


def denoiser(data: Path, size: int = 12, half: float = 1.2e-3) -> tuple[cpwl.Network, cpwl.Domain]:
    """The bias-free DnCNN of 20 layers on two random directions about a noisy patch."""
    network = cpwl.Network.from_torch(pretrained.bias_free_dncnn(data), (1, size, size))
    noisy = np.load(data / "denoiser" / "noisy_im_30.npy")
    ways = np.random.default_rng(0).standard_normal((2, 1, size, size))
    ways /= np.linalg.norm(ways.reshape(2, -1), axis=1)[:, None, None, None]
    slice_ = cpwl.Slice(noisy[None, 7 : 7 + size, 11 : 11 + size].copy(), ways)
    return network, slice_.box([-half] * 2, [half] * 2)


def errors(data: Path, points: int = 8) -> np.ndarray:
    """Float64's bound, its true error, and the bound in 106 bits, largest by layer: (L, 3)."""
    network, domain = denoiser(data)
    chosen = np.random.default_rng(0).uniform(-1e-3, 1e-3, (points, 2))
    latents = torch.from_numpy(domain.slice.embed(chosen))
    bounds = Bounds(network, domain.slice, domain.corners)
    values, slack = [], []
    for stage in range(network.num_stages):
        slack.append(float(bounds.stage(stage).slack.max()))
        values.append(network.preactivations(latents, stage).numpy())
        bounds.give(stage, values[-1].min(axis=0), values[-1].max(axis=0), 0.0)
    pieces = (np.concatenate(values, axis=1) > 0).astype(np.int32)
    held = Evaluator(network, domain.slice).held(chosen, pieces, network.num_stages)
    rows = []
    for stage, found in enumerate(values):
        a, b = network.stage_offsets[stage : stage + 2]
        off = (found - held.hi[:, 0, a:b]) - held.lo[:, 0, a:b]
        rows.append((slack[stage], np.abs(off).max(), held.error[:, 0, a:b].max()))
    return np.array(rows)


def draw(table: np.ndarray, path: str) -> None:
    """Draw the bounds and the true error by layer."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    layer = np.arange(1, len(table) + 1)
    for column, label in enumerate(
        ("bound of float64", "true error of float64", "bound in 106 bits")
    ):
        axes.semilogy(layer, table[:, column], "o-", ms=3, label=label)
    axes.axhline(1.0, color="0.7", lw=0.8)
    axes.set(xlabel="layer of the denoiser", ylabel="largest over its units", xticks=layer[::3])
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def report(name: str, network: cpwl.Network, domain: cpwl.Domain) -> None:
    """Print what float64 leaves open, and what the proof costs in forward passes a vertex."""
    from benchmarks.engines import seconds_of_a_pass

    starts = [time.process_time()]
    before = cpwl.subdivide(network, domain, proof="float64", progress=False).status
    starts.append(time.process_time())
    partition = cpwl.subdivide(network, domain, proof="full", progress=False)
    starts.append(time.process_time())
    spent = np.diff(starts)
    latents = torch.from_numpy(domain.slice.embed(partition.points[:64]))
    each = seconds_of_a_pass(network, latents) * len(partition.points)
    print(
        f"| {name} | {network.num_units:,} | {partition.num_cells:,} | {before.undecided:,} "
        f"| {partition.status.undecided:,} | {partition.status.exact} "
        f"| {spent[0] / each:.1f} | {(spent[1] - spent[0]) / each:.1f} "
        f"| {spent[0]:.0f} | {spent[1]:.0f} | {_peak():.0f} MB |",
        flush=True,
    )


def _peak() -> float:
    """Most memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def certify(name: str, network: cpwl.Network, domain: cpwl.Domain, seconds: float) -> None:
    """Print how many cells are certified in some seconds, and what that costs."""
    partition = cpwl.subdivide(network, domain, proof="float64", progress=False)
    start = time.process_time()
    found = cpwl.certify(partition, seconds=seconds, progress=False)
    spent = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "proof.json")
        found.save(path)
        size = path.stat().st_size / 1e6
    print(
        f"| {name} | {network.num_units:,} | {found.cells:,} of {partition.num_cells:,} "
        f"| {100 * found.share:.3g} % | {found.signs:,} | {found.rounding:.1e} | {spent:.0f} "
        f"| {spent / found.cells:.2f} | {size:.1f} | {_peak():.0f} MB |",
        flush=True,
    )


def main() -> None:
    """Draw the figure, or print a row of the table."""
    data, what = Path(os.environ["CPWL_DATA"]), sys.argv[1]
    torch.set_num_threads(1)
    if what.endswith(".png"):
        table = errors(data)
        print(np.array2string(table, formatter={"float": "{:.1e}".format}))
        draw(table, what)
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from real import slices

    if what == "certify":
        certify(sys.argv[2], *getattr(slices, sys.argv[2])(data), float(sys.argv[3]))
        return
    zoom = [float(arg) for arg in sys.argv[2:]]
    network, domain = denoiser(data) if what == "dncnn" else getattr(slices, what)(data, *zoom)
    report(what, network, domain)


if __name__ == "__main__":
    main()
