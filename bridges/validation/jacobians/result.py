"""Result of the section on Jacobians."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bridges.validation.findings import Row
from bridges.validation.subject import Latents
from cpwl.arrays import Floats


@dataclass(frozen=True, eq=False)
class Jacobians:
    """Agreement of Jacobians at n latents.

    Attributes
    ----------
    rows : tuple of Row
    latents : Latents
        One inside each cell compared; uniform ones where there are no cells.
    errors : mapping of str to (n,) float64 ndarray
        Relative errors by what was compared; see `measure`.
    clear : (n,) bool ndarray
        Where float64 can tell the cell; the limits are claimed there.
    limit : float
        Largest relative error that is taken for rounding.
    """

    rows: tuple[Row, ...]
    latents: Latents
    errors: Mapping[str, Floats]
    clear: NDArray[np.bool_]
    limit: float
