"""Demo in the plane: a trained generator, its partition, and what it does to density."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde, rankdata

import cpwl
from bridges.networks.toys import RADIUS, toy_generator
from cpwl import plot
from cpwl.arrays import Floats
from cpwl.files import atomic_path

SAMPLES = 5000
"""Latents drawn for the sample panels; the density estimate costs their square."""

_BORDER = 2.0
"""Kernel widths from the border within which an estimate misses part of its neighbours."""


class DemoReport(NamedTuple):
    """Findings of the demo in the plane.

    ``correlation`` is Spearman's, between the density estimated at the generated samples and
    exp(-psi) on their cells; ``inner_correlation`` leaves out the samples within two kernel widths
    of the square's border, where a kernel density estimate is too low: no sample lies beyond.
    """

    cells: int
    regions: int
    psi: tuple[float, float]
    nu: tuple[float, float]
    correlation: float
    inner_correlation: float
    training_seconds: float
    partition_seconds: float
    seconds: float

    def __str__(self) -> str:
        """Say it in five lines."""
        return (
            f"trained the toy generator in {self.training_seconds:.1f} s\n"
            f"{self.cells:,} cells in {self.regions:,} regions, "
            f"enumerated in {self.partition_seconds:.2f} s\n"
            f"psi from {self.psi[0]:.3f} to {self.psi[1]:.3f}, "
            f"nu from {self.nu[0]:.3f} to {self.nu[1]:.3f}\n"
            f"rank correlation of estimated density and exp(-psi): {self.correlation:.2f} "
            f"({self.inner_correlation:.2f} away from the border)\n"
            f"{self.seconds:.1f} s in all"
        )


def run_demo(path: str | Path, seed: int = 0, *, progress: bool = True) -> DemoReport:
    """Train, enumerate, sample, and write the figure of four panels.

    Parameters
    ----------
    path : str or Path
        The figure, in a format that matplotlib knows by its suffix; written whole or not at all.
    seed : int
        Of the training and of the latents.
    progress : bool
        Whether `cpwl.subdivide` shows its progress.

    Returns
    -------
    DemoReport
    """
    began = time.perf_counter()
    module = toy_generator(seed)
    trained = time.perf_counter()
    network = cpwl.Network.from_torch(module, (2,))
    captured = time.perf_counter()
    domain = cpwl.box([-RADIUS, -RADIUS], [RADIUS, RADIUS])
    partition = cpwl.subdivide(network, domain, progress=progress)
    enumerated = time.perf_counter()

    spectrum = cpwl.spectrum(partition)
    psi, nu = cpwl.local_scaling(spectrum), cpwl.local_rank(spectrum)
    latents = np.random.default_rng(seed).uniform(-RADIUS, RADIUS, (SAMPLES, 2))
    samples = np.asarray(network(latents), dtype=np.float64)
    estimate = gaussian_kde(samples.T)
    density = estimate(samples.T)
    exact = np.exp(-psi[cpwl.locate(partition, latents)])
    # G(z) = (z1, z2, f(z)) nearly, so a kernel is as wide in the latent square as in the image
    width = np.sqrt(np.diag(estimate.covariance)[:2])
    inside = np.all(np.abs(latents) < RADIUS - _BORDER * width, axis=1)

    with atomic_path(path) as part:
        figure = draw(partition, psi, latents, samples, density)
        figure.savefig(part, dpi=78, bbox_inches="tight", pad_inches=0.1)
    return DemoReport(
        cells=partition.num_cells,
        regions=cpwl.regions(partition).count,
        psi=(float(psi.min()), float(psi.max())),
        nu=(float(nu.min()), float(nu.max())),
        correlation=_rank_correlation(density, exact),
        inner_correlation=_rank_correlation(density[inside], exact[inside]),
        training_seconds=trained - began,
        partition_seconds=enumerated - captured,
        seconds=time.perf_counter() - began,
    )


def draw(
    partition: cpwl.Partition, psi: Floats, latents: Floats, samples: Floats, density: Floats
) -> Figure:
    """Return the figure: partition and image coloured by psi, samples by their estimated density.

    Parameters
    ----------
    partition : Partition
        Of a generator R^2 -> R^3.
    psi : (C,) ndarray
        One entry per cell.
    latents, samples : (N, 2) and (N, 3) ndarray
        Uniform latents and their images.
    density : (N,) ndarray
        The density estimated in R^3 at the samples.
    """
    figure = Figure(figsize=(11.5, 9), layout="constrained")
    flat = figure.add_subplot(2, 2, 1)
    plot.partition(partition, psi, ax=flat, label=plot.LABELS["psi"])
    flat.set(title=f"partition: {partition.num_cells:,} cells", xlabel="$z_1$", ylabel="$z_2$")

    space = figure.add_subplot(2, 2, 2, projection="3d")
    plot.image(partition, psi, ax=space, label=plot.LABELS["psi"])
    space.set(title="image of G", xlabel="$z_1$", ylabel="$z_2$")

    # a few samples on the flat land beside a bump would otherwise use up the whole scale
    low, high = np.quantile(density, [0.01, 0.99])
    style = {"c": density, "cmap": "cividis", "vmin": low, "vmax": high, "s": 4, "linewidths": 0}
    uniform = figure.add_subplot(2, 2, 3)
    points = uniform.scatter(latents[:, 0], latents[:, 1], rasterized=True, **style)
    uniform.set(title=f"{len(latents):,} uniform latents", xlabel="$z_1$", ylabel="$z_2$")
    uniform.set(xlim=(-RADIUS, RADIUS), ylim=(-RADIUS, RADIUS), aspect="equal")
    bar = figure.colorbar(points, ax=uniform, extend="both", pad=0.02, shrink=0.85)
    bar.set_label("density estimated in $R^3$")

    generated = figure.add_subplot(2, 2, 4, projection="3d")
    generated.scatter(*samples.T, depthshade=False, rasterized=True, **style)
    generated.set(title="generated samples", xlabel="$z_1$", ylabel="$z_2$")
    for axes in (space, generated):
        axes.set_zlabel("$f(z)$")  # pyright: ignore[reportAttributeAccessIssue]
        axes.locator_params(nbins=4)
        axes.set_box_aspect((4, 4, 3), zoom=1.1)  # pyright: ignore[reportArgumentType]
    return figure


def _rank_correlation(a: Floats, b: Floats) -> float:
    """Return Spearman's correlation: that of the ranks, ties at their mean."""
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
