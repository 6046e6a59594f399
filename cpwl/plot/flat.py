"""Partitions of one and two dimensions: their cells and images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from cpwl.descriptors import volumes
from cpwl.plot import drawing
from cpwl.plot.projections import project

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from mpl_toolkits.mplot3d.axes3d import Axes3D

    from cpwl.partition import Partition


def partition(
    partition: Partition,
    values: str | ArrayLike | None = None,
    *,
    ax: Axes | None = None,
    cmap: str = "viridis",
    limits: tuple[float, float] | None = None,
    label: str | None = None,
    colorbar: bool = True,
    knots: bool = True,
    legend: bool | None = None,
) -> Axes:
    """Draw the cells, coloured by a descriptor, the knots by stage, and the slice's anchors.

    Parameters
    ----------
    partition : Partition
        Two-dimensional: a map. One-dimensional: the values as a step curve over the segment.
    values : str or (C,) array_like, optional
        A name in `LABELS`, or one number per cell; NaN stays grey. Without it the cells are white
        and the knots of each stage have a colour of their own.
    ax : matplotlib Axes, optional
        A new one by default.
    cmap : str
        Name of the colour map.
    limits : (low, high), optional
        Ends of the colour scale; by default the range that holds all but 1 % of the domain's area,
        with an arrow on the colour bar at an end that leaves something out.
    label : str, optional
        Text at the colour bar; by default the descriptor's name.
    colorbar, knots : bool
        Whether to draw them.
    legend : bool, optional
        Whether to list the stages' colours; by default where there are two to eight without values.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        Three dimensions or more, an unknown name, or an array that has not one entry per cell.

    Notes
    -----
    Above 20,000 cells the colours are rasterised. Lines get thinner as knots get more; where those
    of a stage and the stages before it would cover more than 30 % of a place, they fade there.
    Small circles are the latents that `Slice.through` was given; `mark` names them.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> from matplotlib import pyplot
    >>> axes = cpwl.plot.partition(partition, "psi")
    >>> axes.get_xlabel()
    '$s_0$'
    >>> pyplot.close()
    """
    drawing.require_flat(partition)
    ax = drawing.axes(ax)
    data, name = drawing.resolve(partition, values)
    label = label or name
    if partition.dim == 1:
        return drawing.steps(partition, data, label, ax, knots)
    if data is not None:
        norm, extend = drawing.norm(data, volumes(partition), limits)
        colours = drawing.fill(ax, partition, data, cmap, norm)
        if colorbar:
            drawing.colorbar(ax, colours, label, extend)
    if knots:
        drawing.knots(ax, partition, coloured=data is None, legend=legend)
    drawing.frame(ax, partition)
    drawing.anchors(ax, partition)
    return ax


def image(
    partition: Partition,
    values: str | ArrayLike | None = "psi",
    *,
    outputs: Sequence[int] | None = None,
    ax: Axes | None = None,
    cmap: str = "viridis",
    limits: tuple[float, float] | None = None,
    label: str | None = None,
    colorbar: bool = True,
    edges: bool | None = None,
) -> Axes3D:
    """Draw the image of the domain in R^3, each piece coloured by a descriptor.

    Parameters
    ----------
    partition : Partition
        A surface in two dimensions, a curve in one.
    values, cmap, limits, label, colorbar
        As for `partition`.
    outputs : three int, optional
        Which entries of the flattened output are x, y and z. By default all of three outputs, and
        the first three principal axes of more. Of more than three outputs the labels say what share
        of the image's variance each coordinate holds.
    ax : matplotlib Axes3D, optional
        A new one by default.
    edges : bool, optional
        Whether to outline the pieces; by default up to 3,000 of them.

    Raises
    ------
    ValueError
        Three dimensions or more, a network of fewer than three outputs, outputs that are not three
        of its own, an unknown name, an array of the wrong length, or flat axes.

    Notes
    -----
    The variance is that over the domain: of the vertices, each weighted by the area about it; the
    principal axes are those of 2,000 vertices at most. matplotlib sorts every piece by depth: about
    10 s for 1e5 cells. For a larger surface export PLY
    or GLB, or choose a smaller domain.

    Examples
    --------
    >>> import cpwl, torch
    >>> from matplotlib import pyplot
    >>> module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LeakyReLU(0.5))
    >>> network = cpwl.Network.from_torch(module, (2,))
    >>> axes = cpwl.plot.image(cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1])))
    >>> axes.get_zlabel()
    'output 2'
    >>> pyplot.close()
    """
    from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection

    drawing.require_flat(partition)
    points, names = project(partition, outputs)
    if ax is None:
        ax = plt.figure(layout="constrained").add_subplot(projection="3d")
    space = drawing.require_3d(ax)
    data, name = drawing.resolve(partition, values)
    loops = drawing.loops(partition, points)
    many = partition.num_cells > drawing.RASTER_ABOVE
    if partition.dim == 1:
        pieces: Any = Line3DCollection(loops, linewidths=1.5, rasterized=many)
    else:
        outlined = partition.num_cells <= 3000 if edges is None else edges
        pieces = Poly3DCollection(loops, antialiased=not many, rasterized=many)
        width = min(0.4, 8 / math.sqrt(partition.num_cells))
        pieces.set_linewidth(width if outlined else 0)
        pieces.set_edgecolor((0, 0, 0, 0.5) if outlined else "none")
    if data is None:
        pieces.set_facecolor("0.85")
    else:
        norm, extend = drawing.norm(data, volumes(partition), limits)
        pieces.set(array=data, cmap=cmap, norm=norm)
        if colorbar:
            drawing.colorbar(ax, pieces, label or name, extend, pad=0.1)
    # autolim would look at the padding of ragged pieces too, which is uninitialised memory
    space.add_collection3d(pieces, autolim=False)
    low, high = points.min(0), points.max(0)
    low, high = low - (low == high), high + (low == high)
    space.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    space.set(xlabel=names[0], ylabel=names[1])
    space.set_zlabel(names[2])
    for axis in (space.xaxis, space.yaxis, space.zaxis):
        axis.set_major_locator(MaxNLocator(4))
    return space


def mark(ax: Axes, anchors: ArrayLike, labels: Sequence[str] | None = None, **style: Any) -> Axes:
    """Mark points given by slice coordinates (k, P), for example `slice.anchors`, and name them.

    On a one-dimensional plot the marks stand on the lower edge.

    Parameters
    ----------
    ax : matplotlib Axes
    anchors : (k, 1) or (k, 2) array_like
    labels : sequence of k str, optional
    **style
        Passed on to the markers: color, s, marker, ...

    Raises
    ------
    ValueError
        Coordinates of another shape, or not one label for each.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> from matplotlib import pyplot
    >>> axes = cpwl.plot.mark(cpwl.plot.partition(partition), [[0.5, 0.5]], ["z0"])
    >>> [text.get_text() for text in axes.texts]
    ['z0']
    >>> pyplot.close()
    """
    points = np.atleast_2d(np.asarray(anchors, dtype=np.float64))
    if points.ndim != 2 or points.shape[1] not in (1, 2):
        raise ValueError(
            f"Expected anchors of shape (k, 1) or (k, 2), got {points.shape}. "
            "Use the anchors of a slice built by Slice.through, or slice.project(latents)."
        )
    if labels is not None and len(labels) != len(points):
        raise ValueError(f"Expected {len(points)} labels, got {len(labels)}. Give one per anchor.")
    flat = points.shape[1] == 1
    transform = ax.get_xaxis_transform() if flat else ax.transData
    y = np.zeros(len(points)) if flat else points[:, 1]
    style = {"color": "#D55E00", "s": 60, "edgecolors": "white", "linewidths": 1.2, **style}
    ax.scatter(points[:, 0], y, zorder=5, transform=transform, clip_on=False, **style)
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    for k, text in enumerate(labels or ()):
        ax.annotate(
            text,
            (points[k, 0], y[k]),
            xycoords=transform,
            xytext=(6, 6),
            textcoords="offset points",
            zorder=6,
            path_effects=halo,
        )
    return ax
