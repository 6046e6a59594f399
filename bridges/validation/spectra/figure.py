"""Figure of the agreement of psi and nu: with the generator, with their claims, over work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator

from bridges.validation.spectra.haar import psi_nu
from cpwl.arrays import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from bridges.validation.spectra.result import Spectra

_COLOURS = {"exact": "#000000", "topk": "#009E73", "paper": "#D55E00", "predict": "#0072B2"}
_OTHERS = "#CC79A7", "#E69F00", "#56B4E9"
_MARKERS = {"exact": "s", "topk": "^", "paper": "o", "predict": "D"}
_SYMBOLS = {"psi": r"\psi", "nu": r"\nu"}
_GREY = "0.35"
_ROUNDING = 1e-10  # errors below this are drawn at the foot of a logarithmic axis
_EDGES = np.linspace(-4, 4, 33)  # of the histogram of errors over stated errors


def draw(result: Spectra, figure: Figure | SubFigure) -> None:
    """Draw a row of three panels for psi and one for nu.

    Left: one estimate of each latent against the exact value of all of J, both less their means,
    with the bias and the rank correlation. Middle: differences from other draws of W over the
    stated standard error. Right: errors against Jacobian products.

    Parameters
    ----------
    result : Spectra
        From `measure`.
    figure : matplotlib Figure or SubFigure
        Empty; about 12 x 7 inches.
    """
    axes = figure.subplots(2, 3)
    exact = psi_nu(result.singular_values, 0.0)
    for row, descriptor, truth in zip(axes, _SYMBOLS, exact, strict=True):
        _against_generator(row[0], result, descriptor, truth)
        _calibration(row[1], result, descriptor)
        _convergence(row[2], result, descriptor)
        for ax in row:
            ax.spines[["top", "right"]].set_visible(False)


def _against_generator(ax: Axes, result: Spectra, descriptor: str, truth: Floats) -> None:
    """Draw what the first seed says of the latents' order."""
    symbol = _SYMBOLS[descriptor]
    x = truth - truth.mean()
    estimates = {
        name: one
        for name, one in result.runs.items()
        if one.method != "exact" and not result.repeats_paper(one)
    }
    for name, one in estimates.items():
        value = one.of(descriptor)[0][0]
        found = {
            row.statistic: row.value
            for row in result.rows
            if row.quantity == descriptor and row.case == f"{name}, k = {one.k}, all of J"
        }
        label = f"{_named(result, name)}: bias {_short(found['bias'])}"
        if "rank correlation" in found:
            label += rf", $\rho$ = {_short(found['rank correlation'])}"
        ax.plot(
            x, value - value.mean(), _MARKERS.get(one.method, "o"), ms=4.5, mew=0, alpha=0.8,
            color=_colour(result, name), label=label,
        )  # fmt: skip
    low, high = float(x.min()), float(x.max())
    ax.plot([low, high], [low, high], color=_GREY, linestyle=":", linewidth=1.2, zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel(rf"exact ${symbol}$ of all of $J$, less its mean")
    ax.set_ylabel(rf"estimate of ${symbol}$, less its mean")
    if estimates:
        ax.legend(
            fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0),
            borderaxespad=0.2, handletextpad=0.3,
        )  # fmt: skip


def _calibration(ax: Axes, result: Spectra, descriptor: str) -> None:
    """Draw differences from other draws of W in stated standard errors, beside a normal law."""
    symbol = _SYMBOLS[descriptor]
    drawn = False
    for name, one in result.runs.items():
        if one.method not in ("paper", "predict") or result.repeats_paper(one):
            continue
        value, stderr, _ = one.of(descriptor)
        law = result.laws[one.k]
        target = law.psi if descriptor == "psi" else law.nu
        some = stderr > 0
        scale = np.where(some, stderr, 1.0)[:, None]
        z = ((value[:, None] - target) / scale)[
            np.broadcast_to(some[:, None], scale.shape[:1] + target.shape)
        ]
        if not z.size:
            continue
        drawn = True
        counts, _ = np.histogram(np.clip(z, _EDGES[0], _EDGES[-1]), _EDGES)
        ax.stairs(
            counts / counts.sum() / np.diff(_EDGES), _EDGES, color=_colour(result, name),
            linewidth=1.6, label=_named(result, name),
        )  # fmt: skip
    if not drawn:
        ax.set_axis_off()
        ax.text(0.5, 0.5, "no method with a standard error", ha="center", transform=ax.transAxes)
        return
    t = np.linspace(_EDGES[0], _EDGES[-1], 200)
    normal = np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi)
    ax.plot(t, normal, color=_GREY, linestyle=":", linewidth=1.2, label="normal")
    ax.set(xlim=(_EDGES[0], _EDGES[-1]), ylabel="density (outliers in the last bins)")
    ax.set_ylim(bottom=0)
    ax.set_xlabel(rf"(estimate $-\ {symbol}_W$ of another $W$) / stated error")
    ax.legend(
        fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3,
        borderaxespad=0.2, handlelength=1.4, columnspacing=1.0,
    )  # fmt: skip


def _convergence(ax: Axes, result: Spectra, descriptor: str) -> None:
    """Draw errors over products, those that are rounding at the foot."""
    curves = {
        name: (curve.products, curve.psi if descriptor == "psi" else curve.nu)
        for name, curve in result.convergence.items()
        if len(curve.products)
    }
    errors = np.concatenate([error for _, error in curves.values()])
    real = errors[errors > _ROUNDING]
    foot = 10.0 ** np.floor(np.log10(real.min()) - 0.3) if len(real) else _ROUNDING
    for name, (products, error) in curves.items():
        y = np.where(error > _ROUNDING, error, foot)
        colour, method = _colour(result, name), result.runs[name].method
        label = {"paper": "averages of paper"}.get(method, _named(result, name))
        ax.plot(
            products, y, color=colour, linewidth=1.4, marker=_MARKERS.get(method, "o"), ms=4.5,
            mew=0, label=label, clip_on=False,
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="Jacobian products per latent")
    top = float(real.max()) if len(real) else 1.0
    decades = range(round(np.log10(foot)), int(np.ceil(np.log10(top) + 0.1)) + 1)
    ax.set_ylim(foot, 10.0 ** decades[-1])
    labels = [f"$10^{{{d}}}$" for d in decades]
    if (errors <= _ROUNDING).any():
        labels[0] = "rounding"
    ax.set_yticks([10.0**d for d in decades], labels)
    ticks = sorted({int(p) for products, _ in curves.values() for p in products})
    ticks = _apart(ticks)
    ax.set_xticks(ticks, [str(p) for p in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylabel(rf"RMS error of ${_SYMBOLS[descriptor]}$")
    ax.legend(
        fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2,
        borderaxespad=0.2, handlelength=1.4, columnspacing=1.0,
    )  # fmt: skip


def _apart(ticks: list[int]) -> list[int]:
    """Leave out numbers that would be written over each other on a logarithmic axis."""
    kept = ticks[:1]
    least = (ticks[-1] / ticks[0]) ** 0.09
    for tick in ticks[1:]:
        if tick >= least * kept[-1]:
            kept.append(tick)
    return kept


def _named(result: Spectra, name: str) -> str:
    one = result.runs[name]
    return f"{name} (fell back)" if one.fell_back.all() else name


def _colour(result: Spectra, name: str) -> str:
    if name in _COLOURS:
        return _COLOURS[name]
    others = [other for other in result.runs if other not in _COLOURS]
    return _OTHERS[others.index(name) % len(_OTHERS)]


def _short(value: float) -> str:
    """Return a number of three digits, 0 for rounding."""
    text = "0" if abs(value) < _ROUNDING else f"{value:.3g}"
    return text.replace("-", "\N{MINUS SIGN}")
