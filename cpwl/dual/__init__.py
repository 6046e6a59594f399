"""Cells as a graph, and the cell of a latent.

A `Partition` goes in; its adjacency, its regions of one affine map, and the cells of given points
come out. Imports the descriptors and everything below.
"""

from cpwl.dual.graph import adjacency, projected, regions, regions_of
from cpwl.dual.location import locate

__all__ = [
    "adjacency",
    "locate",
    "projected",
    "regions",
    "regions_of",
]
