"""Matrix-free estimates of the same descriptors, for networks too large to enumerate.

This package imports neither `cpwl` nor `bridges`: an estimate that agrees with the exact engine is
evidence only because the two share no code. `import-linter` enforces it.
"""

from approx.complexity import Knots, knots, neighbourhood
from approx.decoder import DecoderError, bind
from approx.fields import along, field, latents_at
from approx.operator import JacobianOperator
from approx.sketches import Sketch
from approx.spectra import Spectrum, draw_seed, spectrum
from approx.tables import DescribeError, Descriptors, concatenate, describe

__all__ = [
    "DecoderError",
    "DescribeError",
    "Descriptors",
    "JacobianOperator",
    "Knots",
    "Sketch",
    "Spectrum",
    "along",
    "bind",
    "concatenate",
    "describe",
    "draw_seed",
    "field",
    "knots",
    "latents_at",
    "neighbourhood",
    "spectrum",
]
