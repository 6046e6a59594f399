"""Arrays of float64 and int64, and the constants of float64's rounding."""

from __future__ import annotations

from math import frexp

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EPS = 2.0**-52  # from 1 to the next float64
UNIT_ROUNDOFF = 2.0**-53  # bound on the relative error of one rounded operation
SMALLEST = 2.0**-1074  # the least positive float64


def magnitude(points: Floats) -> int:
    """Return the binary exponent of the largest coordinate: 2^-it brings all to at most 1."""
    return frexp(np.abs(points).max(initial=0.0))[1]
