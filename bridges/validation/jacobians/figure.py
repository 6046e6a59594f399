"""Figure of the Jacobians' agreement: how large the errors are, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import NullLocator

from bridges.validation.autograd import SWITCHED
from bridges.validation.jacobians.result import AUTOGRAD, DIFFERENCES, SINGLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from bridges.validation.jacobians.result import Jacobians

_NONE = 1e-17  # where an error of exactly 0 is drawn on a logarithmic axis
_ORANGE = "#D55E00"

# key in `errors`: label, colour, dashes; equal curves lie on each other, so dashes differ too
_CURVES = {
    "autograd": (r"autograd, $A_w$", "#0072B2", "-"),
    "operator J X": (r"operator $J X$, $A_w$", "#009E73", "-"),
    "operator J^T Y": (r"operator $J^{\!T} Y$, $A_w$", "#56B4E9", (0, (4, 2))),
    "operator J X, autograd": (r"operator $J X$, autograd", "#000000", (0, (1, 1.5))),
    "operator J^T Y, autograd": (r"operator $J^{\!T} Y$, autograd", "#CC79A7", (0, (5, 2, 1, 2))),
    "decoder's values": (r"$G(z)$, $A_w z + b_w$", "#E69F00", "-"),
    "autograd, float32": (r"autograd in float32, $A_w$", _ORANGE, "-"),
}


def draw(result: Jacobians, figure: Figure | SubFigure) -> None:
    """Draw the distributions of errors over latents, and where in the domain they are.

    Parameters
    ----------
    result : Jacobians
        From `measure`.
    figure : matplotlib Figure or SubFigure
        Empty; about 10 x 4 inches.
    """
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _distributions(left, result)
    if AUTOGRAD not in result.errors:
        _against_estimate(right, result.errors[DIFFERENCES])
    elif result.latents.s.shape[1] == 2:
        _places(right, result)
    else:
        _along(right, result)


def _distributions(ax: Axes, result: Jacobians) -> None:
    """Draw the share of latents with at most some error, for each comparison."""
    share = np.arange(1, len(result.latents.s) + 1) / len(result.latents.s)
    largest = result.limit
    for name, (label, colour, dashes) in _CURVES.items():
        if name in result.errors:
            error = np.sort(np.maximum(result.errors[name], _NONE))
            largest = max(largest, float(error[-1]))
            x, y = np.r_[_NONE, error, 1e3], np.r_[0.0, share, 1.0]
            ax.step(x, y, where="post", color=colour, linestyle=dashes, linewidth=1.6, label=label)
    ax.axvline(result.limit, color="0.35", linestyle=":", linewidth=1.2)
    ax.annotate(
        "limit", (result.limit, 0.03), xytext=(4, 0), textcoords="offset points", color="0.35",
        xycoords=ax.get_xaxis_transform(),
    )  # fmt: skip
    ax.set(xscale="log", xlim=(_NONE / 2, max(30 * largest, 1e-5)), ylim=(0, 1.03))
    ax.set(xlabel="relative error", ylabel="share of latents")
    decades = range(-15, round(np.log10(ax.get_xlim()[1])) + 1, 3)
    ax.set_xticks([_NONE, *(10.0**d for d in decades)], ["0", *(f"$10^{{{d}}}$" for d in decades)])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.spines[["top", "right"]].set_visible(False)
    # in the gap that rounding leaves before the limit
    middle = float(np.sqrt(1e-15 * result.limit))
    ax.legend(
        fontsize="small", loc="center", bbox_to_anchor=(middle, 0.5), framealpha=1,
        edgecolor="none", bbox_transform=ax.get_xaxis_transform(),
    )  # fmt: skip


def _places(ax: Axes, result: Jacobians) -> None:
    """Draw the errors of autograd over a plane, and rings where float32 is on another cell."""
    x, y = result.latents.s.T
    points = ax.scatter(
        x, y, c=_logarithm(result.errors[AUTOGRAD]), s=_size(len(x)), cmap="viridis",
        linewidths=0, rasterized=True,
    )  # fmt: skip
    bar = ax.figure.colorbar(points, ax=ax, pad=0.02)
    bar.set_label(r"$\log_{10}$ relative error of autograd, float64")
    other = result.errors[SINGLE] > SWITCHED
    if other.any():
        ax.plot(
            x[other], y[other], "o", mfc="none", mec=_ORANGE, ms=6, mew=1.2, linestyle="none",
            label=f"float32 on another cell: {int(other.sum())}",
        )  # fmt: skip
    if not result.clear.all():
        ax.plot(
            x[~result.clear], y[~result.clear], "x", color="black", ms=5, mew=1.2,
            linestyle="none", label=f"within rounding of a knot: {int((~result.clear).sum())}",
        )  # fmt: skip
    if other.any() or not result.clear.all():
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    ax.set(xlabel="$s_1$", ylabel="$s_2$", aspect="equal")


def _along(ax: Axes, result: Jacobians) -> None:
    """Draw the errors of autograd in both precisions along the first slice coordinate."""
    for name in (AUTOGRAD, SINGLE):
        label, colour, _ = _CURVES[name]
        error = np.maximum(result.errors[name], _NONE)
        ax.semilogy(result.latents.s[:, 0], error, ".", color=colour, ms=4, label=label)
    ax.axhline(result.limit, color="0.35", linestyle=":", linewidth=1.2)
    ax.set(xlabel="$s_1$", ylabel="relative error")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def _against_estimate(ax: Axes, ratio: np.ndarray) -> None:
    """Draw how far central differences are off, over what they say of themselves."""
    logarithm = _logarithm(ratio)
    low, high = np.floor(min(logarithm.min(), -1)), np.ceil(max(logarithm.max(), 0.5))
    ax.hist(logarithm, np.linspace(low, high, 31), color="#0072B2")
    ax.axvline(0, color="0.35", linestyle=":", linewidth=1.2)
    ax.set(xlabel=r"$\log_{10}$ (error / its estimate), central differences", ylabel="latents")
    ax.spines[["top", "right"]].set_visible(False)


def _logarithm(error: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(error, _NONE))


def _size(points: int) -> float:
    """Area of a dot, so that a plane of them is neither empty nor covered."""
    return float(np.clip(12_000 / points, 3, 40))
