"""psi and nu of a batch of Jacobians.

An operator goes in; a `Spectrum` comes out, with errors and the definition of what was measured.
Imports `approx.sketches`.
"""

from approx.spectra.methods import DenseOperator, Method, spectrum
from approx.spectra.result import Spectrum, draw_seed

__all__ = ["DenseOperator", "Method", "Spectrum", "draw_seed", "spectrum"]
