"""Section of the report on local complexity: counted knots against enumerated cells.

A `Subject` goes into `measure`, the section's result comes out; its rows say what is claimed, and
within which limits. `draw` makes its figure. Imports no other section.
"""

from bridges.validation.complexity.figure import draw
from bridges.validation.complexity.measurement import measure
from bridges.validation.complexity.result import Complexity

__all__ = ["Complexity", "draw", "measure"]
