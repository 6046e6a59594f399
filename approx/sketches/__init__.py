"""Randomized linear algebra on anything with products `matmat` and `rmatmat`.

A linear operator goes in; orthonormal probes, projections and largest singular values come out.
Imports `approx.devices`: nothing here knows of decoders.
"""

from approx.sketches.krylov import block_krylov
from approx.sketches.probes import (
    Operator,
    Probes,
    check_count,
    orthonormal,
    singular_values,
    triangular,
    widened,
)
from approx.sketches.projections import Begun, Sketch, projected

__all__ = [
    "Begun",
    "Operator",
    "Probes",
    "Sketch",
    "block_krylov",
    "check_count",
    "orthonormal",
    "projected",
    "singular_values",
    "triangular",
    "widened",
]
