"""Enumeration of cells; the only package that cuts anything.

A `Network` and a `Domain` go in, a `Partition` comes out. `plane` and `space` are two engines
that share the reading of a stage, its bounds and rational arithmetic. Imports nothing of checks
or proof.
"""

from cpwl.engine.enumeration import HowProven, attempt, require_proof, subdivide

__all__ = ["HowProven", "attempt", "require_proof", "subdivide"]
