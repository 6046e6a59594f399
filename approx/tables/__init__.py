"""psi, nu and delta of many latents.

A decoder and a stream of latents go in; a table of `Descriptors` comes out, one row a latent.
Imports the spectra, the complexity and the operator.
"""

from approx.tables.description import describe, seed_of
from approx.tables.loop import DescribeError
from approx.tables.table import KNOTS, LONG_NAMES, Descriptors, concatenate, imported, label

__all__ = [
    "KNOTS",
    "LONG_NAMES",
    "DescribeError",
    "Descriptors",
    "concatenate",
    "describe",
    "imported",
    "label",
    "seed_of",
]
