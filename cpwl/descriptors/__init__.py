"""Descriptors of cells: one number a cell.

A `Partition` goes in; psi, nu, sizes and counts come out, and singular values with the decision
which are zero. Imports the engine (for neighbourhoods) and everything below.
"""

from cpwl.descriptors.complexity import local_complexity
from cpwl.descriptors.sizes import centroids, image_volumes, volumes
from cpwl.descriptors.small_matrices import frames
from cpwl.descriptors.spectra import (
    Spectrum,
    condition_number,
    local_rank,
    local_scaling,
    singular_values,
    spectrum,
    spectrum_of,
)
from cpwl.descriptors.table import DESCRIPTORS, describe

__all__ = [
    "DESCRIPTORS",
    "Spectrum",
    "centroids",
    "condition_number",
    "describe",
    "frames",
    "image_volumes",
    "local_complexity",
    "local_rank",
    "local_scaling",
    "singular_values",
    "spectrum",
    "spectrum_of",
    "volumes",
]
