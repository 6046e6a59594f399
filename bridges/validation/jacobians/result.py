"""Result of the section on Jacobians, and the names of what is compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bridges.validation.findings import Row
from bridges.validation.subject import Latents
from cpwl.arrays import Floats

# keys of `errors`; autograd's also stands behind a comma, for what is compared with it
AUTOGRAD, FORWARD, REVERSE = "autograd", "operator J X", "operator J^T Y"
VALUES, SINGLE = "decoder's values", "autograd, float32"
DIFFERENCES, ESTIMATE = "central differences", "central differences' estimate"


@dataclass(frozen=True, eq=False)
class Jacobians:
    """Agreement of Jacobians at n latents.

    Attributes
    ----------
    latents : Latents
        One inside each cell compared; uniform ones where there are no cells.
    errors : mapping of str to (n,) float64 ndarray
        Relative errors by what was compared; see `measure`.
    clear : (n,) bool ndarray
        Where float64 can tell the cell; the limits are claimed there.
    limit : float
        Largest relative error that is taken for rounding.
    directions : int
        Columns of A_w that were compared: all E of them, or those along the slice.
    elsewhere : Latents or None
        Another point of each cell, at which values are compared; None where there are no cells.
    cells : int
        Cells that there are, compared or not.
    rows : tuple of Row
        What `rows_of` makes of the rest.
    """

    latents: Latents
    errors: Mapping[str, Floats]
    clear: NDArray[np.bool_]
    limit: float
    directions: int
    elsewhere: Latents | None = None
    cells: int = 0
    rows: tuple[Row, ...] = ()
