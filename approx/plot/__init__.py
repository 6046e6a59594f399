"""Pictures of descriptors with matplotlib: maps of a plane, curves along a path, galleries.

Tables and maps of descriptors go in; figures come out. Every function draws into `figure` (or a new
one), returns it, and neither shows anything nor touches matplotlib's settings. Colour maps are
viridis and line colours those of Okabe and Ito, which colour-blind readers can tell apart.
"""

from approx.plot.figures import distribution, fields, gallery, path
from approx.plot.populations import ends, joint, plate, set_scores
from approx.plot.runs import trajectory

__all__ = [
    "distribution",
    "ends",
    "fields",
    "gallery",
    "joint",
    "path",
    "plate",
    "set_scores",
    "trajectory",
]
