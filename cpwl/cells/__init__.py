"""Single cells as polyhedra: the half-spaces that bound them, and their corners.

A `Partition` and some of its cells go in; inequalities and vertices come out, in float64 or as
fractions. Imports the proof's exact reading of patterns and everything below.
"""

from cpwl.cells.inequalities import HalfSpaces

__all__ = ["HalfSpaces"]
