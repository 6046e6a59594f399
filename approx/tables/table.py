"""`Descriptors`: one row a latent, and what the numbers mean; tables joined and exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LABELS = {
    "psi": r"local scaling $\psi$",
    "nu": r"local rank $\nu$",
    "delta": r"local complexity $\delta$",
    "effective_rank": "effective rank",
    "density": "knots per unit radius",
    "soft": r"soft complexity $\delta_{\mathrm{soft}}$",
}

LONG_NAMES = {
    "psi": "local scaling, sum of log singular values",
    "psi_error": "standard error of psi",
    "psi_low": "lower end of psi's 95 % interval",
    "psi_high": "upper end of psi's 95 % interval",
    "nu": "local rank, exp of the entropy of the singular values",
    "nu_error": "standard error of nu",
    "nu_low": "lower end of nu's 95 % interval",
    "nu_high": "upper end of nu's 95 % interval",
    "effective_rank": "(sum sigma^2)^2 / sum sigma^4 of the Jacobian",
    "rank": "singular values that are not zero, of the k",
    "fell_back": "whether all k products were made instead of a prediction",
    "products": "Jacobian products made for this latent",
    "delta": "local complexity, knots that meet the neighbourhood",
    "delta_error": "units that rounding leaves undecided",
    "density": "knots per unit radius",
    "soft": "delta_soft, units of smooth activations weighted by their curvature",
    "zaslavsky": "upper bound on the cells that meet the neighbourhood",
}

# None where no neighbourhood was given
KNOTS = ("delta", "delta_error", "density", "soft", "zaslavsky")


@dataclass(frozen=True, eq=False, repr=False)
class Descriptors:
    """psi, nu and delta of N latents, in the order in which they came; made by `describe`.

    The columns cannot be written to.

    Attributes
    ----------
    psi, nu : (N,) float64
        Local scaling and local rank of what `definition` says.
    psi_error, nu_error : (N,) float64
        Standard errors of psi and nu, with the spread over W for "predict" and "paper"; NaN for
        "topk", whose error is a bound, 0 for "exact".
    psi_low, psi_high, nu_low, nu_high : (N,) float64
        Ends of the 95 % intervals ("topk": of the bound).
    effective_rank : (N,) float64
        (sum sigma^2)^2 / sum sigma^4 over all of the Jacobian.
    rank : (N,) int64
        How many of the k singular values are not zero.
    fell_back : (N,) bool
        Where "predict" made all k products.
    products : (N,) int64
        Jacobian products made for the latent, the same for all of its batch.
    delta, delta_error : (N,) int64, or None without a neighbourhood
        Knots that meet it, and how many of the units are undecided within rounding.
    density, soft, zaslavsky : (N,) float64, or None without a neighbourhood
        Knots per unit radius; delta_soft; Zaslavsky's bound. See `knots`.
    method, definition : str
        How psi and nu were estimated, and what they are of.
    k : int
        Number of singular values behind psi and nu.
    seed : int
        `generator=seed` gives the same table again.
    directions : int
        P, of the neighbourhood; 0 without one.
    radius : float
        r, in units of the latents; NaN without a neighbourhood.
    knots_method : str
        "jvp" or "hull"; empty without a neighbourhood.
    knots_dtype : str
        The dtype in which delta was counted; empty without a neighbourhood.
    passes : int
        Cost of delta per latent, in forward passes.
    units : int
        Number of units that could have knots.
    passed_over : tuple of str
        Bends and jumps that ran and are no units (softmax, tanh, ...).
    dtype : str
        The dtype in which the decoder ran for psi and nu: "float32", "bfloat16" if under autocast
        to it, ...
    latent_shape, output_shape : tuple of int
        Of one latent and one output, without the batch axis.
    complete : bool
        False if it was interrupted: the rows are then those of the first latents.

    Examples
    --------
    >>> import torch
    >>> from approx import describe
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    >>> describe(decoder, torch.ones(3, 2), neighbourhood=(2, 0.1), generator=0, progress=False)
    Descriptors(3 latents, predict, k=2, P=2, r=0.1, float32, seed=0, complete)
    """

    psi: Floats
    psi_error: Floats
    psi_low: Floats
    psi_high: Floats
    nu: Floats
    nu_error: Floats
    nu_low: Floats
    nu_high: Floats
    effective_rank: Floats
    rank: Integers
    fell_back: NDArray[np.bool_]
    products: Integers
    delta: Integers | None
    delta_error: Integers | None
    density: Floats | None
    soft: Floats | None
    zaslavsky: Floats | None
    method: str
    definition: str
    k: int
    seed: int
    directions: int
    radius: float
    knots_method: str
    knots_dtype: str
    passes: int
    units: int
    passed_over: tuple[str, ...]
    dtype: str
    latent_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    complete: bool

    def __post_init__(self) -> None:
        """Freeze the columns."""
        for column in self.columns().values():
            column.flags.writeable = False

    def __len__(self) -> int:
        return len(self.psi)

    def __repr__(self) -> str:
        delta = f", P={self.directions}, r={self.radius:g}" if self.directions else ""
        state = "complete" if self.complete else "interrupted"
        return (
            f"Descriptors({len(self):,} latents, {self.method}, k={self.k}{delta}, "
            f"{self.dtype}, seed={self.seed}, {state})"
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns (N,) by name: those of delta only where it was asked for."""
        found = {name: getattr(self, name) for name in LONG_NAMES}
        return {name: column for name, column in found.items() if column is not None}

    def attributes(self) -> dict[str, str | int | float | list[int]]:
        """Return the fields that describe the whole table, in types that files can hold."""
        result: dict[str, str | int | float | list[int]] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in LONG_NAMES:
                continue
            if f.name == "passed_over":
                value = ", ".join(value)
            elif f.name == "seed":  # a netCDF attribute has 32 bits, or is text
                value = str(value)
            elif isinstance(value, bool):
                value = int(value)
            elif isinstance(value, tuple):
                value = list(value)
            if f.name == "radius" and not self.directions:
                continue
            result[f.name] = value
        return result

    def to_pandas(self) -> pd.DataFrame:
        """Return a DataFrame, one row a latent, with `attributes()` in its `attrs`.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        pd = imported("pandas")
        frame = pd.DataFrame(self.columns(), index=pd.RangeIndex(len(self), name="latent"))
        frame.attrs = self.attributes()
        return frame

    def to_xarray(self) -> xr.Dataset:
        """Return a Dataset over the dimension "latent", with `attributes()` in its `attrs`.

        Raises
        ------
        ImportError
            If xarray is not installed.
        """
        xr = imported("xarray")
        data = {
            name: ("latent", column, {"long_name": LONG_NAMES[name]})
            for name, column in self.columns().items()
        }
        coords = {"latent": np.arange(len(self))}
        return xr.Dataset(data, coords=coords, attrs=self.attributes())


def concatenate(tables: Sequence[Descriptors]) -> Descriptors:
    """Join tables made with the same settings, such as an interrupted one and its continuation.

    Parameters
    ----------
    tables : sequence of Descriptors
        At least one.

    Returns
    -------
    Descriptors
        The rows of all in their order; complete if the last table is.

    Raises
    ------
    ValueError
        No tables, or different settings.

    Examples
    --------
    >>> import torch
    >>> from approx import concatenate, describe
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU())
    >>> parts = [describe(decoder, z, neighbourhood=(2, 0.1), generator=0, progress=False)
    ...          for z in torch.ones(2, 3, 2)]
    >>> len(concatenate(parts))
    6
    """
    if not tables:
        raise ValueError("Expected at least one table, got none: describe some latents first.")
    first = tables[0]
    for f in fields(first):
        if f.name in LONG_NAMES or f.name == "complete":
            continue
        found = {str(getattr(table, f.name)) for table in tables}
        if len(found) > 1:
            raise ValueError(
                f"Expected tables made with the same {f.name}, got {' and '.join(sorted(found))}: "
                "describe them with the same arguments and generator=table.seed."
            )
    columns = {
        name: np.concatenate([table.columns()[name] for table in tables])
        for name in first.columns()
    }
    return replace(first, **columns, complete=tables[-1].complete)


def imported(name: str) -> Any:
    """Import an optional package, or say how to get it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Expected {name} to be installed, got {error}: pip install 'cpwl[table]'."
        ) from error
