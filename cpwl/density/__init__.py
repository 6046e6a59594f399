"""The output's distribution in closed form.

A `Partition` and a latent distribution go in; densities, entropies, masses and exactly uniform
samples come out. Imports the descriptors and everything below.
"""

from cpwl.density.density import (
    Entropy,
    entropy,
    entropy_difference,
    log_density,
    sample_image,
    total_image_volume,
)
from cpwl.density.latents import Gaussian, Uniform, cell_masses, log_or_minus_inf, uniform_in_cells
from cpwl.density.overlaps import overlap, overlap_of, planes

__all__ = [
    "Entropy",
    "Gaussian",
    "Uniform",
    "cell_masses",
    "entropy",
    "entropy_difference",
    "log_density",
    "log_or_minus_inf",
    "overlap",
    "overlap_of",
    "planes",
    "sample_image",
    "total_image_volume",
    "uniform_in_cells",
]
