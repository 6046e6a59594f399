"""Single cells as polyhedra: the half-spaces that bound them, and their corners.

A `Partition` and some of its cells go in; inequalities and vertices come out, in float64 or as
fractions. A `Network` and a latent go in; the cell around it comes out, with its facets and the
cells about it, where nothing can be enumerated. Imports the proof's exact reading of patterns and
everything below.
"""

from cpwl.cells.boundary import Ball, Facets, chebyshev_ball, facets, neighbours
from cpwl.cells.cell import Cell, cell_at
from cpwl.cells.formats import write_polyhedron
from cpwl.cells.inequalities import HalfSpaces
from cpwl.cells.polyhedra import halfspaces, vertices
from cpwl.cells.search import NearCells, cells_near

__all__ = [
    "Ball",
    "Cell",
    "Facets",
    "HalfSpaces",
    "NearCells",
    "cell_at",
    "cells_near",
    "chebyshev_ball",
    "facets",
    "halfspaces",
    "neighbours",
    "vertices",
    "write_polyhedron",
]
