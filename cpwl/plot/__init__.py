"""Pictures of partitions with matplotlib.

A partition and one value a cell go in; matplotlib axes, or a GIF, come out. Every function draws
into `ax` (or a new figure) and returns the axes; none shows anything or touches matplotlib's
settings. Colour maps are viridis and cividis and line colours those of Okabe and Ito, which
colour-blind readers can tell apart. Imports everything below it; nothing imports it until it is
asked for.
"""

from cpwl.plot.animation import sweep
from cpwl.plot.boundaries import decision_boundary, decision_regions
from cpwl.plot.drawing import LABELS
from cpwl.plot.flat import image, mark, partition
from cpwl.plot.solids import cells3d

__all__ = [
    "LABELS",
    "cells3d",
    "decision_boundary",
    "decision_regions",
    "image",
    "mark",
    "partition",
    "sweep",
]
