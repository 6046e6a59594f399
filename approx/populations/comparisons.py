"""Classes compared by their descriptors: effect sizes, tests, and their correction."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from approx.decoder import as_array
from approx.populations.columns import (
    Floats,
    Integers,
    Table,
    as_numbers,
    columns_of,
    labels_of,
    numbers,
)
from approx.populations.separation import auroc
from approx.tables import imported

if TYPE_CHECKING:
    import pandas as pd

_DESCRIPTORS = ("psi", "nu", "delta")


@dataclass(frozen=True, eq=False)
class Comparison:
    """One row for each descriptor and pair of groups; made by `compare`.

    Attributes
    ----------
    column : (R,) str
        The descriptor.
    inside, outside : (R,) object
        A class, and another one or "rest".
    members, others : (R,) int64
        How many of each have a finite value.
    auroc, auroc_low, auroc_high : (R,) float64
        The chance that one inside is above one outside, with its 95 % interval, see `auroc`.
    hedges_g : (R,) float64
        Difference of the means over the pooled standard deviation, without its bias in small
        samples. NaN where nothing varies.
    shift : (R,) float64
        Difference of the medians.
    p_rank, p_shape : (R,) float64
        Of the tests of Mann and Whitney (is one group higher?) and of Kolmogorov and Smirnov (do
        the distributions differ in any way?), corrected for all the tests of the table.
    correction : {"holm", "fdr"}
    complete : bool
        False after Ctrl-C: the first rows are there, and their correction counts only them.

    Examples
    --------
    >>> from approx.populations import compare
    >>> found = compare({"psi": [1.0, 2.0, 3.0, 4.0], "label": list("aabb")}, columns=["psi"])
    >>> found.inside.tolist(), found.outside.tolist(), found.shift.tolist()
    (['a'], ['b'], [-2.0])
    """

    column: NDArray[Any]
    inside: NDArray[Any]
    outside: NDArray[Any]
    members: NDArray[np.int64]
    others: NDArray[np.int64]
    auroc: Floats
    auroc_low: Floats
    auroc_high: Floats
    hedges_g: Floats
    shift: Floats
    p_rank: Floats
    p_shape: Floats
    correction: str
    complete: bool

    def __len__(self) -> int:
        return len(self.column)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns (R,) by name."""
        return {n: v for n, v in vars(self).items() if n not in ("correction", "complete")}

    def to_pandas(self) -> pd.DataFrame:
        """Return a DataFrame, one row for each descriptor and pair of groups."""
        return imported("pandas").DataFrame(self.columns())


def compare(
    table: Table,
    by: str = "label",
    *,
    labels: ArrayLike | None = None,
    columns: list[str] | None = None,
    rows: ArrayLike | None = None,
    against: Literal["rest", "pairs"] = "rest",
    correction: Literal["holm", "fdr"] = "holm",
) -> Comparison:
    """Compare classes by their descriptors, with effect sizes and two-sample tests.

    Parameters
    ----------
    table : Descriptors, DataFrame or mapping from names to (N,) array_like
    by : str
        Column with the classes, where no `labels` are given.
    labels : (N,) array_like, optional
        Class of each row.
    columns : list of str, optional
        What is compared; by default psi, nu and delta as far as they are there.
    rows : (M,) array_like of int, optional
        Only these rows, such as those of `matched`, or a mask (N,).
    against : {"rest", "pairs"}
        Each class against all others together, or every two classes. Two classes make one pair.
    correction : {"holm", "fdr"}
        For the number of tests, two a row: Holm's bound on the chance of any false finding, or
        Benjamini and Hochberg's on the share of false ones among the findings.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        No labels, labels of another length, an unknown column, row or option, fewer than two
        classes, or a class with fewer than two values.
    KeyboardInterrupt
        Ctrl-C before any row was done; later it returns the rows that are.

    Notes
    -----
    Values that are not finite are left out. Tests by `scipy.stats`, two-sided; of counts with ties
    that of Kolmogorov and Smirnov is conservative. Hedges' g has the factor 1 - 3 / (4 n - 9).
    Cost: O(N log N) for each row.

    Examples
    --------
    >>> import numpy as np
    >>> from approx.populations import compare
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat(["digit", "letter"], 100)
    >>> psi = rng.normal(labels == "letter")
    >>> found = compare({"psi": psi, "nu": rng.normal(size=200)}, labels=labels)
    >>> (found.p_rank < 0.05).tolist()
    [True, False]
    """
    if against not in ("rest", "pairs"):
        raise ValueError(f"Expected against 'rest' or 'pairs', got {against!r}: choose one.")
    _check_correction(correction)
    data = columns_of(table)
    given = labels_of(data, labels, by)
    if given is None:
        raise ValueError(
            f"Expected labels, got none, and no column {by!r} among {', '.join(data)}: give "
            "labels= in the order of the table."
        )
    chosen = [name for name in _DESCRIPTORS if name in data] if columns is None else columns
    if not chosen:
        raise ValueError(f"Expected columns to compare, got none of {', '.join(data)}: name some.")
    kept = np.arange(len(given)) if rows is None else _rows(rows, len(given))
    measured = {name: numbers(data, name)[kept] for name in chosen}
    groups = _groups(given[kept], against)
    found: list[tuple[Any, ...]] = []
    complete = True
    try:
        for name, values in measured.items():
            for inside, outside, here, there in groups:
                pair = tuple(x[np.isfinite(x)] for x in (values[here], values[there]))
                if min(map(len, pair)) < 2:
                    raise ValueError(
                        f"Expected two values of {name} or more in each group, got {len(pair[0])} "
                        f"of {inside!r} and {len(pair[1])} of {outside!r}: leave the class or the "
                        "column out."
                    )
                found.append((name, inside, outside, *_compared(*pair)))
    except KeyboardInterrupt:
        if not found:
            raise
        complete = False
    fields = [np.array(field) for field in zip(*found, strict=True)]
    p = corrected(np.stack(fields[-2:]), correction)
    return Comparison(*fields[:-2], *p, correction=correction, complete=complete)


def _rows(rows: ArrayLike, count: int) -> Integers:
    """Return numbers of rows, given as such or as a mask."""
    found = as_array(rows)
    if found.dtype == bool and found.shape == (count,):
        return np.flatnonzero(found)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise ValueError(
            f"Expected rows (M,) as integers, or a mask ({count},), got {found.dtype} of shape "
            f"{found.shape}: give those of matched, for example."
        )
    if found.size and not 0 <= found.min() <= found.max() < count:
        raise ValueError(
            f"Expected rows from 0 to {count - 1}, got {found.min()} to {found.max()}: give rows "
            "of this table."
        )
    return found.astype(np.int64)


def _groups(labels: NDArray[Any], against: str) -> list[tuple[Any, Any, Any, Any]]:
    """Return names and rows of what is compared."""
    classes = np.unique(labels).tolist()
    if len(classes) < 2:
        raise ValueError(f"Expected two classes or more, got {classes}: there is nothing to tell.")
    if against == "pairs" or len(classes) == 2:
        return [(a, b, labels == a, labels == b) for a, b in combinations(classes, 2)]
    return [(c, "rest", labels == c, labels != c) for c in classes]


def _compared(x: Floats, y: Floats) -> tuple[Any, ...]:
    """Return the columns of a row from `members` on, the p-values not yet corrected."""
    apart = auroc(x, y)
    freedom = len(x) + len(y) - 2
    pooled = np.sqrt(((len(x) - 1) * x.var(ddof=1) + (len(y) - 1) * y.var(ddof=1)) / freedom)
    tiny = 1e-12 * max(abs(x).max(), abs(y).max())  # a constant's rounding
    unbiased = 1 - 3 / (4 * (freedom + 2) - 9)
    g = unbiased * (x.mean() - y.mean()) / pooled if pooled > tiny else np.nan
    # the exact distribution may overflow where the limit is good enough
    way = "asymp" if min(len(x), len(y)) > 200 else "auto"
    tests: list[Any] = [stats.mannwhitneyu(x, y), stats.ks_2samp(x, y, method=way)]
    return (
        len(x), len(y), apart.value, apart.low, apart.high, g, np.median(x) - np.median(y),
        *(test.pvalue for test in tests),
    )  # fmt: skip


def corrected(p: ArrayLike, correction: str = "holm") -> Floats:
    """Return p-values of any shape, corrected for their number: "holm" or "fdr".

    Raises
    ------
    ValueError
        Something else than numbers from 0 to 1, or another correction.

    Examples
    --------
    >>> from approx.populations import corrected
    >>> corrected([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    _check_correction(correction)
    given = as_numbers(p, "p")
    if not ((given >= 0) & (given <= 1)).all():
        raise ValueError(
            f"Expected p-values from 0 to 1, got {given.min():g} to {given.max():g}: leave out "
            "tests without one."
        )
    flat = given.ravel()
    if correction == "fdr":
        return stats.false_discovery_control(flat).reshape(given.shape)
    order = np.argsort(flat)
    steps = np.maximum.accumulate(flat[order] * np.arange(len(flat), 0, -1))
    result = np.empty_like(flat)
    result[order] = np.minimum(steps, 1)
    return result.reshape(given.shape)


def _check_correction(correction: str) -> None:
    if correction not in ("holm", "fdr"):
        raise ValueError(f"Expected correction 'holm' or 'fdr', got {correction!r}: choose one.")
