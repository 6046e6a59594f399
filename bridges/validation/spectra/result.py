"""Result of the section on psi and nu, and the records that it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bridges.validation.findings import Row
from bridges.validation.subject import Latents
from cpwl.arrays import Floats


class Truth(NamedTuple):
    """The exact Jacobians of n latents, by their singular values.

    Attributes
    ----------
    values : (n, r) float64 ndarray
        Descending; 0 where numpy.linalg.matrix_rank says so.
    clear : (n,) bool ndarray
        Whether no value is so small that the next rounding may say otherwise.
    outputs, columns : int
        D and E.
    """

    values: Floats
    clear: NDArray[np.bool_]
    outputs: int
    columns: int

    def condition(self, k: int) -> Floats:
        """Return by how much psi of the k largest moves per relative error of J, at most, (n,).

        Every singular value moves by at most the error's norm (Weyl): sum of |J|_F / sigma_i.
        """
        kept = self.values[:, :k] > 0
        norms = np.linalg.norm(self.values, axis=1)[:, None]
        return (np.where(kept, norms, 0.0) / np.where(kept, self.values[:, :k], 1.0)).sum(axis=1)

    @property
    def effective_rank(self) -> Floats:
        """(sum sigma^2)^2 / sum sigma^4, (n,); NaN for a zero Jacobian."""
        squares = np.square(self.values)
        second = np.square(squares).sum(axis=1)
        some = np.where(second > 0, second, np.nan)
        return np.square(squares.sum(axis=1)) / some


class Runs(NamedTuple):
    """One method over S seeds at n latents.

    Attributes
    ----------
    method, definition : str
        As in `approx.Spectrum`.
    k : int
        Singular values that it is about.
    products : int
        Jacobian products per latent, the most over seeds.
    psi, nu : (S, n) float64 ndarray
    psi_stderr, nu_stderr : (S, n) float64 ndarray
    psi_interval, nu_interval : (S, n, 2) float64 ndarray
    fell_back : (S, n) bool ndarray
    """

    method: str
    definition: str
    k: int
    products: int
    psi: Floats
    nu: Floats
    psi_stderr: Floats
    nu_stderr: Floats
    psi_interval: Floats
    nu_interval: Floats
    fell_back: NDArray[np.bool_]

    def of(self, descriptor: str) -> tuple[Floats, Floats, Floats]:
        """Return values, standard errors and intervals of "psi" or "nu"."""
        if descriptor == "psi":
            return self.psi, self.psi_stderr, self.psi_interval
        return self.nu, self.nu_stderr, self.nu_interval


class Law(NamedTuple):
    """Draws of psi_W and nu_W, W (k, D) Haar, the same W for all latents.

    Attributes
    ----------
    psi, nu : (draws, n) float64 ndarray
    """

    psi: Floats
    nu: Floats


class Curve(NamedTuple):
    """Root-mean-square errors against what the method is to estimate, over latents and seeds.

    Attributes
    ----------
    products : (m,) float64 ndarray
        Jacobian products per latent.
    psi, nu : (m,) float64 ndarray
    """

    products: Floats
    psi: Floats
    nu: Floats

    def slope(self, descriptor: str) -> float:
        """Return d log error / d log products by least squares; NaN below three points."""
        error = self.psi if descriptor == "psi" else self.nu
        some = error > 1e-10  # the rest is rounding
        if some.sum() < 3:
            return float("nan")
        return float(np.polyfit(np.log(self.products[some]), np.log(error[some]), 1)[0])


class Single(NamedTuple):
    """psi of the whole Jacobian from a decoder in float32.

    Attributes
    ----------
    psi, error : (n,) float64 ndarray
        With the error that is stated.
    exact : (n,) float64 ndarray
        psi of the float64 Jacobian at the same rounded latents.
    same : (n,) bool ndarray
        Where float32 is on the same cell.
    doubtful : (n,) int64 ndarray
        Singular values left in doubt.
    """

    psi: Floats
    error: Floats
    exact: Floats
    same: NDArray[np.bool_]
    doubtful: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Spectra:
    """Estimates of psi and nu, and what they should be.

    Attributes
    ----------
    latents : Latents
        n uniform latents.
    truth : Truth
        The exact Jacobians there.
    k : int
        What the methods were asked for.
    runs : mapping of str to Runs
        By the method's name.
    laws : mapping of int to Law
        By k: psi_W and nu_W of random W (k, D).
    convergence : mapping of str to Curve
        Errors against products by the method's name.
    gaps : mapping of str to float
        By how much psi moves if the first seed runs on the operator instead of its matrices.
    single : Single or None
        From the decoder in float32; None if its weights are not.
    rows : tuple of Row
        What `rows_of` makes of the rest.
    """

    latents: Latents
    truth: Truth
    k: int
    runs: Mapping[str, Runs]
    laws: Mapping[int, Law]
    convergence: Mapping[str, Curve]
    gaps: Mapping[str, float]
    single: Single | None = None
    rows: tuple[Row, ...] = ()

    @property
    def singular_values(self) -> Floats:
        """Singular values of the true Jacobians, (n, r), r = min(D, E)."""
        return self.truth.values

    def repeats_paper(self, one: Runs) -> bool:
        """Whether a prediction fell back everywhere, beside the draws that it fell back to."""
        drawn = any(other.method == "paper" for other in self.runs.values())
        return drawn and one.method == "predict" and bool(one.fell_back.all())
