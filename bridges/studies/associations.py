"""Rank correlations, what is left of them given confounds, and what classes explain of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]


def rank_correlation(
    x: ArrayLike, y: ArrayLike, given: Mapping[str, ArrayLike] | None = None
) -> float:
    """Return Spearman's rank correlation, partial where confounds are given.

    The partial one is the correlation of what a linear regression on the ranks of the confounds
    leaves of both ranks. It is NaN where nothing is left of one of them.

    Examples
    --------
    >>> import numpy as np
    >>> from bridges.studies.associations import rank_correlation
    >>> rng = np.random.default_rng(0)
    >>> ink = rng.normal(size=2000)
    >>> psi, label = ink + rng.normal(size=2000), ink + rng.normal(size=2000)
    >>> round(rank_correlation(psi, label), 1)
    0.5
    >>> abs(rank_correlation(psi, label, {"ink": ink})) < 0.05
    True
    """
    ranks = [stats.rankdata(np.asarray(v, dtype=np.float64)) for v in (x, y)]
    others: dict[str, Any] = dict(given or {})
    base = np.stack([np.ones(len(ranks[0])), *(stats.rankdata(v) for v in others.values())], axis=1)
    left = [r - base @ np.linalg.lstsq(base, r, rcond=None)[0] for r in ranks]
    sizes = [float(np.linalg.norm(v)) for v in left]
    if min(sizes) < 1e-9 * len(ranks[0]):
        return float("nan")
    return float(left[0] @ left[1] / (sizes[0] * sizes[1]))


def explained(values: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of the ranks' variance that classes explain, 0 on average by chance.

    Epsilon squared, (H - C + 1) / (N - C), of the test of Kruskal and Wallis with C classes
    (after T. L. Kelley, 1935). 1 where the classes do not overlap and do not vary; 0 for one class.

    Examples
    --------
    >>> from bridges.studies.associations import explained
    >>> round(explained([1, 1, 2, 2, 3, 3], list("aabbcc")), 3)
    1.0
    """
    x, given = np.asarray(values, dtype=np.float64), np.asarray(labels)
    classes = np.unique(given)
    if len(classes) == 1:  # the formula's 0, where there is no test
        return 0.0
    statistic = stats.kruskal(*(x[given == c] for c in classes)).statistic
    return float((statistic - len(classes) + 1) / (len(x) - len(classes)))


def slant(pictures: ArrayLike) -> Floats:
    """Return the horizontal shear of pictures (N, side, side): above 0 where they lean right.

    Columns per row upwards, from the second moments of the ink, as in the deskewing of digits.

    Examples
    --------
    >>> import numpy as np
    >>> from bridges.studies.associations import slant
    >>> slant(np.eye(5)[None, ::-1]).round(2).tolist(), slant(np.eye(5)[None]).round(2).tolist()
    ([1.0], [-1.0])
    """
    ink = np.asarray(pictures, dtype=np.float64)
    rows, columns = np.indices(ink.shape[1:])
    total = np.maximum(ink.sum((1, 2)), 1e-12)
    up = -(rows - (ink * rows).sum((1, 2), keepdims=True) / total[:, None, None])
    right = columns - (ink * columns).sum((1, 2), keepdims=True) / total[:, None, None]
    spread = np.maximum((ink * up**2).sum((1, 2)), 1e-12)
    return (ink * up * right).sum((1, 2)) / spread
