"""Matrix-free estimates of the same descriptors, for networks too large to enumerate.

This package imports neither `cpwl` nor `bridges`: an estimate that agrees with the exact engine is
evidence only because the two share no code. `import-linter` enforces it.
"""

from approx._checks import DecoderError
from approx.describe import DescribeError, describe
from approx.field import along, field, latents_at
from approx.knots import Knots, knots, neighbourhood
from approx.operator import JacobianOperator
from approx.sketch import Sketch
from approx.spectrum import Spectrum, draw_seed, spectrum
from approx.table import Descriptors, concatenate

__all__ = [
    "DecoderError",
    "DescribeError",
    "Descriptors",
    "JacobianOperator",
    "Knots",
    "Sketch",
    "Spectrum",
    "along",
    "concatenate",
    "describe",
    "draw_seed",
    "field",
    "knots",
    "latents_at",
    "neighbourhood",
    "spectrum",
]
