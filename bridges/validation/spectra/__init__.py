"""Section of the report on psi and nu: every method against the exact singular values.

A `Subject` goes into `measure`, the section's result comes out; its rows say what is claimed, and
within which limits. `draw` makes its figure. Imports no other section.
"""

from bridges.validation.spectra.figure import draw
from bridges.validation.spectra.measurement import measure
from bridges.validation.spectra.result import Spectra
from bridges.validation.spectra.runs import Estimator, default_methods

__all__ = ["Estimator", "Spectra", "default_methods", "draw", "measure"]
