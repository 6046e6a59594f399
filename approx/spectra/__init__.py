"""psi and nu of a batch of Jacobians.

An operator goes in; a `Spectrum` comes out, with errors and the definition of what was measured.
Imports `approx.sketches`, and of `approx.decoder` its errors.
"""

from approx.spectra.asked import DenseOperator
from approx.spectra.methods import METHODS, check_method, spectrum
from approx.spectra.result import Spectrum, draw_seed, in_words, named

__all__ = [
    "METHODS",
    "DenseOperator",
    "Spectrum",
    "check_method",
    "draw_seed",
    "in_words",
    "named",
    "spectrum",
]
