"""`Descriptors`: one row a latent, and what the numbers mean; tables joined and exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from approx.spectra import in_words, named
from approx.stores import imported

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

# psi of which singular values: the columns keep their names, and the definition tells
SUBSCRIPTED = ("psi", "nu")

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
    "doubtful": "singular values that the precision leaves in doubt",
    "fell_back": "whether all k products were made instead of a prediction",
    "products": "Jacobian products made for this latent",
    "delta": "local complexity, knots that meet the neighbourhood",
    "delta_error": "units that rounding leaves undecided",
    "density": "knots per unit radius",
    "soft": "delta_soft, units of smooth activations weighted by their curvature",
    "zaslavsky": "upper bound on the cells that meet the neighbourhood",
}

# what belongs to the rows of one table, and may differ between tables that are joined
_OF_ROWS = ("complete", "continued", "note", "failures", "suggested_radius")
_LISTED = 20  # failures in the attributes of a file

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
        Standard errors of psi and nu: of rounding for "exact", with the spread over W for
        "predict" and "paper"; NaN for "topk", whose error is a bound.
    psi_low, psi_high, nu_low, nu_high : (N,) float64
        Ends of the 95 % intervals ("topk": of the bound).
    effective_rank : (N,) float64
        (sum sigma^2)^2 / sum sigma^4 over all of the Jacobian.
    rank : (N,) float64
        How many of the k singular values are not zero.
    doubtful : (N,) float64
        How many of them the precision of the products leaves in doubt. psi is NaN where these
        would decide about it; `note` says why.
    fell_back : (N,) bool
        Where "predict" made all k products: psi and nu are then those of "paper".
    products : (N,) int64
        Jacobian products made for the latent, the same for all of its batch.
    delta, delta_error : (N,) float64, or None without a neighbourhood
        Knots that meet it, and how many of the units are undecided within rounding. NaN where the
        decoder has no units that could have knots and `passed_over` is not empty, or runs an
        operation in which they cannot be counted, which `note` names.
    density, soft, zaslavsky : (N,) float64, or None without a neighbourhood
        Knots per unit radius; delta_soft; Zaslavsky's bound. See `knots`.
    method, used : str
        How psi and nu were to be estimated, and how they were: "auto" takes "exact" or "predict".
        `ran` says for how many latents "predict" took more products, or fell back on "paper".
    continued : int, or None of rows cut out of a store's chunk
        For how many latents "predict" took more products than it began with, and not all k.
    definition : str
        What psi and nu are of. It begins with their names: psi of the whole Jacobian, psi_k of its
        k largest singular values, psi_W of those of W J.
    subscript : {"", "k", "W"}
        Of these names.
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
    suggested_radius : float
        Where delta is 0 at most latents: the radius at which about ten knots would be met. Else
        NaN.
    passed_over : tuple of str
        Bends and jumps that ran and are no units (softmax, tanh, ...).
    dtype : str
        The dtype in which the decoder ran for psi and nu: "float32", "bfloat16" if under autocast
        to it, ...
    latent_shape, output_shape : tuple of int
        Of one latent and one output, without the batch axis.
    note : str
        Why numbers are NaN, where some are; empty otherwise.
    failures : tuple of (int, str)
        With ``on_error="nan"``: number and reason of each latent that could not be described.
    complete : bool
        False if it was interrupted: the rows are then those of the first latents.

    Examples
    --------
    >>> import torch
    >>> from approx import describe
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    >>> describe(decoder, torch.ones(3, 2), neighbourhood=None, seed=0, progress=False)
    Descriptors(3 latents, psi and nu (exact), k=2, float32, seed=0, complete)
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
    rank: Floats
    doubtful: Floats
    fell_back: NDArray[np.bool_]
    products: Integers
    delta: Floats | None
    delta_error: Floats | None
    density: Floats | None
    soft: Floats | None
    zaslavsky: Floats | None
    method: str
    used: str
    definition: str
    subscript: str
    k: int
    seed: int
    directions: int
    radius: float
    knots_method: str
    knots_dtype: str
    passes: int
    units: int
    suggested_radius: float
    passed_over: tuple[str, ...]
    dtype: str
    latent_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    continued: int | None
    note: str
    failures: tuple[tuple[int, str], ...]
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
        psi, nu = (named(name, self.subscript) for name in SUBSCRIPTED)
        doubts = "".join(f", {words}" for words in self.doubts())
        return (
            f"Descriptors({len(self):,} latents, {psi} and {nu} ({self.ran()}), k={self.k}"
            f"{delta}, {self.dtype}, seed={self.seed}{doubts}, {state})"
        )

    def _repr_html_(self) -> str:
        """Return the summary and the descriptors' quantiles, for notebooks."""
        names = ("", "smallest", "median", "largest", "median error")
        rows = ["".join(f"<th>{name}</th>" for name in names)]
        for name in ("psi", "nu", "delta"):
            columns = getattr(self, name), getattr(self, f"{name}_error")
            values, errors = (np.empty(0) if c is None else c[np.isfinite(c)] for c in columns)
            if not len(values):
                continue
            numbers = [
                *np.quantile(values, [0, 0.5, 1]),
                *np.quantile(errors, [0.5] * (len(errors) > 0)),
            ]
            cells = "".join(f"<td>{number:.5g}</td>" for number in numbers)
            title = named(name, self.subscript) if name in SUBSCRIPTED else name
            rows.append(f"<th>{title}</th>{cells}")
        table = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<div><p>{escape(repr(self))}</p><table>{table}</table></div>"

    def ran(self) -> str:
        """Return which methods ran, in words: of "predict" what it did for how many latents."""
        if self.method not in ("auto", "predict") or self.used == "exact":
            return self.used
        return in_words(len(self) - len(self.failures), self.continued or 0, self.fallen())

    def fallen(self) -> int:
        """Return for how many latents "predict" made all k products."""
        return int(self.fell_back.sum())

    def doubts(self) -> list[str]:
        """Return what is not known and why, a sentence each, without numbers that are all there."""
        found = []
        doubtful = int((self.doubtful > 0).sum())
        if doubtful:
            found.append(f"singular values in doubt at {doubtful:,} latents")
        unknown = int(np.isnan(self.psi).sum()) - len(self.failures)
        if unknown:
            found.append(f"psi NaN at {unknown:,}")
        if self.failures:
            found.append(f"{len(self.failures):,} failed")
        if self.delta is not None and len(self) and np.isnan(self.delta).all():
            found.append(f"delta unknown ({', '.join(self.passed_over)})")
        elif np.isfinite(self.suggested_radius):
            zero, around = int((self.delta == 0).sum()), (self.directions, self.suggested_radius)
            hint = "about 10 knots with neighbourhood ({}, {:.1g})".format(*around)
            found.append(f"delta 0 at {zero:,} ({hint})")
        return found

    def columns(self) -> Mapping[str, NDArray[Any]]:
        """Return the columns (N,) by name: those of delta only where it was asked for."""
        found = {name: getattr(self, name) for name in LONG_NAMES}
        return {name: column for name, column in found.items() if column is not None}

    def attributes(self) -> dict[str, str | int | float | list[int]]:
        """Return the fields that describe the whole table, in types that files can hold."""
        result: dict[str, str | int | float | list[int]] = {}
        for f in fields(self):
            if f.name in LONG_NAMES:
                continue
            value = getattr(self, f.name)
            if f.name == "passed_over":
                value = ", ".join(value)
            elif f.name == "failures":
                value = _listed(value)
            elif f.name == "used":
                value = self.ran()
            elif f.name == "seed":  # a netCDF attribute has 32 bits, or is text
                value = str(value)
            elif isinstance(value, bool):
                value = int(value)
            elif isinstance(value, tuple):
                value = list(value)
            if value is None or (isinstance(value, float) and not np.isfinite(value)):
                continue
            result[f.name] = value
        return result

    def described(self, name: str) -> dict[str, str]:
        """Return the attributes of a column: its long name, and for psi and nu what they are of."""
        long = {"long_name": LONG_NAMES[name]}
        return long | {"definition": self.definition} if name in SUBSCRIPTED else long

    def to_pandas(self) -> pd.DataFrame:
        """Return a DataFrame, one row a latent, with `attributes()` in its `attrs`.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        pd = imported("pandas")
        frame = pd.DataFrame(dict(self.columns()), index=pd.RangeIndex(len(self), name="latent"))
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
            name: ("latent", column, self.described(name))
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
        if f.name in LONG_NAMES or f.name in _OF_ROWS:
            continue
        found = {str(getattr(table, f.name)) for table in tables}
        if len(found) > 1:
            raise ValueError(
                f"Expected tables made with the same {f.name}, got {' and '.join(sorted(found))}: "
                "describe them with the same arguments and generator=table.seed."
            )
    columns: dict[str, Any] = {
        name: np.concatenate([table.columns()[name] for table in tables])
        for name in first.columns()
    }
    starts = np.cumsum([0, *map(len, tables)]).tolist()
    held = {f.name: getattr(first, f.name) for f in fields(first) if f.name not in LONG_NAMES}
    changed: dict[str, Any] = {
        "complete": tables[-1].complete,
        "continued": None
        if any(table.continued is None for table in tables)
        else sum(table.continued or 0 for table in tables),
        "note": " ".join(dict.fromkeys(table.note for table in tables if table.note)),
        "failures": tuple(
            (start + number, reason)
            for start, table in zip(starts, tables, strict=False)
            for number, reason in table.failures
        ),
        # of all rows only where most of each table's have no knot
        "suggested_radius": float(np.median([table.suggested_radius for table in tables])),
    }
    absent: dict[str, Any] = dict.fromkeys(LONG_NAMES)
    return Descriptors(**(absent | columns | held | changed))


def label(name: str, subscript: str | None = "") -> str:
    """Return a column's name in a figure; psi and nu say of which singular values they are.

    `subscript` is None where nobody says.
    """
    text = LABELS.get(name, name.replace("_", " "))
    if name not in SUBSCRIPTED or subscript == "":
        return text
    if subscript is None:
        return f"{text} (definition unknown)"
    return text[:-1] + f"_{subscript}$"


def _listed(failures: Sequence[tuple[int, str]]) -> str:
    """Return the first failures as text."""
    text = "; ".join(f"latent {number}: {reason}" for number, reason in failures[:_LISTED])
    return text if len(failures) <= _LISTED else f"{text}; ... ({len(failures):,} in all)"
