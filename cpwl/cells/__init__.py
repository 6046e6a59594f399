"""Single cells as polyhedra: the half-spaces that bound them, and their corners.

A `Partition` and some of its cells go in; inequalities and vertices come out, in float64 or as
fractions. Imports the proof's exact reading of patterns and everything below.
"""

from cpwl.cells.formats import write_polyhedron
from cpwl.cells.inequalities import HalfSpaces
from cpwl.cells.polyhedra import halfspaces, vertices

__all__ = ["HalfSpaces", "halfspaces", "vertices", "write_polyhedron"]
