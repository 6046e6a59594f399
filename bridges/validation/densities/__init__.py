"""Section of the report on the output density: closed form against sampling.

A `Subject` goes into `measure`, the section's result comes out; its rows say what is claimed, and
within which limits. `draw` makes its figure. Imports no other section.
"""

from bridges.validation.densities.figure import draw
from bridges.validation.densities.measurement import measure
from bridges.validation.densities.result import Densities

__all__ = ["Densities", "draw", "measure"]
