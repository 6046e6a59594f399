"""Enumeration in three to six dimensions: all faces are cut column after column.

A polytope goes in, a `RefinedLattice` comes out. Imports nothing of `cpwl.engine.plane`.
"""

from cpwl.engine.space.flattening import straightened
from cpwl.engine.space.lattice import RefinedLattice, corners
from cpwl.engine.space.refinement import refine_lattice

__all__ = ["RefinedLattice", "corners", "refine_lattice", "straightened"]
