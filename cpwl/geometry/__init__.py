"""Faces of a partition: their sizes, directions and loops.

A `Partition` goes in; volumes, centroids, normals, polygons and solids come out. Imports the
partition as data.
"""

from cpwl.geometry import solid_loops
from cpwl.geometry.measure import Measures, half_spaces, levels, measures, normals, triangulate
from cpwl.geometry.shapely_cells import polygons, rings
from cpwl.geometry.solid_loops import Plane, Polygons

__all__ = [
    "Measures",
    "Plane",
    "Polygons",
    "half_spaces",
    "levels",
    "measures",
    "normals",
    "polygons",
    "rings",
    "solid_loops",
    "triangulate",
]
