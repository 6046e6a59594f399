"""How varied pictures are, and how well they cover real ones, from features of a classifier."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist


def vendi(features: ArrayLike) -> float:
    """Return the Vendi score of features (n, F): an effective number of different ones, 1 to n.

    exp of the entropy of the eigenvalues of K / n, where K holds the cosines (D. Friedman, A. B.
    Dieng, "The Vendi score", 2023). A row of zeros has no cosine, and gives NaN.

    Examples
    --------
    >>> from bridges.studies.quality import vendi
    >>> round(vendi([[1, 0], [0, 2]]), 6)
    2.0
    """
    x = np.asarray(features, dtype=np.float64)
    sizes = np.linalg.norm(x, axis=1, keepdims=True)
    if not len(x) or not (sizes > 0).all():
        return float("nan")
    shares = np.linalg.svd(x / sizes, compute_uv=False) ** 2 / len(x)
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))


def precision_recall(real: ArrayLike, drawn: ArrayLike, k: int = 3) -> tuple[float, float]:
    """Return the share of drawn features near real ones, and of real ones near drawn ones.

    Near is within the distance of some other one to its k-th neighbour (T. Kynkäänniemi et al.,
    "Improved precision and recall metric", 2019).

    Raises
    ------
    ValueError
        Not more than k features on either side.

    Examples
    --------
    >>> from bridges.studies.quality import precision_recall
    >>> precision_recall([[0.0], [1.0], [2.0]], [[1.5], [1.6], [9.0]], k=1)
    (0.6666666666666666, 0.3333333333333333)
    """
    x, y = (np.asarray(v, dtype=np.float64) for v in (real, drawn))
    if min(len(x), len(y)) <= k:
        raise ValueError(
            f"Expected more than k = {k} features on each side, got {len(x)} and {len(y)}: give "
            "more, or a smaller k."
        )
    # each is its own nearest neighbour, at 0
    around_x, around_y = (np.sort(cdist(v, v), axis=1)[:, k] for v in (x, y))
    apart = cdist(x, y)
    precision = (apart <= around_x[:, None]).any(axis=0).mean()
    recall = (apart <= around_y).any(axis=1).mean()
    return float(precision), float(recall)
