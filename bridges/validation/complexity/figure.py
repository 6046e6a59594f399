"""Figure of the counted knots: counts, and the share of exact ones, against the radius."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bridges.validation.complexity.neighbourhoods import zaslavsky

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from bridges.validation.complexity.result import Complexity


# Okabe and Ito's, which colour-blind readers can tell apart
_STYLES = {
    "hull float32": {"color": "#D55E00", "ls": "-", "marker": "v", "ms": 4.5},
    "jvp float32": {"color": "#E69F00", "ls": "-", "marker": "^", "ms": 4},
    "hull float64": {"color": "#56B4E9", "ls": "-", "marker": "s", "ms": 4.5},
    "jvp float64": {"color": "#0072B2", "ls": "-", "marker": "o", "ms": 2.5},
}
_BAND = "#CC79A7"
_DECLARED, _FOLDS = "declared radius", "knots begin to fold"


def draw(result: Complexity, figure: Figure | SubFigure) -> None:
    """Draw counts, and the share of exact ones, against the radius; a column for each P.

    Above: means over the latents of cells, knots and Zaslavsky's bound for jvp in float64. Below:
    the share of latents at which each method counts the exact number of knots, and the share at
    which the theorem proves that. What is exact ends where some neighbourhood was not enumerated.
    Shaded: radii from which on a knot folds, from the first of the uniform latents to the last,
    with their median; dotted: the declared radius.
    """
    columns = max(1, len(result.directions))
    axes = figure.subplots(2, columns, sharex=True, sharey="row", squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    if not result.directions:
        for ax in axes.flat:
            ax.set_axis_off()
        axes[0, 0].text(0.5, 0.5, result.rows[0].note, ha="center", va="center")
        return
    for q, P in enumerate(result.directions):
        above, below = axes[:, q]
        _counts(above, result, q)
        _shares(below, result, q)
        for ax in (above, below):
            _radii(ax, result, q)
        above.set_title(f"$P = {P}$", fontsize="medium")
        below.set_xlabel("radius $r$ of $V_z$")
        below.set_xlim(result.radii[0] / 1.6, result.radii[-1] * 1.6)
    axes[0, 0].set_ylabel("mean number in $V_z$")
    axes[1, 0].set_ylabel("share of latents\nwith the exact knots")
    for ax, place, left_out in (
        (axes[0, 0], "upper left", _DECLARED),
        (axes[1, 0], "lower left", _FOLDS),
    ):
        handles, labels = ax.get_legend_handles_labels()
        kept = [(h, text) for h, text in zip(handles, labels, strict=True) if text != left_out]
        ax.legend(
            *zip(*kept, strict=True), loc=place, fontsize="small", handlelength=2.2,
            borderpad=0.2, framealpha=0.85, edgecolor="none",
        )  # fmt: skip
    figure.align_ylabels(axes[:, 0])


def _counts(ax: Axes, result: Complexity, q: int) -> None:
    """Draw mean counts of cells and knots."""
    whole = (result.knots[q] >= 0).all(axis=1)
    exact = np.where(whole, result.knots[q].mean(axis=1), np.nan)
    cells = np.where(whole, result.cells[q].mean(axis=1), np.nan)
    estimated = result.counts["jvp float64"][q]
    bound = np.vectorize(lambda n: float(zaslavsky(n, result.directions[q])))(estimated)
    r = result.radii
    ax.plot(
        r, bound.mean(axis=1), color="0.55", ls="--", lw=1.2, label="cells, at most (Zaslavsky)"
    )
    ax.plot(r, cells, color="black", lw=1.4, label="cells, exact")
    ax.plot(r, exact, color="0.75", lw=5, solid_capstyle="round", label="knots, exact")
    for name in ("hull float32", "jvp float64"):
        ax.plot(
            r, result.counts[name][q].mean(axis=1), lw=1.2, label=f"knots, {name}", **_STYLES[name]
        )
    ax.set(xscale="log", yscale="log")


def _shares(ax: Axes, result: Complexity, q: int) -> None:
    """Draw the share of latents at which a method is exact."""
    # those with few cells, where there are more than can be enumerated, would look too good
    whole = (result.knots[q] >= 0).all(axis=1)
    proven = np.where(whole, result.proven[q].mean(axis=1), np.nan)
    ax.plot(result.radii, proven, color="0.6", lw=1.2, ls="--", label="float64 proven exact")
    for name, style in _STYLES.items():
        equal = (result.counts[name][q] == result.knots[q]).mean(axis=1)
        ax.plot(result.radii, np.where(whole, equal, np.nan), lw=1.2, label=name, **style)
    ax.set_ylim(-0.03, 1.05)


def _radii(ax: Axes, result: Complexity, q: int) -> None:
    """Mark the declared radius and the radii from which on knots fold."""
    ax.axvline(result.radius, color="0.3", lw=0.9, ls=":", zorder=0, label=_DECLARED)
    folds = result.fold_radius[q][np.isfinite(result.fold_radius[q])]
    if len(folds):
        ax.axvspan(folds.min(), folds.max(), color=_BAND, alpha=0.18, lw=0, zorder=0, label=_FOLDS)
        ax.axvline(float(np.median(folds)), color=_BAND, lw=1, zorder=0)
