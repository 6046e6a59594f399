"""A plane that sweeps through a 3-D partition, as an animated GIF."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely
from matplotlib.animation import PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from tqdm import tqdm

from cpwl.arrays import Floats
from cpwl.descriptors import volumes
from cpwl.domain import Domain, Slice
from cpwl.dual import locate
from cpwl.engine import subdivide
from cpwl.files import atomic_path
from cpwl.geometry import solid_loops
from cpwl.partition import Partition, require_network
from cpwl.plot import drawing, solids
from cpwl.plot.painting import DARKER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from mpl_toolkits.mplot3d.axes3d import Axes3D


def sweep(
    partition: Partition,
    path: str | os.PathLike[str],
    axis: int = 2,
    *,
    values: str | ArrayLike = "psi",
    frames: int = 48,
    fps: int = 12,
    cmap: str = "viridis",
    limits: tuple[float, float] | None = None,
    label: str | None = None,
    progress: bool = True,
) -> None:
    """Write an animation of a plane sweeping through a 3-D partition.

    On the left the partition, cut open at the plane; on the right the plane itself, subdivided
    anew in every frame by `cpwl.subdivide` on the slice. A cell of the slice has the colour of the
    cell of the partition that it is cut from.

    Parameters
    ----------
    partition : Partition
        Three-dimensional, with its network.
    path : str or path
        A .gif file; written whole or not at all, also when interrupted.
    axis : 0, 1 or 2
        The slice coordinate that the plane moves along.
    values : str or (C,) array_like
        A name in `plot.LABELS`, or one number per cell of the partition.
    frames : int
        How many positions, evenly spread between the ends of the domain and not on them.
    fps : int
        Frames a second.
    cmap, limits, label
        As for `plot.partition`.
    progress : bool
        Show a progress bar over the frames on standard error.

    Raises
    ------
    ValueError
        A partition that is not three-dimensional or has no network, another axis, no frames, a
        path that does not end in .gif, an unknown name, or an array of the wrong length.

    Notes
    -----
    About a third of a second a frame for 1,000 cells.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (3,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1, -1], [1, 1, 1]))
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "cube.gif")
    ...     cpwl.plot.sweep(partition, path, frames=1)
    ...     print(path.is_file())
    True
    """
    solids.require_space(partition)
    network = require_network(partition)
    if axis not in (0, 1, 2):
        raise ValueError(
            f"Expected axis 0, 1 or 2, got {axis}. It is the slice coordinate that the plane "
            "moves along."
        )
    if frames < 1 or fps < 1:
        raise ValueError(
            f"Expected at least one frame and one a second, got frames={frames} and fps={fps}. "
            "48 frames at 12 a second take four seconds."
        )
    if Path(path).suffix != ".gif":
        raise ValueError(f"Expected a path ending in .gif, got '{path}'. Only GIF is written.")
    data, name = drawing.resolve(partition, values)
    assert data is not None  # there are values
    norm, extend = drawing.norm(data, volumes(partition), limits)
    shades = ScalarMappable(norm, cmap)
    colours = solids.rgba(data, shades)
    faces = solid_loops.cells(partition)

    figure, space, flat = _canvas(partition, axis)
    bar = figure.add_axes((0.9, 0.16, 0.018, 0.7))
    figure.colorbar(shades, cax=bar, extend=extend, label=label or name)
    low, high = partition.domain.corners.min(0)[axis], partition.domain.corners.max(0)[axis]
    places = low + (high - low) * (np.arange(frames) + 0.5) / frames
    writer = PillowWriter(fps=fps)
    with atomic_path(path) as part, writer.saving(figure, part, dpi=100):
        for place in tqdm(places.tolist(), desc="sweep", unit="frame", disable=not progress):
            sign = float(solids.TOWARDS_VIEWER[axis])
            beyond = solid_loops.Plane(sign * np.eye(3)[axis], sign * place)
            made = subdivide(network, cross_section(partition.domain, axis, place), progress=False)
            drawn = [
                solids.paint(space, partition, faces, [beyond], colours),
                flat.add_collection(_flat_cells(partition, made, axis, place, colours)),
            ]
            flat.set_title(f"$s_{axis}$ = {place:.2f}: {made.num_cells:,} cells", fontsize=11)
            writer.grab_frame()
            for artist in drawn:
                artist.remove()


def cross_section(domain: Domain, axis: int, place: float) -> Domain:
    """Return the part of a 3-D domain where one slice coordinate has this value, as a 2-D domain.

    Its slice coordinates are the other two, in their order.
    """
    wall = solid_loops.section(solid_loops.hull(domain), solid_loops.Plane(np.eye(3)[axis], place))
    across = [k for k in range(3) if k != axis]
    # rounded corners may bulge inwards by an ulp, which a domain refuses
    hull = shapely.convex_hull(shapely.multipoints(wall.corners[:, across]))
    basis = domain.slice.basis
    return Slice(domain.slice.origin + place * basis[axis], basis[across]).polygon(
        shapely.get_coordinates(hull)[:-1]
    )


def _canvas(partition: Partition, axis: int) -> tuple[Figure, Axes3D, Axes]:
    """Return a figure with axes for the solid and for the plane."""
    figure = Figure(figsize=(8.8, 4.0))
    FigureCanvasAgg(figure)
    solid = figure.add_axes((0.0, 0.02, 0.45, 0.98), projection="3d", computed_zorder=False)
    space = drawing.require_3d(solid)
    solids.frame(space, partition)
    space.tick_params(labelsize=8, pad=0)
    space.zaxis.labelpad = -3
    flat = figure.add_axes((0.575, 0.16, 0.305, 0.7))
    u, v = (k for k in range(3) if k != axis)
    low, high = partition.domain.corners.min(0), partition.domain.corners.max(0)
    flat.set(xlim=(low[u], high[u]), ylim=(low[v], high[v]))
    flat.set(xlabel=f"$s_{u}$", ylabel=f"$s_{v}$")
    for line in (flat.xaxis, flat.yaxis):
        line.set_major_locator(MaxNLocator(4))
    return figure, space, flat


def _flat_cells(
    partition: Partition, made: Partition, axis: int, place: float, colours: Floats
) -> PolyCollection:
    """Return the cells of the plane in the colours of the solids that they are cut from."""
    middles = solid_loops.middles(made.cell_offsets, made.points[made.cell_corners])
    cell = locate(partition, np.insert(middles, axis, place, axis=1))
    return PolyCollection(
        drawing.loops(made, made.points),
        facecolors=colours[cell],
        edgecolors=colours[cell] * DARKER,
        linewidths=0.35,
    )
