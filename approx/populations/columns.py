"""Columns of a table and labels of its rows, as arrays of one length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from approx.decoder import as_array, first_line
from approx.tables import Descriptors

_MISSING = {"None", "nan", "<NA>", "NaT"}

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Table = Descriptors | Mapping[str, Any] | Any
"""Descriptors, a mapping from names to (N,) array_like, or a pandas DataFrame."""


def columns_of(table: Table) -> dict[str, NDArray[Any]]:
    """Return the columns (N,) of a table by name.

    Raises
    ------
    ValueError
        No columns, or columns of different lengths.
    """
    found: Any = table
    if callable(getattr(table, "columns", None)):  # a DataFrame has an index of that name
        found = found.columns()
    elif not hasattr(found, "keys"):
        raise ValueError(
            "Expected a table of `describe`, a DataFrame, or columns by name, got "
            f"{type(table).__name__}: give a dictionary of arrays."
        )
    columns = {str(name): as_array(found[name]) for name in found}
    shapes = {name: column.shape for name, column in columns.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(
            f"Expected columns of one length (N,), got {shapes}: give a number for each latent."
        )
    return columns


def numbers(columns: Mapping[str, NDArray[Any]], name: str) -> Floats:
    """Return a column as numbers, or raise a ValueError that names the columns."""
    if name not in columns:
        raise ValueError(
            f"Expected a column of the table, got {name!r}: there are {', '.join(columns)}."
        )
    return as_numbers(columns[name], f"column {name!r}")


def labels_of(
    columns: Mapping[str, NDArray[Any]], labels: ArrayLike | None, by: str = "label"
) -> NDArray[Any] | None:
    """Return the labels that are given, or else the column `by`, or None where there is none."""
    labels = columns.get(by) if labels is None else labels
    if labels is None:
        return None
    return fitting(labels, len(next(iter(columns.values()))))


def fitting(labels: Any, count: int, what: str = "label") -> NDArray[Any]:
    """Return labels as an array, or raise a ValueError where there is not one for each row."""
    found = as_array(labels)
    if found.shape != (count,):
        raise ValueError(
            f"Expected one {what} for each of {count} rows, got {found.shape}: give {what}s in the "
            "order of the table."
        )
    if found.dtype == object:  # also of pandas, whose NA has no truth
        missing = [i for i, v in enumerate(found) if not isinstance(v, str) and str(v) in _MISSING]
    else:
        missing = np.flatnonzero(found != found).tolist()
    if missing:
        raise ValueError(
            f"Expected a {what} for each row, got none for {len(missing)} of {count}, the first in "
            f"row {missing[0]}: leave these rows out."
        )
    if found.dtype == object and len({isinstance(v, str) for v in found}) > 1:
        raise ValueError(
            f"Expected {what}s that can be sorted, got text and other {what}s: give all as text."
        )
    return found


def as_numbers(values: Any, what: str) -> Floats:
    """Return real numbers as float64, None as NaN, or raise a ValueError that says what is none."""
    try:
        found = as_array(values)
        if found.dtype.kind not in "biufO":
            raise TypeError("text" if found.dtype.kind in "US" else f"{found.dtype} entries")
        return found.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected real numbers in {what}, got {first_line(error)}: convert or leave them out."
        ) from error
