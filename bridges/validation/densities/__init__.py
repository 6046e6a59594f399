"""Section of the report on the output density: closed form against sampling.

`measure` takes a `Subject` and returns the section's result; its rows say what is claimed and within
which limits; `draw` makes its figure. Imports no other section but what the subject shares.
"""

from bridges.validation.densities.figure import draw
from bridges.validation.densities.measurement import measure
from bridges.validation.densities.result import Densities

__all__ = ["Densities", "draw", "measure"]
