"""Level sets, boundaries between classes, and the regions that they enclose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import shapely
from matplotlib.collections import LineCollection
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from cpwl import decision
from cpwl.affine import num_outputs
from cpwl.plot import drawing, solids

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cpwl.partition import Partition


def decision_boundary(
    partition: Partition,
    i: int | None = None,
    j: int | None = None,
    *,
    value: float = 0.0,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draw where outputs i and j are equal, or where output i has a value, as `contour` gives it.

    Parameters
    ----------
    partition : Partition
        In one dimension the boundary is a set of points, drawn as vertical lines; in two it is
        lines, in three a surface.
    i, j : int, optional
        Indices into the flattened output. Without j: the level set of output i. Without both: that
        of the only output, as of a classifier with one logit or a signed distance, or of the
        difference of two.
    value : float
        The level; with i and j, of their difference.
    ax : matplotlib Axes, optional
        A new one by default; three-dimensional for a surface.
    **style
        Passed on to the lines or the surface: color, linewidth, linestyle, label, alpha, ...

    Raises
    ------
    ValueError
        As for `contour`; also flat axes for a surface.

    Notes
    -----
    matplotlib sorts every triangle of a surface by depth, some 10 s for 1e5. `write_mesh` writes
    larger ones for other viewers.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> from matplotlib import pyplot
    >>> axes = cpwl.plot.decision_boundary(partition, 0, 1)
    >>> [len(line) for line in axes.collections[0].get_segments()]
    [3]
    >>> pyplot.close()
    """
    if i is None and num_outputs(partition) == 2:
        i, j = 0, 1
    output: Any = i if j is None else (i, j)
    level = decision.contour(partition, output, value)
    name = f"output {i or 0}" + (f" - output {j}" if j is not None else "") + f" = {value:g}"
    if j is not None and value == 0:
        name = f"output {i} = output {j}"
    style = {"color": "#D55E00", "label": name, **style}
    if partition.dim == 3:
        return _surface(partition, level, ax, style)
    ax = drawing.axes(ax)
    style = {"linewidth": 1.8, **style}
    if partition.dim == 1:
        bottom_and_top = ax.get_xaxis_transform()  # x in slice coordinates, y across the axes
        lines = [[(s, 0), (s, 1)] for s in level.vertices[:, 0]]
        ax.add_collection(LineCollection(lines, transform=bottom_and_top, **style), autolim=False)
    else:
        lines = [level.vertices[line] for line in level.polylines]
        ax.add_collection(LineCollection(lines, **{"capstyle": "round", "zorder": 3, **style}))
    drawing.frame(ax, partition)
    return ax


def _surface(
    partition: Partition, level: decision.Contour, ax: Axes | None, style: dict[str, Any]
) -> Axes:
    """Draw triangles, shaded."""
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    if ax is None:
        ax = plt.figure(layout="constrained").add_subplot(projection="3d")
    space = drawing.require_3d(ax)
    color = style.pop("color")
    many = len(level.simplices) > drawing.RASTER_ABOVE
    style = {"facecolors": color, "linewidths": 0, "rasterized": many, "zsort": "average", **style}
    if len(level.simplices):
        faces = Poly3DCollection(level.vertices[level.simplices], shade=True, **style)
        space.add_collection3d(faces, autolim=False)
    solids.frame(space, partition)
    return space


def decision_regions(
    partition: Partition,
    decide: str = "argmax",
    *,
    labels: Sequence[str] | None = None,
    colors: Sequence[Any] | None = None,
    ax: Axes | None = None,
    legend: bool = True,
) -> Axes:
    """Draw which output wins where, with exact boundaries also inside the cells.

    Parameters
    ----------
    partition : Partition
        Two-dimensional. With a single output the regions are those of its sign.
    decide : {"argmax", "argmin"}
        Whether the largest or the smallest output wins.
    labels : sequence of str, optional
        One for each output, in order, for the legend; of a single output two, for where it is not
        positive and where it is.
    colors : sequence of colours, optional
        As many; by default equal steps of cividis.
    ax : matplotlib Axes, optional
        A new one by default.
    legend : bool
        Whether to list the outputs that win somewhere.

    Raises
    ------
    ValueError
        As for `cpwl.decision_regions`; also labels or colours of another number.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> from matplotlib import pyplot
    >>> axes = cpwl.plot.decision_regions(partition, labels=["right", "upper"])
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['right', 'upper']
    >>> pyplot.close()
    """
    regions = decision.decision_regions(partition, decide)
    names = [f"output {k}" for k in range(num_outputs(partition))]
    if len(names) == 1:
        names = ["output 0 ≤ 0", "output 0 > 0"]
    for given, what in ((labels, "labels"), (colors, "colors")):
        if given is not None and len(given) != len(names):
            raise ValueError(
                f"Expected {len(names)} {what}, one for each output, got {len(given)}. "
                "List them in the outputs' order."
            )
    ax = drawing.axes(ax)
    steps = plt.get_cmap("cividis")(np.linspace(0, 1, len(names))) if colors is None else colors
    for k in np.unique(regions.labels):
        outlines = Path.make_compound_path(*map(_outline, regions.polygons[regions.labels == k]))
        name = names[k] if labels is None else labels[k]
        # a hair-line of its own colour hides the seam to the next region
        style = {"facecolor": steps[k], "edgecolor": steps[k], "linewidth": 0.6}
        ax.add_patch(PathPatch(outlines, label=name, **style))
    drawing.frame(ax, partition)
    if legend:
        ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    return ax


def _outline(polygon: Any) -> Path:
    """Return a polygon's rings as one path: those of holes run the other way."""
    rings = shapely.get_rings(shapely.normalize(polygon))
    return Path.make_compound_path(
        *(Path(shapely.get_coordinates(ring), closed=True) for ring in rings)
    )
