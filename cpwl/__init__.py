"""Exact geometry of continuous piecewise-linear (CPWL) generators.

A network of affine operations and CPWL non-linearities cuts its input space into convex cells and
is affine on each of them. `subdivide` enumerates every cell over a bounded one- or two-dimensional
domain; free functions compute maps, descriptors, densities and pictures from its `Partition`.
"""

from cpwl.domain import Domain, Slice, box, cross_polytope, polygon, segment

__all__ = ["Domain", "Slice", "box", "cross_polytope", "polygon", "segment"]
