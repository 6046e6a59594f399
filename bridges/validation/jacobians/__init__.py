"""Section of the report on Jacobians: A_w against torch's derivatives and products.

A `Subject` goes into `measure`, the section's result comes out; its rows say what is claimed, and
within which limits. `draw` makes its figure. Imports no other section.
"""

from bridges.validation.jacobians.figure import draw
from bridges.validation.jacobians.measurement import measure
from bridges.validation.jacobians.result import Jacobians

__all__ = ["Jacobians", "draw", "measure"]
