"""psi, nu and delta of many latents.

A decoder and a stream of latents go in; a table of `Descriptors` comes out, one row a latent, and
with a store is written as it is done. Imports the spectra, the complexity, the operator, the
stores and the cluster.
"""

from approx.stores import imported
from approx.tables.description import describe, seed_of
from approx.tables.loop import DescribeError
from approx.tables.sources import Images
from approx.tables.stored import StoredDescriptors, open_store
from approx.tables.table import KNOTS, LONG_NAMES, Descriptors, concatenate, label

__all__ = [
    "KNOTS",
    "LONG_NAMES",
    "DescribeError",
    "Descriptors",
    "Images",
    "StoredDescriptors",
    "concatenate",
    "describe",
    "imported",
    "label",
    "open_store",
    "seed_of",
]
