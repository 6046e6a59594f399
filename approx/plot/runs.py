"""Curves of descriptors along the sampling of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np

from approx.plot.maps import subscript
from approx.tables import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

_COLOURS = {"sample": "#0072B2", "clean": "#D55E00"}
_WORDS = {"sample": "at $x_t$", "clean": r"at $\hat{x}_0$"}
_BAND = (0.1, 0.9)


def trajectory(
    run: Any,
    by: Sequence[str] | None = None,
    *,
    against: str = "step",
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw descriptors along sampling: a panel each, a line for each place, bands over samples.

    Parameters
    ----------
    run : Run, DataFrame or mapping from names to (N,) array_like
        From `approx.diffusion.record`, or its table.
    by : sequence of str, optional
        Columns; by default psi, nu and delta as far as they are there.
    against : str
        Column on the horizontal axis: "step", "timestep" or "sigma" (logarithmic). The last two
        leave out what is not finite there.
    figure : matplotlib Figure or SubFigure, optional
        A new one by default.

    Returns
    -------
    matplotlib Figure or SubFigure

    Raises
    ------
    ValueError
        A table that is not of a run, an empty one, or an unknown column.

    Notes
    -----
    Lines are medians over the samples of all calls, and bands hold the middle 80 % of these. Of
    a single sample the band is the descriptor's own 95 % interval.

    Examples
    --------
    >>> from approx import plot
    >>> run = {"step": [0, 1, 0, 1], "at": ["sample"] * 4, "psi": [0.1, 0.3, 0.2, 0.5]}
    >>> plot.trajectory(run).axes[0].get_xlabel()
    'step'
    """
    found = run.columns() if callable(getattr(run, "columns", None)) else run
    data: Mapping[str, Any] = {str(name): np.asarray(found[name]) for name in found}
    names = ("psi", "nu", "delta")
    chosen = [n for n in names if n in data] if by is None else [by] if isinstance(by, str) else by
    for name in ("at", against, *chosen):
        if name not in data:
            raise ValueError(
                f"Expected columns of a recorded run, got none named {name!r} among "
                f"{', '.join(data)}: give a run of approx.diffusion.record or its table."
            )
    if not chosen or not len(data["at"]):
        raise ValueError("Expected a run with described steps, got none: record some steps first.")
    if figure is None:
        figure = plt.figure(figsize=(5.2, 1.5 * len(chosen) + 0.5), layout="constrained")
    axes = figure.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0]
    x = data[against].astype(float)
    if against == "sigma":  # on a logarithm's scale
        x = np.where(x > 0, x, np.nan)
    of = subscript(getattr(run, "descriptors", run))
    for ax, name in zip(axes, chosen, strict=True):
        for place in dict.fromkeys(data["at"].tolist()):
            here = (data["at"] == place) & np.isfinite(x)
            places = np.unique(x[here])
            rows = [here & (x == at) for at in places]
            middle = [_quantile(data[name][row], 0.5) for row in rows]
            low, high = _band(data, name, rows)
            colour = _COLOURS.get(place)
            (line,) = ax.plot(places, middle, color=colour, lw=1.3, marker="o", ms=2.5,
                              label=_WORDS.get(place, place))  # fmt: skip
            ax.fill_between(places, low, high, color=line.get_color(), alpha=0.2, lw=0)
        ax.set_ylabel(label(name, of))
        ax.margins(x=0.01)
        ax.spines[["top", "right"]].set_visible(False)
    if against == "sigma":
        axes[-1].set_xscale("log")
    if against in ("sigma", "timestep"):  # sampling runs to the right
        axes[-1].invert_xaxis()
    axes[0].legend(frameon=False, fontsize="small", loc="best")
    axes[-1].set_xlabel({"sigma": "noise over signal"}.get(against, against))
    figure.align_ylabels(axes)
    return figure


def _quantile(values: Any, share: float) -> float:
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    return float(np.quantile(values, share)) if len(values) else float("nan")


def _band(data: Mapping[str, Any], name: str, rows: list[Any]) -> tuple[list[float], list[float]]:
    """Return the ends of the band: over the samples, or of the interval of one alone."""
    if all(row.sum() == 1 for row in rows) and f"{name}_low" in data:
        low, high = (data[f"{name}_{end}"] for end in ("low", "high"))
        return [float(low[row][0]) for row in rows], [float(high[row][0]) for row in rows]
    low, high = ([_quantile(data[name][row], share) for row in rows] for share in _BAND)
    return low, high
