"""Section of the report on local complexity: counted knots against enumerated cells.

`measure` takes a `Subject` and returns the section's result; its rows say what is claimed and within
which limits; `draw` makes its figure. Imports no other section but what the subject shares.
"""

from bridges.validation.complexity.figure import draw
from bridges.validation.complexity.measurement import measure
from bridges.validation.complexity.result import Complexity

__all__ = ["Complexity", "draw", "measure"]
