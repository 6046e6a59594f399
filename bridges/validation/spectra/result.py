"""Result of the section on psi and nu."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bridges.validation.findings import Row
from bridges.validation.spectra.convergence import Curve
from bridges.validation.spectra.haar import Law
from bridges.validation.spectra.runs import Runs
from bridges.validation.subject import Latents
from cpwl.arrays import Floats


@dataclass(frozen=True, eq=False)
class Spectra:
    """Estimates of psi and nu, and what they should be.

    Attributes
    ----------
    rows : tuple of Row
    latents : Latents
        n uniform latents.
    singular_values : (n, r) float64 ndarray
        Of the true Jacobians, r = min(D, E).
    k : int
        What the methods were asked for.
    runs : mapping of str to Runs
        By the method's name.
    laws : mapping of int to Law
        By k: psi_W and nu_W of random W (k, D).
    convergence : mapping of str to Curve
        Errors against products by the method's name.
    """

    rows: tuple[Row, ...]
    latents: Latents
    singular_values: Floats
    k: int
    runs: Mapping[str, Runs]
    laws: Mapping[int, Law]
    convergence: Mapping[str, Curve]
