"""Level sets of a descriptor: rows of a table with about the same value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from approx.decoder import whole
from approx.populations.columns import Floats, Integers, Table, columns_of, labels_of, numbers


@dataclass(frozen=True, eq=False)
class LevelSets:
    """Rows of a table in rising level sets of one column; made by `level_sets`.

    Attributes
    ----------
    by : str
        The column.
    edges : (S + 1,) float64
        Set s holds the values from ``edges[s]`` to below ``edges[s + 1]``, the last one its end.
    members : tuple of (m,) int64
        Rows of each set, rising.
    values : (N,) float64
        The column.
    labels : (N,) array or None
        Class of each row.

    Examples
    --------
    >>> from approx import level_sets
    >>> [rows.tolist() for rows in level_sets({"psi": [4.0, 1.0, 2.0, 3.0]}, bins=2)]
    [[1, 2], [0, 3]]
    """

    by: str
    edges: Floats
    members: tuple[Integers, ...]
    values: Floats
    labels: NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Integers]:
        return iter(self.members)


def level_sets(
    table: Table,
    by: str = "psi",
    bins: int = 5,
    equal: Literal["count", "width"] = "count",
    *,
    labels: ArrayLike | None = None,
) -> LevelSets:
    """Return the rows of a table in level sets of a descriptor.

    Parameters
    ----------
    table : Descriptors, DataFrame or mapping from names to (N,) array_like
    by : str
        Column; rows where it is not finite are in no set.
    bins : int
        Number of sets.
    equal : {"count", "width"}
        Sets of equal counts, up to equal values, which stay together; or of equal ranges.
    labels : (N,) array_like, optional
        Class of each row; by default the column "label", where there is one.

    Returns
    -------
    LevelSets

    Raises
    ------
    ValueError
        An unknown column or option, labels of another length, or a set with fewer than two members.

    Examples
    --------
    >>> from approx import level_sets
    >>> sets = level_sets({"psi": [0.0, 1.0, 2.0, 3.0, 10.0, 9.0]}, bins=2, equal="width")
    >>> sets.edges.tolist(), list(map(len, sets))
    ([0.0, 5.0, 10.0], [4, 2])
    """
    bins = whole(bins, "bins", "say how many sets.")
    if equal not in ("count", "width"):
        raise ValueError(f"Expected equal 'count' or 'width', got {equal!r}: choose one of these.")
    columns = columns_of(table)
    values = numbers(columns, by)
    given = labels_of(columns, labels)
    rows = np.flatnonzero(np.isfinite(values))
    shares = np.linspace(0, 1, bins + 1)
    found = values[rows] if len(rows) else np.zeros(1)
    ends = found.min(), found.max()
    edges = np.quantile(found, shares) if equal == "count" else ends[0] + shares * np.ptp(found)
    place = np.searchsorted(edges[1:-1], values[rows], side="right")
    members = tuple(rows[place == s] for s in range(bins))
    if min(map(len, members)) < 2:
        raise ValueError(
            f"Expected two members or more in every level set of {by}, got "
            f"{[len(m) for m in members]}: ask for fewer bins"
            + (", or for equal='count'." if equal == "width" else "; equal values stay together.")
        )
    return LevelSets(by, edges, members, values, given)
