"""Section of the report on Jacobians: A_w against torch's derivatives and products.

`measure` takes a `Subject` and returns the section's result; its rows say what is claimed and within
which limits; `draw` makes its figure. Imports no other section but what the subject shares.
"""

from bridges.validation.autograd import true_jacobians
from bridges.validation.jacobians.figure import draw
from bridges.validation.jacobians.measurement import measure
from bridges.validation.jacobians.result import Jacobians

__all__ = ["Jacobians", "draw", "measure"]
