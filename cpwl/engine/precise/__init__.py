"""The network in about 106 bits, on cells of a partition, with rigorous bounds on what is lost.

Cells and their pieces go in; the affine functions that the units are there come out, in double-
double, each with a bound on its error. Imports a network, its program, slices and arrays.
"""

from cpwl.engine.precise.evaluator import Evaluator, Held, OutOfReachError
from cpwl.engine.precise.expansion_kernels import near_knots
from cpwl.engine.precise.identities import Constants, Identities
from cpwl.engine.precise.roots import Affine, Roots, between, minus, solve, values_at
from cpwl.engine.precise.tournaments import Field

__all__ = [
    "Affine",
    "Constants",
    "Evaluator",
    "Field",
    "Held",
    "Identities",
    "OutOfReachError",
    "Roots",
    "between",
    "minus",
    "near_knots",
    "solve",
    "values_at",
]
