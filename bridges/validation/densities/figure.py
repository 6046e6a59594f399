"""Figure of the densities' agreement: counts, deviations, entropy, samples and their test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy import stats

from cpwl.arrays import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure

    from bridges.validation.densities.result import Balls, Densities, Nearest, Samples
    from cpwl.density import Entropy


# Okabe and Ito's, which colour-blind readers can tell apart
_BLUE, _SKY, _ORANGE, _GREY = "#0072B2", "#56B4E9", "#D55E00", "0.45"
# Above an axis, so that it covers nothing.
_ABOVE = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False, "borderpad": 0.2}


def draw(result: Densities, figure: Figure | SubFigure) -> None:
    """Draw the six panels of the comparison.

    Parameters
    ----------
    result : Densities
    figure : matplotlib Figure or SubFigure
        Empty, with constrained layout; about 11 x 7 inches. Gets no more than a line of text where
        every cell is squeezed.
    """
    if result.balls is None or result.samples is None:
        figure.text(0.5, 0.5, "every cell is squeezed: the output has no density", ha="center")
        return
    axes = figure.subplots(2, 3)
    _counts(axes[0, 0], result.balls)
    _deviations(axes[0, 1], result.balls)
    _entropies(axes[0, 2], result.entropy, result.nearest)
    _points(axes[1, 0], axes[1, 1], result.samples, result.corners)
    _test(axes[1, 2], result.samples)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)


def _counts(ax: Axes, balls: Balls) -> None:
    """Draw the density by counting against the exact one: every ball, and sums of many."""
    ax.set(xlabel="exact output density", ylabel="density by counting samples")
    if not len(balls.cells):
        _say(ax, "no cell is large enough\nfor 25 samples in a ball")
        return
    order = np.argsort(balls.log_density)
    exact = np.exp(balls.log_density[order])
    counted, expected = balls.counted[order], balls.expected[order]
    ends = np.array([exact.min() / 1.1, exact.max() * 1.1])
    ax.plot(ends, ends, color=_GREY, linewidth=1, zorder=1)
    single = exact * np.maximum(counted, 0.5) / expected
    ax.plot(exact, single, ".", color=_SKY, markersize=4, label="one ball")
    groups = np.array_split(np.arange(len(exact)), min(12, len(exact)))
    middle = np.array([np.average(exact[g], weights=expected[g]) for g in groups])
    found, wanted = (np.array([a[g].sum() for g in groups]) for a in (counted, expected))
    ax.errorbar(
        middle, middle * np.maximum(found, 0.5) / wanted, 2 * middle / np.sqrt(wanted), fmt="o",
        markersize=3.5, elinewidth=1.2, capsize=2, color=_BLUE,
        label=rf"{len(groups)} sums of balls, $\pm 2\sigma$",
    )  # fmt: skip
    if exact.max() > 3 * exact.min():
        ax.set(xscale="log", yscale="log")
        _few_ticks(ax.xaxis)
        _few_ticks(ax.yaxis)
    else:
        ax.locator_params(nbins=5)
    ax.legend(**_ABOVE, ncols=2)


def _deviations(ax: Axes, balls: Balls) -> None:
    """Draw the distribution of the counts' deviations beside the standard normal."""
    ax.set(xlabel=r"(counted $-$ expected) / $\sigma$", ylabel="balls")
    if not len(balls.cells):
        _say(ax, "no balls")
        return
    reach = max(4.0, 1.05 * float(np.abs(balls.deviations).max()))
    edges = np.linspace(-reach, reach, 25)
    ax.hist(balls.deviations, edges.tolist(), color=_SKY)
    x = np.linspace(-reach, reach, 400)
    normal = len(balls.cells) * (edges[1] - edges[0]) * stats.norm.pdf(x)
    ax.plot(x, normal, color="black", linewidth=1.2, label="standard normal")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(**_ABOVE)


def _entropies(ax: Axes, entropy: Entropy, near: Nearest | None) -> None:
    """Draw the entropy from nearest neighbours against the number of points."""
    ax.set(xlabel="outputs $N$", ylabel="entropy of the output, nats")
    if near is None:
        _say(ax, "nearest neighbours are left out\nbeyond three dimensions")
        return
    overlaps = entropy.overlap.between_cells != "none"
    exact = "exact, an upper bound" if overlaps else "exact"
    ax.axhline(entropy.regular, color=_ORANGE, linewidth=1.4, label=exact)
    error = 2 * near.error if np.isfinite(near.error) else 0.0
    ax.errorbar(
        near.sizes, near.entropy, error, fmt="o-", markersize=4, linewidth=1, capsize=2,
        color=_BLUE, label=r"neighbours, $\pm 2\sigma$",
    )  # fmt: skip
    ax.set_xscale("log")
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.legend(**_ABOVE, ncols=1 if overlaps else 2)


def _points(left: Axes, right: Axes, samples: Samples, corners: Floats) -> None:
    """Draw the two samples side by side in slice coordinates."""
    right.sharex(left)
    right.sharey(left)
    among = "" if corners.shape[1] <= 2 else f", the first two of {corners.shape[1]} coordinates"
    panels = (
        (left, samples.drawn, _BLUE, "exact samples, uniform on the image"),
        (right, samples.accepted, _ORANGE, "the same by rejection sampling"),
    )
    for ax, s, colour, name in panels:
        if corners.shape[1] == 1:
            edges = np.linspace(corners.min(), corners.max(), 31)
            ax.hist(s[:, 0], edges.tolist(), color=colour, alpha=0.7, label=name)
            ax.set(xlabel="$s_1$", ylabel="samples")
        else:
            ax.scatter(
                s[:, 0], s[:, 1], s=4, color=colour, linewidths=0, rasterized=True, label=name
            )
            ax.set(xlim=np.sort(corners[:, 0])[[0, -1]], ylim=np.sort(corners[:, 1])[[0, -1]])
            ax.set(xlabel=f"$s_1${among}", ylabel="$s_2$")
        ax.legend(**_ABOVE, handletextpad=0.2, markerscale=2)


def _test(ax: Axes, samples: Samples) -> None:
    """Draw the energy distances of relabelled samples, and where the given ones are."""
    ax.set(xlabel="energy distance / median of relabelled", ylabel="relabelled samples")
    if samples.outputs is None or samples.control is None:
        _say(ax, f"only {len(samples.accepted)} of {samples.proposals:,}\nproposals were accepted")
        return
    unit = float(np.median(samples.outputs.null))
    null = samples.outputs.null / unit
    shown = (
        (samples.outputs, _BLUE, "exact samples"),
        (samples.control, _ORANGE, "control: uniform latents"),
    )
    for test, colour, name in shown:
        ax.axvline(
            test.distance / unit, color=colour, linewidth=1.6,
            label=f"{name}, $p$ = {test.p_value:.2g}",
        )  # fmt: skip
    space = np.linspace
    if max(samples.outputs.distance, samples.control.distance) > 5 * unit:
        space = np.geomspace
        ax.set_xscale("log")
    ax.hist(null, space(null.min(), null.max(), 25).tolist(), color="0.75")
    if space is np.geomspace:
        _few_ticks(ax.xaxis)
    ax.legend(**_ABOVE)


def _few_ticks(axis: Axis) -> None:
    """Label 1, 2 and 5 of each decade of a logarithmic axis, all decades of a longer one."""
    low, high = axis.get_view_interval()
    if low > 0 and high / low < 300:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.4g}"))
    axis.set_minor_formatter(NullFormatter())


def _say(ax: Axes, text: str) -> None:
    """Say in a panel why it is empty."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=_GREY)
    ax.set(xticks=[], yticks=[])
