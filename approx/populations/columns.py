"""Columns of a table and labels of its rows, as arrays of one length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from approx.decoder import HALF
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
    columns = {str(name): np.asarray(found[name]) for name in found}
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
    return np.asarray(columns[name], dtype=np.float64)


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
    found = np.asarray(labels)
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
    return found


def as_array(values: Any) -> NDArray[Any]:
    """Return a tensor of any device, or anything else, as an array."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    held = values.detach().cpu()
    return (held.float() if held.dtype in HALF else held).numpy()
