"""What pictures of digits are like: ink, edges, variety, and how near real ones they are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from approx.populations import vendi

Floats = NDArray[np.float64]


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
    return float(near(y, x, k).mean()), float(near(x, y, k).mean())


def near(points: Floats, others: Floats, k: int = 3) -> NDArray[np.bool_]:
    """Return which points are as near to some other as that is to its own k-th neighbour."""
    # each is its own nearest neighbour, at 0
    around = np.sort(cdist(others, others), axis=1)[:, k]
    return np.any(cdist(points, others) <= around, axis=1)


def features(lenet: nn.Sequential, pictures: Tensor) -> Floats:
    """Return what goes into the last layer of LeNet-5, (n, 84)."""
    with torch.no_grad():
        return lenet[:-1](pictures).double().numpy()


def ink_and_edges(pictures: Tensor) -> dict[str, Floats]:
    """Return mean ink, and mean squared difference of neighbouring pixels, of pictures (n,)."""
    across = sum(pictures.diff(dim=axis).square().mean((1, 2, 3)) for axis in (2, 3))
    return {
        "ink": pictures.mean((1, 2, 3)).double().numpy(),
        "edge": torch.as_tensor(across).double().numpy(),
    }


def quality(
    lenet: nn.Sequential, real: Floats, pictures: Tensor, labels: Tensor
) -> dict[str, float]:
    """Return the share of right digits, Vendi scores within a digit, precision and recall."""
    found = features(lenet, pictures)
    with torch.no_grad():
        right = lenet(pictures).argmax(1) == labels
    each = [vendi(found[labels.numpy() == digit]) for digit in range(min(10, len(labels)))]
    precision, recall = precision_recall(real, found) if len(labels) > 3 else (float("nan"),) * 2
    return {
        "kept": float(right.double().mean()), "vendi": float(np.mean(each)),
        "precision": precision, "recall": recall,
    }  # fmt: skip
