"""Rational arithmetic for the signs that float64 leaves open.

A vertex's definition (which knots meet there) and a unit go in; -1, 0 or +1 comes out, or the
vertex's exact coordinates. `Residues` are the network modulo primes, for many zeros at a time.
Imports the network and the domain.
"""

from cpwl.engine.rational.arbiter import Arbiter, Vertices
from cpwl.engine.rational.residues import Residues

__all__ = ["Arbiter", "Residues", "Vertices"]
