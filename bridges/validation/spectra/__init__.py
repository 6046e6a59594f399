"""Section of the report on psi and nu: every method against the exact singular values.

`measure` takes a `Subject` and returns the section's result; its rows say what is claimed and within
which limits; `draw` makes its figure. Imports no other section but what the subject shares.
"""

from bridges.validation.spectra.figure import draw
from bridges.validation.spectra.measurement import Estimator, default_methods, measure
from bridges.validation.spectra.result import Spectra

__all__ = ["Estimator", "Spectra", "default_methods", "draw", "measure"]
