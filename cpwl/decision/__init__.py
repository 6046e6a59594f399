"""Where an output has a value, where two are equal, and which one wins: exact inside the cells.

A `Partition` goes in; points, polylines, meshes and regions come out. On a cell every output is
affine, so its values at the corners say everything. Each side of a cell is cut once, and the cells
that share the side share the vertex. Imports the affine maps and everything below.
"""

from cpwl.decision.level_sets import Contour, contour
from cpwl.decision.vertex_values import vertex_outputs
from cpwl.decision.winners import DecisionRegions, decision_regions

__all__ = ["Contour", "DecisionRegions", "contour", "decision_regions", "vertex_outputs"]
