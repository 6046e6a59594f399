"""Histograms of classes over one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# of Okabe and Ito, without the yellow
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def histograms(
    ax: Axes, groups: Sequence[NDArray[np.float64]], titles: Sequence[str], shares: bool = False
) -> None:
    """Draw a histogram of each group, of counts or shares, where 99 % of all values lie."""
    finite = [values[np.isfinite(values)] for values in groups]
    together = np.concatenate(finite)
    low, high = np.quantile(together, [0.005, 0.995]) if len(together) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, 31).tolist()
    for values, colour, title in zip(finite, COLOURS, titles, strict=False):
        weights = np.full(len(values), 1 / max(len(values), 1) if shares else 1.0)
        style = {"weights": weights, "color": colour}
        ax.hist(values, edges, histtype="stepfilled", alpha=0.35, label=title, **style)
        ax.hist(values, edges, histtype="step", lw=1, **style)
