"""Figures of populations: joint distributions, scores of level sets, plates of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import Tensor

from approx.plot.histograms import COLOURS, histograms
from approx.plot.maps import short, subscript, symbol
from approx.plot.pictures import shown
from approx.tables import Descriptors, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from approx.populations import LevelSets, SetScores

_BLUE, _ORANGE, _GREY = COLOURS[0], COLOURS[1], "#999999"


def joint(
    table: Descriptors | Mapping[str, Any],
    by: Sequence[str] = ("psi", "nu", "delta"),
    labels: ArrayLike | None = None,
    *,
    names: Mapping[Any, str] | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw the joint distribution of columns, two at a time, by class.

    Parameters
    ----------
    table : Descriptors, or mapping from names to (N,) array_like
        A DataFrame will do, with further columns such as an error of reconstruction.
    by : sequence of str
        Two columns or more.
    labels : (N,) array_like, optional
        Class of each row; at most seven classes, which have a colour each.
    names : mapping, optional
        From labels to the names that are shown.
    figure : matplotlib Figure or SubFigure, optional
        A new one by default.

    Returns
    -------
    matplotlib Figure or SubFigure

    Raises
    ------
    ValueError
        An unknown column, fewer than two, more than seven classes, or labels of another length.

    Notes
    -----
    On the diagonal stand histograms of each class, below it a dot for each row, with Spearman's
    rank correlation of all rows, and of the rows within a class (the mean over the classes, by
    their counts). Axes hold 99 % of the rows.

    Examples
    --------
    >>> from approx import plot
    >>> table = {"psi": [0.1, 0.3, 0.2, 0.5], "nu": [2.0, 4.0, 3.0, 5.0]}
    >>> plot.joint(table, ["psi", "nu"]).axes[1].get_title(loc="left")
    '$r_s$ = 1.00'
    """
    data = table.columns() if isinstance(table, Descriptors) else table
    for name in by:
        if name not in data:
            raise ValueError(
                f"Expected columns of the table, got {name!r}: there are {', '.join(data)}."
            )
    columns = [np.asarray(data[name], dtype=np.float64) for name in by]
    given = np.zeros(len(columns[0])) if labels is None else np.asarray(labels)
    classes, member = np.unique(given, return_inverse=True)
    if len(by) < 2 or len(classes) > len(COLOURS) or given.shape != columns[0].shape:
        raise ValueError(
            f"Expected two columns or more, one label for each of {len(columns[0])} rows and at "
            f"most {len(COLOURS)} classes, got {len(by)} columns, {given.size} labels and "
            f"{len(classes)} classes: draw fewer classes at a time."
        )
    size = len(by)
    if figure is None:
        figure = plt.figure(figsize=(2.1 * size + 0.6, 1.9 * size + 0.4), layout="constrained")
    grid = figure.add_gridspec(size, size)
    of = subscript(table)
    for i in range(size):
        for j in range(i + 1):
            ax = figure.add_subplot(grid[i, j])
            _dots(ax, columns[j], columns[i], member, i == j)
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_xlabel(label(by[j], of) if i == size - 1 else "")
            ax.set_ylabel("" if j else "rows" if i == j else label(by[i], of))
    if labels is not None:
        titles = [str((names or {}).get(c, c)) for c in classes.tolist()]
        marks = [Line2D([], [], color=c, marker="o", ls="", label=t)
                 for c, t in zip(COLOURS, titles, strict=False)]  # fmt: skip
        corner = figure.add_subplot(grid[0, 1:])
        corner.set_axis_off()
        corner.legend(handles=marks, frameon=False, loc="upper right", ncols=2)
    return figure


def _dots(ax: Axes, x: NDArray[Any], y: NDArray[Any], member: NDArray[Any], alone: bool) -> None:
    """Draw two columns against each other, or one alone as histograms."""
    finite = np.isfinite(x) & np.isfinite(y)
    groups = [finite & (member == c) for c in range(int(member.max(initial=0)) + 1)]
    if alone:
        histograms(ax, [x[rows] for rows in groups], [""] * len(groups))
        return
    # mixed, so that no class lies on top of the others
    rows = np.random.default_rng(0).permutation(np.flatnonzero(finite))
    colours = np.array(COLOURS)[member[rows]]
    size = min(18, max(4, 4000 / max(len(rows), 1)))
    ax.scatter(x[rows], y[rows], s=size, c=colours, alpha=0.5, lw=0, rasterized=len(rows) > 2000)
    for ends, limits in ((x, ax.set_xlim), (y, ax.set_ylim)):
        low, high = np.quantile(ends[finite], [0.005, 0.995]) if finite.any() else (0.0, 1.0)
        room = 0.05 * (high - low) or 0.5
        limits(low - room, high + room)
    text = f"$r_s$ = {_rank(x[finite], y[finite]):.2f}"
    if len(groups) > 1:
        inner = [_rank(x[g], y[g]) for g in groups if g.sum() > 2]
        sizes = [int(g.sum()) for g in groups if g.sum() > 2]
        text += f", within {np.average(inner, weights=sizes):.2f}" if inner else ""
    ax.set_title(text.replace("-", "\N{MINUS SIGN}"), fontsize="small", loc="left", pad=4)


def _rank(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Return Spearman's rank correlation, NaN where nothing varies."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def set_scores(
    scores: SetScores,
    *,
    names: Mapping[str, str] | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw scores by level set with their intervals, over those of permuted sets.

    Parameters
    ----------
    scores : SetScores
        From `score_sets`; a panel for each scorer.
    names : mapping, optional
        From scorers to the names that are shown.
    figure : matplotlib Figure or SubFigure, optional
        A new one by default.

    Returns
    -------
    matplotlib Figure or SubFigure

    Notes
    -----
    Bars are 95 % intervals; the band holds the middle 95 % of the permuted sets. Full dots have a
    corrected p below 0.05.

    Examples
    --------
    >>> from approx import level_sets, plot, score_sets
    >>> sets = level_sets({"psi": range(20)}, bins=2)
    >>> found = score_sets(
    ...     sets, list(range(20)), {"mean": lambda x: x}, n=4, within=None, progress=False
    ... )
    >>> plot.set_scores(found).axes[0].get_ylabel()
    'mean'
    """
    scorers = list(dict.fromkeys(scores.scorer.tolist()))
    if figure is None:
        figure = plt.figure(figsize=(2.9 * len(scorers) + 0.3, 2.6), layout="constrained")
    axes = figure.subplots(1, len(scorers), squeeze=False)[0]
    for ax, name in zip(axes, scorers, strict=True):
        rows = scores.scorer == name
        x, y = scores.set[rows], scores.score[rows]
        low, high = scores.null_low[rows], scores.null_high[rows]
        if np.isfinite(low).any():
            ax.fill_between(x, low, high, color=_GREY, alpha=0.3, lw=0, label="permuted sets")
            ax.plot(x, scores.null[rows], color=_GREY, lw=1)
        ends = np.stack([y - scores.score_low[rows], scores.score_high[rows] - y])
        ax.errorbar(x, y, ends, color=_BLUE, lw=1.3, capsize=2, label=f"n = {scores.n:,}")
        for far, face in ((scores.p[rows] < 0.05, _BLUE), (~(scores.p[rows] < 0.05), "white")):
            ax.plot(x[far], y[far], "o", color=_BLUE, mfc=face, ms=5)
        edges = [*scores.from_value[rows], scores.to_value[rows][-1]]
        ax.set_xticks(np.arange(len(x) + 1) - 0.5, [short(float(e)) for e in edges])
        ax.tick_params(axis="x", labelrotation=45)
        ax.set(xlabel=symbol(scores.by), ylabel=(names or {}).get(name, name))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize="small", loc="best")
    return figure


def plate(
    images: Tensor | ArrayLike,
    sets: LevelSets,
    k: int = 1,
    *,
    names: Mapping[Any, str] | None = None,
    image: Callable[[Tensor], ArrayLike] | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw a plate of images: columns are level sets, and rows are classes.

    Parameters
    ----------
    images : (N, ...) Tensor or array_like
        In the order of the table.
    sets : LevelSets
        Of `level_sets`; without labels there is one row.
    k : int
        Images in each place: those whose values are nearest to the median of set and class.
    names : mapping, optional
        From labels to the names that are shown.
    image : callable, optional
        As for `gallery`.
    figure : matplotlib Figure or SubFigure, optional
        A new one by default.

    Returns
    -------
    matplotlib Figure or SubFigure

    Raises
    ------
    ValueError
        Not one image for each row of the table, or k below 1.

    Examples
    --------
    >>> import torch
    >>> from approx import level_sets, plot
    >>> sets = level_sets({"psi": range(8), "label": [0, 1] * 4}, bins=2)
    >>> len(plot.plate(torch.rand(8, 5, 5), sets).axes)
    4
    """
    _check(images, len(sets.values), k)
    labels = np.zeros(len(sets.values)) if sets.labels is None else sets.labels
    classes = np.unique(labels)
    places: list[NDArray[np.int64]] = []
    for c in classes:
        for rows in sets:
            inner = rows[labels[rows] == c]
            away = np.abs(sets.values[inner] - np.median(sets.values[inner])) if len(inner) else []
            places.append(inner[np.argsort(away, kind="stable")[:k]])
    titles = [f"{short(float(a))} to {short(float(b))}"
              for a, b in zip(sets.edges, sets.edges[1:], strict=False)]  # fmt: skip
    titles[0] = f"{symbol(sets.by)}: {titles[0]}"
    rows = [] if sets.labels is None else [str((names or {}).get(c, c)) for c in classes.tolist()]
    return _grid(images, places, titles, rows, k, image, figure)


def ends(
    images: Tensor | ArrayLike,
    values: ArrayLike,
    labels: ArrayLike,
    k: int = 5,
    *,
    by: str = "psi",
    names: Mapping[Any, str] | None = None,
    image: Callable[[Tensor], ArrayLike] | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw the images with the k lowest and the k highest values of every class.

    Parameters
    ----------
    images : (N, ...) Tensor or array_like
    values, labels : (N,) array_like
        Value and class of each image; without a value it is not drawn.
    k : int
        Images on each side, from the lowest to the highest.
    by : str
        Name of the values.
    names, image, figure
        As for `plate`.

    Returns
    -------
    matplotlib Figure or SubFigure

    Raises
    ------
    ValueError
        Not one value and label for each image, or k below 1.

    Examples
    --------
    >>> import torch
    >>> from approx import plot
    >>> figure = plot.ends(torch.rand(8, 5, 5), range(8), [0, 1] * 4, k=2, by="ink")
    >>> [ax.get_title() for ax in figure.axes[:2]]
    ['lowest ink', 'highest ink']
    """
    found, given = np.asarray(values, dtype=np.float64), np.asarray(labels)
    _check(images, len(found), k)
    _check(images, len(given), k)
    places: list[NDArray[np.int64]] = []
    for c in np.unique(given):
        rows = np.flatnonzero((given == c) & np.isfinite(found))
        rising = rows[np.argsort(found[rows], kind="stable")]
        places += [rising[:k], rising[max(len(rising) - k, 0) :]]
    rows = [str((names or {}).get(c, c)) for c in np.unique(given).tolist()]
    titles = [f"{word} {symbol(by)}" for word in ("lowest", "highest")]
    return _grid(images, places, titles, rows, k, image, figure)


def _check(images: Any, count: int, k: int) -> None:
    if len(images) != count or k < 1:
        raise ValueError(
            f"Expected an image for each of {count} rows and k >= 1, got {len(images)} and k={k}: "
            "give the images in the order of the table."
        )


def _grid(
    images: Any, places: Sequence[NDArray[np.int64]], titles: Sequence[str], rows: Sequence[str],
    k: int, image: Callable[[Tensor], ArrayLike] | None, figure: Figure | SubFigure | None,
) -> Figure | SubFigure:  # fmt: skip
    """Draw strips of up to k images, a row of them for each class."""
    count, wide = len(places) // len(titles), len(titles)
    numbers = np.concatenate(places)
    given = images if isinstance(images, Tensor) else torch.as_tensor(np.asarray(images))
    some = given[torch.from_numpy(numbers).to(given.device)].detach().cpu()
    pictures = iter(shown(list(some), image))
    if figure is None:
        size = (0.75 * wide * k + 0.5, 0.75 * count + 0.5)
        figure = plt.figure(figsize=size, layout="constrained")
    axes = figure.subplots(count, wide, squeeze=False)
    for place, (ax, inner) in enumerate(zip(axes.flat, places, strict=True)):
        row, column = divmod(place, wide)
        strip = [next(pictures) for _ in inner]
        if strip:
            ax.imshow(_beside(strip, k), cmap="gray", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        if row == 0:
            ax.set_title(titles[column], fontsize="small")
        if column == 0 and rows:
            ax.set_ylabel(rows[row], rotation=0, ha="right", va="center")
    return figure


def _beside(strip: Sequence[NDArray[np.float64]], k: int) -> NDArray[np.float64]:
    """Return pictures beside each other on white, with room for k."""
    first = strip[0]
    step = first.shape[1] + max(1, first.shape[1] // 14)
    wide = np.ones((first.shape[0], step * k, *first.shape[2:]))
    for i, picture in enumerate(strip):
        wide[:, i * step : i * step + first.shape[1]] = picture
    return wide[:, : step * k - (step - first.shape[1])]
