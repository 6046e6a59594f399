"""Enumeration in one and two dimensions: each cell is cut by all columns at once.

A convex polygon (or segment) goes in, a `Refined` complex comes out. Imports nothing of
`cpwl.engine.space`.
"""

from cpwl.engine.plane.complex import Complex, Refined
from cpwl.engine.plane.proving import Proof, prove
from cpwl.engine.plane.refinement import coarse, refine

__all__ = ["Complex", "Proof", "Refined", "coarse", "prove", "refine"]
