"""Three-dimensional partitions as opaque cells: cut open, exploded, painted from back to front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from cpwl.arrays import Floats
from cpwl.descriptors import volumes
from cpwl.geometry import Plane, Polygons, solid_loops
from cpwl.partition import require_partition
from cpwl.plot import drawing
from cpwl.plot.painting import Painting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from mpl_toolkits.mplot3d.axes3d import Axes3D

    from cpwl.partition import Partition


VIEW = (24.0, -52.0)  # elevation and azimuth, degrees
TOWARDS_VIEWER = np.array([1.0, -1.0, 1.0])  # signs of the view's direction
_LIGHT = np.array([0.3, -0.63, 1.0])  # the third is 1: what lies flat has the scale's own colour
_GREY = (0.85, 0.85, 0.85, 1.0)


def cells3d(
    partition: Partition,
    values: str | ArrayLike | None = "psi",
    *,
    cut: str | Sequence[tuple[ArrayLike, float]] | None = "corner",
    explode: float = 0.15,
    ax: Axes | None = None,
    cmap: str = "viridis",
    limits: tuple[float, float] | None = None,
    label: str | None = None,
    colorbar: bool = True,
) -> Axes3D:
    """Draw the cells of a 3-D partition as solids: cut open, pulled apart, coloured by a value.

    Parameters
    ----------
    partition : Partition
        Three-dimensional.
    values : str or (C,) array_like, optional
        A name in `plot.LABELS`, or one number per cell; NaN stays grey. Without it all are grey.
    cut : "corner", sequence of (normal, offset), or None
        What to take away: everything that lies beyond all these planes together, that is, has
        ``normal @ s >= offset`` for each; "corner" is the octant around the middle that faces the
        viewer. The cells that the planes cross are cut exactly there.
    explode : float
        How far the cells are moved from the middle of the domain: by this multiple of their own
        distance from it. With 0 they stay where they are, and the axes show coordinates.
    ax : matplotlib Axes3D, optional
        A new one by default.
    cmap, limits, label, colorbar
        As for `plot.partition`.

    Returns
    -------
    matplotlib Axes3D
        It can be turned (``view_init``): which faces are seen, and in what order they are painted,
        is worked out again for every view.

    Raises
    ------
    ValueError
        A partition that is not three-dimensional, an unknown name, an array of the wrong length,
        planes that cannot be read or leave nothing, a negative `explode`, or flat axes.

    Notes
    -----
    Faces turned away from the viewer are left out, and those inside the solid too unless it is
    exploded. The others are painted cell by cell from back to front; that order is exact, since
    moving the cells of a subdivision apart keeps them on their sides of every cut. Half a second
    for 5,000 cells, some five for 40,000.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (3,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1, -1], [1, 1, 1]))
    >>> from matplotlib import pyplot
    >>> axes = cpwl.plot.cells3d(partition, "psi", explode=0)
    >>> axes.get_zlabel()
    '$s_2$'
    >>> pyplot.close()
    """
    require_space(partition)
    if not (np.isfinite(explode) and explode >= 0):
        raise ValueError(
            f"Expected explode as a number >= 0, got {explode}. "
            "0 leaves the cells in place; 0.15 moves each by that part of its way from the middle."
        )
    planes = read_cut(partition, cut)
    data, name = drawing.resolve(partition, values)
    if ax is None:
        ax = plt.figure(layout="constrained").add_subplot(projection="3d", computed_zorder=False)
    space = drawing.require_3d(ax)
    if data is None:
        colours = np.tile(_GREY, (partition.num_cells, 1))
    else:
        norm, extend = drawing.norm(data, volumes(partition), limits)
        shades = ScalarMappable(norm, cmap)
        colours = rgba(data, shades)
        if colorbar:
            drawing.colorbar(ax, shades, label or name, extend, pad=0.08)
    paint(space, partition, solid_loops.cells(partition), planes, colours, explode)
    frame(space, partition, explode)
    return space


def rgba(data: Floats, shades: ScalarMappable) -> Floats:
    """Return a colour for each value, grey for those that are not finite."""
    colours = np.tile(_GREY, (len(data), 1))
    finite = np.isfinite(data)
    colours[finite] = shades.to_rgba(data[finite])
    return colours


def read_cut(
    partition: Partition, cut: str | Sequence[tuple[ArrayLike, float]] | None
) -> list[Plane]:
    """Return the planes of a cut, or raise."""
    if cut is None:
        return []
    if isinstance(cut, str):
        if cut != "corner":
            raise ValueError(
                f"Expected a cut 'corner', None, or planes (normal, offset), got '{cut}'. "
                "For example cut=[((1, 0, 0), 0.5)] takes away all that has s[0] >= 0.5."
            )
        middle = partition.domain.corners.mean(axis=0)
        return [
            Plane(sign * axis, float(sign * axis @ middle))
            for sign, axis in zip(TOWARDS_VIEWER, np.eye(3), strict=True)
        ]
    planes = [_plane(entry) for entry in cut]
    if len(solid_loops.cut_open(solid_loops.hull(partition.domain), planes).cell) == 0:
        raise ValueError(
            "Expected a cut that leaves something of the domain, got one that takes all of it. "
            "It takes what has normal @ s >= offset for every plane; change an offset or a sign."
        )
    return planes


def _plane(entry: Any) -> Plane:
    """Read one (normal, offset)."""
    try:
        normal, offset = entry
        plane = Plane(np.asarray(normal, dtype=np.float64), float(offset))
    except (TypeError, ValueError):
        plane = Plane(np.zeros(3), 0.0)
    sound = plane.normal.shape == (3,) and plane.normal.any()
    if not (sound and np.isfinite(plane.normal).all() and np.isfinite(plane.offset)):
        raise ValueError(
            "Expected every plane of the cut as (normal, offset): three numbers, not all zero, and "
            f"one; got {entry}. For example cut=[((1, 0, 0), 0.5)]."
        )
    return plane


def paint(
    ax: Axes3D,
    partition: Partition,
    faces: Polygons,
    planes: Sequence[Plane],
    colours: Floats,
    explode: float = 0.0,
) -> Painting:
    """Add to the axes what the cut leaves of the cells, whose `faces` `solid_loops.cells` gives."""
    left = solid_loops.cut_open(faces, planes)
    inner = np.all(partition.facet_cells >= 0, axis=1)
    hidden = (left.facet >= 0) & inner[left.facet]
    if explode == 0:
        left, hidden = solid_loops.select(left, ~hidden), hidden[~hidden]
    shown = colours[left.cell]
    shown[:, :3] *= (_shade(partition, left) * np.where(hidden, 0.88, 1.0))[:, None]
    if explode == 0:
        edges = solid_loops.cut_open(solid_loops.hull(partition.domain), planes)
        painting = Painting(
            solid_loops.join([left, edges]), np.pad(shown, ((0, len(edges.cell)), (0, 0)))
        )
    else:
        middle = partition.domain.corners.mean(axis=0)
        shift = explode * (solid_loops.cell_middles(partition) - middle)[left.cell]
        moved = left.corners + np.repeat(shift, np.diff(left.offsets), axis=0)
        first = inner[faces.facet] & (partition.facet_cells[faces.facet, 0] == faces.cell)
        between = solid_loops.select(faces, first)
        # cells that moved apart are parted by planes where scaling all of space would put them
        between = between._replace(corners=middle + (1 + explode) * (between.corners - middle))
        pairs = partition.facet_cells[between.facet].astype(np.int64)
        painting = Painting(left._replace(corners=moved), shown, between, pairs)
    painting.set_rasterized(len(left.cell) > drawing.RASTER_ABOVE)
    ax.add_collection3d(painting, autolim=False)
    return painting


def frame(ax: Axes3D, partition: Partition, explode: float = 0.0) -> None:
    """Fit the axes to the cells; ticks only where coordinates are true."""
    corners = partition.domain.corners
    middle = corners.mean(axis=0)
    low, high = (
        middle + (1 + explode) * (end - middle) for end in (corners.min(0), corners.max(0))
    )
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    ax.set(xlabel="$s_0$", ylabel="$s_1$")
    ax.set_zlabel("$s_2$")
    ax.set_box_aspect(tuple(_aspect(partition)))
    ax.set_proj_type("persp", focal_length=1.6)
    ax.view_init(*VIEW)
    ax.grid(False)
    axes: list[Any] = [ax.xaxis, ax.yaxis, ax.zaxis]  # declared as flat axes' ones
    for axis in axes:
        axis.set_pane_color((1, 1, 1, 0))
        if explode == 0:
            axis.set_major_locator(MaxNLocator(4, prune="both"))
        else:
            axis.set_ticks([])
            axis.labelpad = -8  # no numbers to keep clear of


def _aspect(partition: Partition) -> Floats:
    """Return the sides of the box of axes: true proportions unless they would make a sliver."""
    extent = np.ptp(partition.domain.corners, axis=0)
    return extent / extent.max() if extent.max() < 3 * extent.min() else np.ones(3)


def _shade(partition: Partition, polygons: Polygons) -> Floats:
    """Return how bright each polygon is, from its inclination to the light."""
    scale = _aspect(partition) / np.ptp(partition.domain.corners, axis=0)
    normal = solid_loops.normals(polygons.offsets, polygons.corners * scale)
    length = np.linalg.norm(normal, axis=1)
    return 0.6 + 0.4 * np.clip(normal @ _LIGHT / np.where(length > 0, length, 1), 0, 1)


def require_space(partition: Partition) -> None:
    """Refuse a partition that has no solids to draw."""
    require_partition(partition)
    if partition.dim != 3:
        raise ValueError(
            f"Expected a partition of dimension 3, got {partition.dim}. Draw one or two dimensions "
            "with plot.partition; in more, subdivide a slice with three axes."
        )
