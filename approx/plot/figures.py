"""Figures of descriptors: maps of a plane, curves along a path, galleries, distributions."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from approx.plot.histograms import COLOURS, histograms
from approx.plot.maps import HALO, draw_map, height, mark_anchors, short, subscript, symbol
from approx.plot.pictures import extremes, pictures
from approx.tables import Descriptors, label

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


_BLUE, _ORANGE = "#0072B2", "#D55E00"
_SKY = "#56B4E9"  # blue that can be read on a map
_MAP = 3.9  # inches of a gallery's map
_DESCRIPTORS = ("psi", "nu", "delta")


def fields(
    dataset: xr.Dataset,
    by: Sequence[str] | None = None,
    *,
    names: Sequence[str] = string.ascii_uppercase[:3],
    cmap: str = "viridis",
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw maps of descriptors over the plane of `field`, with the anchors marked.

    Parameters
    ----------
    dataset : xarray.Dataset
        From `field`.
    by : sequence of str, optional
        Columns, one map each; by default psi, nu and delta as far as they are there.
    names : sequence of str
        Names of the anchors.
    cmap : str
        Name of the colour map.
    figure : matplotlib Figure or SubFigure, optional
        A new one by default.

    Returns
    -------
    matplotlib Figure or SubFigure

    Raises
    ------
    ValueError
        A dataset that is not from `field`, or an unknown column.

    Notes
    -----
    A colour scale holds 99 % of the pixels, with an arrow at an end that leaves something out;
    pixels that an interruption left out are grey. The bar's label has the median standard error.

    Examples
    --------
    >>> import torch
    >>> from approx import field, plot
    >>> anchors = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> maps = field(torch.nn.Linear(2, 4), anchors, 6, neighbourhood=None, progress=False)
    >>> [ax.get_xlabel() for ax in plot.fields(maps).axes]
    ['$u$', '$u$']
    """
    _require(dataset, "v", "field")
    chosen = _columns(dataset, by)
    if figure is None:
        aspect = height(dataset)
        figure = plt.figure(
            figsize=(3.4 * len(chosen) + 0.3, 3.4 * 0.74 * aspect + 0.55), layout="constrained"
        )
    axes = figure.subplots(1, len(chosen), sharex=True, sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, chosen, strict=True):
        draw_map(ax, dataset, name, cmap)
        mark_anchors(ax, dataset.anchor_u.values, dataset.anchor_v.values, names)
        ax.set_xlabel("$u$")
    axes[0].set_ylabel("$v$")
    return figure


def path(
    dataset: xr.Dataset,
    by: Sequence[str] | None = None,
    *,
    against: str = "step",
    xlabel: str | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw descriptors along the path of `along`, with their 95 % intervals.

    Parameters
    ----------
    dataset : xarray.Dataset
        From `along`.
    by : sequence of str, optional
        Columns, one panel each; by default psi, nu and delta as far as they are there.
    against : {"step", "distance"}
        The coordinate on the horizontal axis: the times, or the length of the path in latent space.
    xlabel : str, optional
        Its label.
    figure : matplotlib Figure or SubFigure, optional
        A new one by default.

    Returns
    -------
    matplotlib Figure or SubFigure

    Raises
    ------
    ValueError
        A dataset that is not from `along`, an unknown column or coordinate.

    Examples
    --------
    >>> import torch
    >>> from approx import along, plot
    >>> latents = torch.linspace(0, 1, 5)[:, None] * torch.ones(2)
    >>> curve = along(torch.nn.Linear(2, 4), latents, neighbourhood=None, progress=False)
    >>> plot.path(curve, ["psi"], against="distance").axes[0].get_xlabel()
    'distance along the path in latent space'
    """
    _require(dataset, "step", "along")
    if against not in ("step", "distance"):
        raise ValueError(f"Expected against as 'step' or 'distance', got {against!r}.")
    chosen = _columns(dataset, by)
    if figure is None:
        figure = plt.figure(figsize=(5.2, 1.5 * len(chosen) + 0.5), layout="constrained")
    axes = figure.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0]
    x = dataset[against].values
    for ax, name in zip(axes, chosen, strict=True):
        low, high = _interval(dataset, name)
        if low is not None:
            ax.fill_between(x, low, high, color=_BLUE, alpha=0.2, lw=0, label="95 % interval")
        dots = "o" if len(x) <= 60 else ""
        ax.plot(x, dataset[name].values, color=_BLUE, lw=1.3, marker=dots, ms=2.5)
        ax.set_ylabel(label(name, subscript(dataset)))
        ax.margins(x=0.01)
        ax.spines[["top", "right"]].set_visible(False)
        if name == "delta":
            ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if axes[0].get_legend_handles_labels()[1]:
        axes[0].legend(frameon=False, fontsize="small", loc="best")
    default = "step" if against == "step" else "distance along the path in latent space"
    axes[-1].set_xlabel(xlabel or default)
    figure.align_ylabels(axes)
    return figure


def gallery(
    decoder: Callable[[Tensor], Any],
    source: xr.Dataset | Descriptors,
    by: str = "psi",
    k: int = 8,
    *,
    latents: Tensor | None = None,
    apart: float = 0.0,
    image: Callable[[Tensor], ArrayLike] | None = None,
    output: Callable[[Any], Tensor] | None = None,
    names: Sequence[str] = string.ascii_uppercase[:3],
    cmap: str = "viridis",
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw the decoded images at the k highest and the k lowest values of a descriptor.

    Parameters
    ----------
    decoder : callable
        The decoder that `source` describes; its latents go to its first parameter's device.
    source : xarray.Dataset or Descriptors
        From `field` (the map is drawn beside the images, and says where each was), `along` or
        `describe`.
    by : str
        A column.
    k : int
        Images in each row; at most half of the latents.
    latents : Tensor, optional
        (N, *latent_shape): for `Descriptors`, which do not hold them.
    apart : float
        Least distance in latent space between two images of a row: neighbouring pixels of a map
        look alike. 0 takes the k extreme values themselves.
    image : callable, optional
        Turns one output into (H, W) or (H, W, 3) in [0, 1]. By default (H, W), (1, H, W) and
        (3, H, W) are shown, and a vector as a square; the range of all outputs is black to white.
    output : callable, str or int, optional
        As for `describe`.
    names, cmap, figure
        As for `fields`.

    Returns
    -------
    matplotlib Figure or SubFigure

    Raises
    ------
    ValueError
        An unknown column, more images than there are latents (apart from each other), outputs that
        are no images.

    Notes
    -----
    Cost: one forward pass for each of the 2 k images.

    Examples
    --------
    >>> import torch
    >>> from approx import describe, plot
    >>> decoder, latents = torch.nn.Linear(2, 16), torch.rand(6, 2)
    >>> table = describe(decoder, latents, neighbourhood=None, progress=False)
    >>> len(plot.gallery(decoder, table, "nu", k=2, latents=latents).axes)
    4
    """
    data = source.columns() if isinstance(source, Descriptors) else source
    if by not in data:
        raise ValueError(f"Expected a column, got {by!r}: there are {', '.join(map(str, data))}.")
    values = np.asarray(data[by], dtype=np.float64).ravel()
    high, low, z = extremes(source, values, k, apart, latents)
    shown = pictures(decoder, z, np.concatenate([high, low]), len(values), image, output)
    plane = None if isinstance(source, Descriptors) or "basis" not in source else source
    if figure is None:
        wide = 0.9 * k + 0.3
        size = (wide + _MAP, 2.5) if plane is not None else (wide, 2.25)
        figure = plt.figure(figsize=size, layout="constrained")
    right: Figure | SubFigure = figure
    if plane is not None:
        split = figure.add_gridspec(1, 2, width_ratios=[_MAP, 0.9 * k + 0.3])
        left, right = (figure.add_subfigure(part) for part in split)
        ax = left.subplots()
        draw_map(ax, plane, by, cmap)
        mark_anchors(ax, plane.anchor_u.values, plane.anchor_v.values, names)
        ax.set(xlabel="$u$", ylabel="$v$")
        for chosen, colour in ((high, _ORANGE), (low, _SKY)):
            row, column = np.divmod(chosen, plane.sizes["u"])
            u, v = plane.u.values[column], plane.v.values[row]
            for i, at in enumerate(zip(u, v, strict=True), 1):
                ax.annotate(
                    str(i), at, color=colour, ha="center", va="center", fontsize="small",
                    fontweight="bold", path_effects=HALO,
                )  # fmt: skip
    axes = right.subplots(2, k, squeeze=False)
    rows = (("highest", high, _ORANGE), ("lowest", low, _BLUE))
    for row, (title, chosen, colour) in enumerate(rows):
        axes[row, 0].set_ylabel(f"{title} {symbol(by, subscript(source))}", color=colour)
        for column, index in enumerate(chosen.tolist()):
            ax = axes[row, column]
            ax.imshow(shown[row * k + column], cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            number = f"{column + 1}:  " if plane is not None else ""
            ax.set_title(f"{number}{short(float(values[index]))}", fontsize="small", pad=3)
    return figure


def distribution(
    table: Descriptors | Mapping[str, Any],
    labels: ArrayLike,
    by: str | Sequence[str] = _DESCRIPTORS,
    *,
    names: Mapping[Any, str] | None = None,
    xlabel: str = "class",
    overlaid: bool = False,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw the distribution of descriptors by class: violins side by side, or histograms overlaid.

    Parameters
    ----------
    table : Descriptors, or mapping from names to (N,) array_like
        A DataFrame will do.
    labels : (N,) array_like
        Class of each latent.
    by : str or sequence of str
        Columns, one panel each.
    names : mapping, optional
        From labels to the names that are shown.
    xlabel : str
        Label of the classes' axis, or the legend's title.
    overlaid : bool
        Whether to draw histograms on one axis, each of the share of its class: for up to seven
        classes, such as digits against letters. Otherwise violins with quartiles.
    figure : matplotlib Figure or SubFigure, optional
        A new one by default.

    Returns
    -------
    matplotlib Figure or SubFigure

    Raises
    ------
    ValueError
        An unknown column, not one label for each latent, or too many classes to overlay.

    Examples
    --------
    >>> from approx import plot
    >>> figure = plot.distribution({"psi": [0.1, 0.3, 0.2, 0.5]}, ["a", "a", "b", "b"], "psi")
    >>> [text.get_text() for text in figure.axes[0].get_xticklabels()]
    ['a', 'b']
    """
    data = table.columns() if isinstance(table, Descriptors) else table
    chosen = [by] if isinstance(by, str) else list(by)
    for name in chosen:
        if name not in data:
            raise ValueError(
                f"Expected columns of the table, got {name!r}: there are {', '.join(data)}."
            )
    columns = {name: np.asarray(data[name], dtype=np.float64) for name in chosen}
    classes, member = np.unique(np.asarray(labels), return_inverse=True)
    for column in columns.values():
        if column.shape != np.shape(labels):
            raise ValueError(
                f"Expected one label for each entry of a column, got shapes {np.shape(labels)} and "
                f"{column.shape}: give labels in the order of the latents."
            )
    if not len(classes):
        raise ValueError("Expected latents of one class or more, got none: nothing to draw.")
    if overlaid and len(classes) > len(COLOURS):
        raise ValueError(
            f"Expected at most {len(COLOURS)} classes to overlay, got {len(classes)}: draw "
            "fewer, or violins."
        )
    if figure is None:
        wide = 3.0 if overlaid else 0.42 * len(classes) + 1.2
        # inches between a panel and the next one's label
        layout = ConstrainedLayoutEngine(w_pad=0.1)
        figure = plt.figure(figsize=(max(3.0, wide) * len(chosen), 2.9), layout=layout)
    axes = figure.subplots(1, len(chosen), squeeze=False)[0]
    titles = [str((names or {}).get(c, c)) for c in classes.tolist()]
    for ax, name in zip(axes, chosen, strict=True):
        groups = [columns[name][member == i] for i in range(len(classes))]
        ax.spines[["top", "right"]].set_visible(False)
        if overlaid:
            histograms(ax, groups, titles, shares=True)
            ax.set(xlabel=label(name, subscript(table)), ylabel="share of the class")
            continue
        _violins(ax, groups)
        ax.set_xticks(range(len(classes)), titles)
        ax.set(xlabel=xlabel, ylabel=label(name, subscript(table)))
        if columns[name].size and (columns[name] == columns[name].round()).all():
            ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    if overlaid:
        axes[0].legend(frameon=False, fontsize="small", title=xlabel)
    return figure


def _violins(ax: Axes, groups: list[NDArray[np.float64]]) -> None:
    """Draw a violin for each group, its quartiles as a bar and its median as a dot."""
    for place, values in enumerate(groups):
        values = values[np.isfinite(values)]
        if len(np.unique(values)) > 1:  # a density needs a spread
            # tails of a few latents would flatten all violins: the range that holds 99 %
            inner = np.quantile(values, [0.005, 0.995])
            body = values[(values >= inner[0]) & (values <= inner[1])]
            body = body if len(np.unique(body)) > 1 else values
            parts = ax.violinplot([body], [place], widths=0.85, showextrema=False)
            for violin in parts["bodies"]:  # pyright: ignore[reportGeneralTypeIssues]
                violin.set(facecolor=_BLUE, alpha=0.35, edgecolor="none")
        if len(values):
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            ax.vlines(place, low, high, color=_BLUE, lw=3)
            ax.plot(place, middle, "o", color="white", mec=_BLUE, ms=4, mew=1.2)


def _columns(dataset: xr.Dataset, by: Sequence[str] | None) -> list[str]:
    if by is None:
        return [name for name in _DESCRIPTORS if name in dataset]
    chosen = [by] if isinstance(by, str) else list(by)
    for name in chosen:
        if name not in dataset:
            raise ValueError(
                f"Expected columns of the dataset, got {name!r}: there are "
                f"{', '.join(map(str, dataset.data_vars))}."
            )
    return chosen


def _require(dataset: xr.Dataset, dim: str, maker: str) -> None:
    if dim not in dataset.dims:
        raise ValueError(
            f"Expected a dataset from {maker}, got one over {', '.join(map(str, dataset.dims))}: "
            f"make it with approx.{maker}."
        )


def _interval(
    dataset: xr.Dataset, name: str
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Return the ends of a descriptor's error band, if it has one."""
    if f"{name}_low" in dataset:
        return dataset[f"{name}_low"].values, dataset[f"{name}_high"].values
    if name == "delta" and (dataset["delta_error"].values > 0).any():
        value, error = dataset["delta"].values, dataset["delta_error"].values
        return np.maximum(value - error, 0), value + error
    return None, None
