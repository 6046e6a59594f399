"""psi, nu and delta of many latents.

A decoder and a stream of latents go in; a table of `Descriptors` comes out, one row a latent.
Imports the spectra, the complexity and the operator.
"""

from approx.tables.description import DescribeError, describe
from approx.tables.table import LABELS, LONG_NAMES, Descriptors, concatenate, imported

__all__ = [
    "LABELS",
    "LONG_NAMES",
    "DescribeError",
    "Descriptors",
    "concatenate",
    "describe",
    "imported",
]
