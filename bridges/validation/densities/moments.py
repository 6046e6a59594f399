"""Means of exp(psi) and psi over the domain, by autograd at random latents, against exact ones."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import ConvexHull

import cpwl
from bridges.validation.densities.decoding import Stretches
from bridges.validation.densities.result import Moments
from cpwl.arrays import Floats
from cpwl.density import Entropy
from cpwl.descriptors import Spectrum


def compare_moments(
    partition: cpwl.Partition, source: Spectrum, entropy: Entropy, taken: Stretches
) -> Moments:
    """Compare volume, squeezed cells and entropy with those that autograd's Jacobians tell.

    Parameters
    ----------
    partition : Partition
        With a cell of full rank.
    source : Spectrum
        `cpwl.spectrum(partition)`.
    entropy : Entropy
        The exact one.
    taken : Stretches
        At latents that are uniform on the domain.
    """
    n = len(taken.triangles)
    corners = partition.domain.corners
    domain = float(np.ptp(corners) if partition.dim == 1 else ConvexHull(corners).volume)
    full = source.rank == partition.dim
    psi, mass = cpwl.local_scaling(source), cpwl.volumes(partition)
    mass = mass / mass.sum()
    stretch = np.where(full, np.exp(psi), 0.0)
    volume = float(cpwl.image_volumes(partition, source).sum())
    regular = taken.full(source.tolerance)
    change = error = math.nan
    if regular.any():
        logs = math.log(domain) + float(np.log(taken.volume[regular]).mean())
        rest = float(mass[full].sum())
        variance = _spread(psi[full], mass[full] / rest) ** 2 / (n * rest) + (1 - rest) / (rest * n)
        change = logs + math.log(regular.mean()) - entropy.regular
        error = math.sqrt(variance)
    return Moments(
        latents=n,
        volume=volume,
        volume_change=domain * float(taken.volume.mean()) / volume - 1,
        volume_error=_spread(stretch, mass) / (float(mass @ stretch) * math.sqrt(n)),
        lost=1 - float(regular.mean()),
        entropy_change=change,
        entropy_error=error,
    )


def _spread(values: Floats, mass: Floats) -> float:
    """Return the standard deviation of values that have these probabilities."""
    return math.sqrt(float(mass @ np.square(values - float(mass @ values))))
