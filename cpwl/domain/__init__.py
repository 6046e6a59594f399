"""Bounded convex domains, exactly.

Numbers, bounds, corners or half-spaces of a caller go in; a `Domain` on a `Slice` of the latent
space comes out, its faces found in rational arithmetic. Imports only arrays and errors.
"""

from cpwl.domain.arguments import floats
from cpwl.domain.convex_loop import anticlockwise
from cpwl.domain.corners import face_lattice
from cpwl.domain.domain import MAX_DIM, Domain, Slice, in_shape
from cpwl.domain.double_description import extreme_rays, whole
from cpwl.domain.shapes import box, cross_polytope, polygon, polytope, segment, simplex

__all__ = [
    "MAX_DIM",
    "Domain",
    "Slice",
    "anticlockwise",
    "box",
    "cross_polytope",
    "extreme_rays",
    "face_lattice",
    "floats",
    "in_shape",
    "polygon",
    "polytope",
    "segment",
    "simplex",
    "whole",
]
