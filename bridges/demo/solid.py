"""Demo in space: the cells of a trained generator, cut open, pulled apart, swept through."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

import cpwl
from bridges.networks.toys import toy_solid
from cpwl import plot
from cpwl.files import atomic_path


class SolidReport(NamedTuple):
    """Findings of the demo in space; ``exact``: whether every sign was proven."""

    cells: int
    regions: int
    facets: int
    exact: bool
    psi: tuple[float, float]
    training_seconds: float
    partition_seconds: float
    seconds: float

    def __str__(self) -> str:
        """Say it in four lines."""
        return (
            f"trained the toy generator in {self.training_seconds:.1f} s\n"
            f"{self.cells:,} cells, {self.regions:,} linear regions and {self.facets:,} facets, "
            f"enumerated in {self.partition_seconds:.2f} s, "
            f"{'all' if self.exact else 'not all'} signs proven\n"
            f"psi from {self.psi[0]:.3f} to {self.psi[1]:.3f}\n"
            f"{self.seconds:.1f} s in all"
        )


def run_solid_demo(
    path: str | Path, seed: int = 0, *, frames: int = 32, progress: bool = True
) -> SolidReport:
    """Train, enumerate, and write a picture of two panels, or a sweep if the path ends in .gif.

    Parameters
    ----------
    path : str or Path
        Written whole or not at all.
    seed : int
        Of the training.
    frames : int
        Of the sweep.
    progress : bool
        Whether `cpwl.subdivide` and `plot.sweep` show their progress.

    Returns
    -------
    SolidReport
    """
    began = time.perf_counter()
    network = cpwl.Network.from_torch(toy_solid(seed), (3,))
    trained = time.perf_counter()
    partition = cpwl.subdivide(network, cpwl.box([-1] * 3, [1] * 3), progress=progress)
    enumerated = time.perf_counter()
    psi = cpwl.local_scaling(partition)
    label = plot.LABELS["psi"]
    if Path(path).suffix == ".gif":
        plot.sweep(partition, path, values=psi, label=label, frames=frames, progress=progress)
    else:
        figure = Figure(figsize=(10.0, 4.4), layout="constrained")
        for k, explode in enumerate((0.0, 0.18)):
            axes = figure.add_subplot(1, 2, k + 1, projection="3d", computed_zorder=False)
            plot.cells3d(partition, psi, explode=explode, ax=axes, label=label, colorbar=k == 1)
            axes.set(xlabel="$z_1$", ylabel="$z_2$", zlabel="$z_3$")
            axes.patch.set_visible(False)  # it would cover the labels of the panel beside it
        with atomic_path(path) as part:
            figure.savefig(part, dpi=100, bbox_inches="tight", pad_inches=0.1)
    return SolidReport(
        cells=partition.num_cells,
        regions=cpwl.regions(partition).count,
        facets=len(partition.facet_unit),
        exact=partition.status.exact,
        psi=(float(psi.min()), float(psi.max())),
        training_seconds=trained - began,
        partition_seconds=enumerated - trained,
        seconds=time.perf_counter() - began,
    )
