"""Scores of level sets, as a table; and what is raised with it where a scorer failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from approx.populations.columns import Floats, Integers
from approx.tables import imported

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class SetScores:
    """One row for each scorer and level set; made by `score_sets`.

    Attributes
    ----------
    scorer : (R,) str
    set : (R,) int64
        Number of the level set.
    from_value, to_value : (R,) float64
        Its range.
    members : (R,) int64
        Rows that could be drawn.
    score, score_low, score_high : (R,) float64
        Mean score of n members, with its 95 % interval. NaN where the scorer failed.
    null, null_low, null_high : (R,) float64
        Mean of the scores of permuted sets, and the middle 95 % of them. NaN without them.
    p : (R,) float64
        The chance of a set so far from its permuted ones, two-sided, corrected for the number of
        sets (of one scorer).
    by : str
        The column of the level sets.
    n, repeats : int
        Members in a draw, draws of each set.
    classes : tuple
        Classes within which was scored; empty for whole sets.
    failures : tuple of (str, str, str)
        Scorer, where it failed, and why.
    complete : bool
        False after Ctrl-C: fewer draws, or fewer scorers.

    Examples
    --------
    >>> from approx import level_sets, score_sets
    >>> sets = level_sets({"psi": range(8)}, bins=2)
    >>> found = score_sets(
    ...     sets, list(range(8)), {"mean": lambda x: x}, n=3, within=None, progress=False
    ... )
    >>> (found.score > [0, 3]).tolist(), list(found.columns())[:2]
    ([True, True], ['scorer', 'set'])
    """

    scorer: NDArray[Any]
    set: Integers
    from_value: Floats
    to_value: Floats
    members: Integers
    score: Floats
    score_low: Floats
    score_high: Floats
    null: Floats
    null_low: Floats
    null_high: Floats
    p: Floats
    by: str
    n: int
    repeats: int
    classes: tuple[Any, ...]
    failures: tuple[tuple[str, str, str], ...]
    complete: bool

    def __len__(self) -> int:
        return len(self.scorer)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns (R,) by name."""
        return {n: v for n, v in vars(self).items() if isinstance(v, np.ndarray)}

    def to_pandas(self) -> pd.DataFrame:
        """Return a DataFrame, one row for each scorer and level set."""
        return imported("pandas").DataFrame(self.columns())


class ScoreError(RuntimeError):
    """A scorer failed on some set; everything else was measured.

    Attributes
    ----------
    partial : SetScores
        All scores, NaN where the scorer failed; `failures` says where and why. The first exception
        is `__cause__`.

    Examples
    --------
    >>> from approx import level_sets, score_sets
    >>> from approx.populations import ScoreError
    >>> sets, scorers = level_sets({"psi": range(8)}, bins=2), {"bad": lambda x: 1 / 0, "sum": sum}
    >>> try:
    ...     score_sets(sets, list(range(8)), scorers, n=3, within=None, progress=False)
    ... except ScoreError as error:
    ...     print(error.partial.failures[0][:2], error.partial.score[2:] > 2)
    ('bad', 'set 0') [ True  True]
    """

    partial: SetScores

    def __init__(self, partial: SetScores) -> None:
        self.partial = partial
        name, where, why = partial.failures[0]
        super().__init__(
            f"Expected a finite number of every scorer for every set, got from {name!r} on {where} "
            f"{why} ({len(partial.failures)} in all): everything else is in this exception's "
            "`partial`."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.partial,)
