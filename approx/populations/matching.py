"""Rows matched on confounds: as many of every class in every stratum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from approx.decoder import whole
from approx.populations.columns import Integers, columns_of, fitting, numbers


class Matched(NamedTuple):
    """Rows in which every class has about the same confounds.

    Attributes
    ----------
    rows : (M,) int64
        Numbers of the rows, rising: as many of every class in every stratum.
    strata : (M,) int64
        Stratum of each of them.
    before, after : dict
        By confound, the largest standardised difference of the means of two classes: over the
        standard deviation within the classes, before matching. Above 0.1 is commonly taken for a
        lack of balance.

    Examples
    --------
    >>> from approx.populations import matched
    >>> matched([0, 0, 1, 1], {"ink": [1.0, 9.0, 9.0, 9.0]}, bins=2).rows.tolist()
    [1, 2]
    """

    rows: Integers
    strata: Integers
    before: dict[str, float]
    after: dict[str, float]


def matched(
    labels: ArrayLike, on: Mapping[str, ArrayLike], *, bins: int = 5, seed: int = 0
) -> Matched:
    """Return rows in which the classes have equal confounds, by stratification.

    Parameters
    ----------
    labels : (N,) array_like
        Class of each row.
    on : mapping from names to (N,) array_like
        The confounds, such as those of `confounds`. A DataFrame will do. Rows with NaN are left
        out.
    bins : int
        Of each confound, at its quantiles. Strata are the cells of their product.
    seed : int
        Of the draw of rows in a stratum.

    Returns
    -------
    Matched

    Raises
    ------
    ValueError
        Not one label for each row, fewer than two classes, or no stratum with all of them.

    Notes
    -----
    Coarsened exact matching (S. Iacus, G. King, G. Porro, 2012): in every stratum as many rows of
    each class are drawn as the rarest has there. Five strata leave about a tenth of the bias of one
    confound (W. Cochran, 1968): look at `after`, and give more bins where it is not small.

    Examples
    --------
    >>> import numpy as np
    >>> from approx.populations import matched
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 4000)
    >>> found = matched(labels, {"ink": rng.normal(labels, 1.0)}, bins=20)
    >>> found.before["ink"] > 0.9, found.after["ink"] < 0.1
    (True, True)
    """
    bins = whole(bins, "bins", "say how many of each confound.")
    seed = whole(seed, "seed", "give another.", 0)
    columns = columns_of(on)
    confounds = {name: numbers(columns, name) for name in columns}
    given = fitting(labels, len(next(iter(confounds.values()))))
    rows = np.flatnonzero(np.all([np.isfinite(c) for c in confounds.values()], axis=0))
    classes, member = np.unique(given[rows], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"Expected rows of two classes, got {classes.tolist()} in {len(rows)} rows without "
            "NaN: give labels that differ."
        )
    codes = [_binned(c[rows], bins) for c in confounds.values()]
    _, strata = np.unique(np.stack(codes), axis=1, return_inverse=True)
    strata = strata.ravel()
    counts = np.zeros((strata.max() + 1, len(classes)), dtype=np.int64)
    np.add.at(counts, (strata, member), 1)
    taken = counts.min(axis=1)
    if not taken.any():
        raise ValueError(
            f"Expected a stratum with all of {len(classes)} classes, got none in {len(counts)}: "
            "give fewer bins, confounds or classes."
        )
    # the place of a row in its stratum and class, in an order drawn at random
    order = np.random.default_rng(seed).permutation(len(rows))
    key = (strata * len(classes) + member)[order]
    falling = np.argsort(key, kind="stable")
    sizes = counts.ravel()
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = np.empty(len(rows), dtype=np.int64)
    place[order[falling]] = np.arange(len(rows)) - starts
    kept = place < taken[strata]
    balance = [
        {name: _difference(c[rows], member, part) for name, c in confounds.items()}
        for part in (np.ones(len(rows), dtype=bool), kept)
    ]
    return Matched(rows[kept], strata[kept], *balance)


def _binned(values: Any, bins: int) -> Integers:
    """Return the bin of each value, at quantiles; equal values share one."""
    inner = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(inner, values, side="right")


def _difference(values: Any, member: Integers, part: Any) -> float:
    """Return the range of the classes' means in a part, over the spread within them in all."""
    classes = range(member.max() + 1)
    means = [values[part & (member == c)].mean() for c in classes]
    within = np.sqrt(np.mean([values[member == c].var() for c in classes]))
    apart = float(max(means) - min(means))
    if apart <= 1e-12 * float(np.abs(values).max()):  # a constant's rounding
        return 0.0
    return apart / float(within) if within else float("inf")
