"""Parts of the figures: maps with their colour bars, marks, labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import patheffects
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from approx.tables import label

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

_GREY = "#D9D9D9"
_ERRORS = {"psi": "psi_error", "nu": "nu_error"}
HALO = [patheffects.withStroke(linewidth=2.2, foreground="black")]


def draw_map(ax: Axes, dataset: xr.Dataset, name: str, cmap: str) -> None:
    """Draw one map with its colour bar."""
    values = dataset[name].values.astype(np.float64)
    u, v = dataset.u.values, dataset.v.values
    du, dv = (float(x[-1] - x[0]) / max(1, len(x) - 1) or 1.0 for x in (u, v))
    norm, extend = _scale(values)
    ax.set_facecolor(_GREY)
    image = ax.imshow(
        np.ma.masked_invalid(values), cmap=cmap, norm=norm, origin="lower",
        interpolation="nearest",
        extent=(u[0] - du / 2, u[-1] + du / 2, v[0] - dv / 2, v[-1] + dv / 2),
    )  # fmt: skip
    # as high as the map, which is lower than its axes where these are not of its shape
    bar = ax.figure.colorbar(image, cax=ax.inset_axes((1.03, 0, 0.05, 1)), extend=extend)
    text = label(name, subscript(dataset))
    error = dataset[_ERRORS[name]].values if _ERRORS.get(name) in dataset else np.array([np.nan])
    if np.isfinite(error).any() and np.nanmedian(error) > 0:
        text += rf"  ($\pm$ {short(float(np.nanmedian(error)), 2)})"
    bar.set_label(text)
    if name == "delta":
        bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))


def mark_anchors(
    ax: Axes, u: NDArray[np.float64], v: NDArray[np.float64], names: Sequence[str]
) -> None:
    """Mark the anchors."""
    ax.plot(u, v, "o", color="white", mec="black", ms=5, mew=1)
    for x, y, name in zip(u, v, names, strict=False):
        ax.annotate(
            name, (x, y), xytext=(5, 4), textcoords="offset points", color="white",
            fontweight="bold", path_effects=HALO,
        )  # fmt: skip


def _scale(values: NDArray[np.float64]) -> tuple[Normalize, str]:
    """Return a colour scale that holds 99 % of the values, and where it leaves some out."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Normalize(0, 1), "neither"
    low, high = np.quantile(finite, [0.005, 0.995])
    if low == high:
        low, high = finite.min(), max(finite.max(), finite.min() + 1)
    below, above = bool(finite.min() < low), bool(finite.max() > high)
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}
    return Normalize(low, high), extend.get((below, above), "both")


def height(dataset: xr.Dataset) -> float:
    """Height of the map over its width, within bounds that keep a figure readable."""
    ratio = float(np.ptp(dataset.v.values) / max(np.ptp(dataset.u.values), 1e-300))
    return min(max(ratio, 0.4), 2.5)


def symbol(name: str, subscript: str | None = "") -> str:
    """Return a descriptor's letter."""
    end = f"_{subscript}" if subscript else ""
    known = {"psi": rf"$\psi{end}$", "nu": rf"$\nu{end}$", "delta": r"$\delta$"}
    return known.get(name, label(name))


def subscript(source: Any) -> str | None:
    """Return which psi and nu a table, a dataset or a frame holds; "" for plain columns.

    None for a frame or dataset that has lost its attributes, as those of different definitions do
    when they are concatenated.
    """
    if hasattr(source, "subscript"):
        return source.subscript
    attributes = getattr(source, "attrs", None)
    return "" if attributes is None else attributes.get("subscript")


def short(value: float, digits: int = 3) -> str:
    """Return a number for a caption."""
    text = f"{value:#.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    return text.rstrip(".").replace("-", "\N{MINUS SIGN}")
