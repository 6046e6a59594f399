"""Matrix-free estimates of the same descriptors, for networks too large to enumerate.

This package imports neither `cpwl` nor `bridges`: an estimate that agrees with the exact engine is
evidence only because the two share no code. `import-linter` enforces it.
"""

from approx._checks import DecoderError
from approx.knots import Knots, knots, neighbourhood
from approx.operator import JacobianOperator
from approx.sketch import Sketch
from approx.spectrum import Spectrum, draw_seed, spectrum

__all__ = [
    "DecoderError",
    "JacobianOperator",
    "Knots",
    "Sketch",
    "Spectrum",
    "draw_seed",
    "knots",
    "neighbourhood",
    "spectrum",
]
