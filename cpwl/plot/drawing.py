"""Parts of a plot: colour scales, filled cells, knots, frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import Collection, PathCollection, PolyCollection
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.transforms import Bbox
from matplotlib.tri import Triangulation
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter

from cpwl.arrays import Floats, Ints, fans
from cpwl.descriptors import DESCRIPTORS, describe
from cpwl.partition import require_partition

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.colorbar import Colorbar
    from mpl_toolkits.mplot3d.axes3d import Axes3D

    from cpwl.partition import Partition


# descriptors that `values` may name, and what their colour bar says
LABELS = {name: entry.label for name, entry in DESCRIPTORS.items()}

# Okabe and Ito's palette without yellow, which is too light for lines
_OKABE_ITO = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
RASTER_ABOVE = 20_000  # cells; one polygon each in a vector file would be slow to open
_INK = 0.3  # share of any place in the picture from which on knots fade
_BINS, _BLUR = 64, 2.5  # along each side, and the bins over which one line is spread
_FAINTEST = 1 / 64  # opacity below which a line is left out
_THINNEST = 0.08  # points
_AXES_POINTS = 330.0  # side of a usual axes


def resolve(
    partition: Partition, values: str | ArrayLike | None
) -> tuple[Floats | None, str | None]:
    """Return one number per cell, and the name of what it is."""
    if values is None:
        return None, None
    if isinstance(values, str):
        found = describe(partition, [values])[values]
        return np.asarray(found, dtype=np.float64), LABELS[values]
    data = np.asarray(values, dtype=np.float64)
    if data.shape != (partition.num_cells,):
        raise ValueError(
            f"Expected one value per cell, shape ({partition.num_cells},), got {data.shape}. "
            "Compute them with a descriptor of this same partition."
        )
    return data, None


def axes(ax: Axes | None) -> Axes:
    """Return the given axes, or those of a new figure."""
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def require_flat(partition: Partition) -> None:
    """Refuse more dimensions than a flat picture has."""
    require_partition(partition)
    if partition.dim > 2:
        raise ValueError(
            f"Expected a partition of one or two dimensions, got {partition.dim}. "
            "Draw three with plot.cells3d or plot.sweep; in more, subdivide a slice."
        )


def require_3d(ax: Axes) -> Axes3D:
    """Return the axes, or refuse flat ones."""
    if getattr(ax, "name", "") != "3d":
        raise ValueError(
            "Expected three-dimensional axes, got flat ones. "
            "Make them with figure.add_subplot(projection='3d')."
        )
    return cast("Axes3D", ax)


def norm(
    data: Floats, weights: Floats, limits: tuple[float, float] | None
) -> tuple[Normalize, str]:
    """Return the colour scale, and at which ends it leaves values out."""
    finite = np.isfinite(data)
    if not finite.any():
        return Normalize(0, 1), "neither"
    shown = data[finite]
    if limits is None:
        order = np.argsort(shown)
        share = np.cumsum(weights[finite][order])
        ends = np.searchsorted(share, np.array([0.005, 0.995]) * share[-1])
        low, high = shown[order][np.minimum(ends, len(shown) - 1)]
    else:
        low, high = limits
    below, above = shown.min() < low, shown.max() > high
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max"}.get((below, above), "both")
    return Normalize(low, high), extend


def colorbar(
    ax: Axes, mappable: Any, label: str | None, extend: str, pad: float = 0.02
) -> Colorbar:
    """Add a colour bar beside the axes, never higher than they are."""
    figure = ax.get_figure(root=False)
    assert figure is not None  # axes always belong to a figure
    bar = figure.colorbar(mappable, ax=ax, extend=extend, pad=pad, shrink=0.85)
    place = bar.ax.get_axes_locator()
    assert place is not None  # a colour bar leaves room for its arrows by one

    def as_high_as_the_picture(of: Any, renderer: RendererBase) -> Bbox:
        """Move the bar from the place of the axes to what equal scales leave of them."""
        found, slot, picture = place(of, renderer), of.get_position(True), ax.get_position()
        scale = picture.height / slot.height
        low, high = (picture.y0 + scale * (y - slot.y0) for y in (found.y0, found.y1))
        return Bbox([[found.x0, low], [found.x1, high]])

    if ax.name != "3d":
        bar.ax.set_axes_locator(as_high_as_the_picture)
    if label:
        bar.set_label(label)
    return bar


def fill(ax: Axes, partition: Partition, data: Floats, cmap: str, norm: Normalize) -> Collection:
    """Colour the cells: polygons, or above the threshold triangles that are rasterised."""
    if partition.num_cells <= RASTER_ABOVE:
        outlines = loops(partition, partition.points)
        # a hair-line of its own colour hides the seam between a cell and the next
        cells = PolyCollection(outlines, cmap=cmap, norm=norm, edgecolors="face", linewidths=0.3)
        cells.set_array(np.ma.masked_invalid(data))
        ax.add_collection(cells)
        return cells
    # corners are doubled so that each has its cell's colour
    x, y = partition.points[partition.cell_corners].T
    mesh = Triangulation(x, y, fans(partition.cell_offsets)[0])
    colours = np.ma.masked_invalid(np.repeat(data, np.diff(partition.cell_offsets)))
    return ax.tripcolor(mesh, colours, shading="gouraud", cmap=cmap, norm=norm, rasterized=True)


def knots(ax: Axes, partition: Partition, coloured: bool, legend: bool | None) -> None:
    """Draw the facets that lie on knots, stage by stage."""
    unit = partition.facet_unit
    inner = np.flatnonzero(unit >= 0)
    # a partition loaded without its network does not know the stages
    bounds = [0] if partition.network is None else partition.network.stage_offsets[:-1]
    num_stages = len(bounds)
    stage = np.searchsorted(bounds, unit[inner], side="right") - 1
    ends = partition.points[partition.facet_points[inner]]
    corners = partition.domain.corners
    placed = (ends - corners.min(axis=0)) / np.ptp(corners, axis=0)  # in sides of the axes
    length = np.hypot(*(placed[:, 1] - placed[:, 0]).T)
    width = min(1.0, max(_THINNEST, 0.4 * _INK * _AXES_POINTS / max(float(length.sum()), 1e-9)))
    covered = np.zeros((_BINS, _BINS))
    handles = []
    for s in range(num_stages):
        mine = stage == s
        if not mine.any():
            continue
        # deeper knots are thinner: earlier ones are the longer lines that later ones bend at
        thickness = max(_THINNEST, width * (1.4 - 0.8 * s / max(1, num_stages - 1)))
        covered += _density(placed[mine], length[mine]) * thickness / _AXES_POINTS
        color = _OKABE_ITO[s % len(_OKABE_ITO)] if coloured else "0.05"
        dashed = "-" if s < len(_OKABE_ITO) or not coloured else "--"
        opacity = _INK / np.maximum(_at(covered, placed[mine].mean(axis=1)), _INK)
        halvings = np.round(-2 * np.log2(opacity)) / 2
        for step in np.unique(halvings[opacity >= _FAINTEST]):
            lines = PathCollection(
                _compound_paths(ends[mine][halvings == step]),
                facecolors="none",
                edgecolors=color,
                linewidths=thickness,
                linestyles=dashed,
                alpha=2.0**-step,
                rasterized=int(mine.sum()) > RASTER_ABOVE,
                zorder=2.5 - s / (10 * num_stages),
            )
            ax.add_collection(lines)
        handles.append(Line2D([], [], color=color, linestyle=dashed, label=f"stage {s}"))
    if legend or (legend is None and coloured and 2 <= len(handles) <= 8):
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), title="knots of")


def anchors(ax: Axes, partition: Partition) -> None:
    """Mark the latents that the slice was built through, as far as the domain holds them."""
    found = partition.domain.slice.anchors
    if found is None:
        return
    flat = partition.dim == 1
    ax.scatter(
        found[:, 0], np.zeros(len(found)) if flat else found[:, 1], s=16, color="white",
        edgecolors="black", linewidths=0.8, zorder=4,
        transform=ax.get_xaxis_transform() if flat else ax.transData,
    )  # fmt: skip


def _density(segments: Floats, length: Floats) -> Floats:
    """Return the length of segments (K, 2, 2) per area, about each bin of the unit square."""
    count = np.ceil(length * _BINS).astype(np.int64) + 1
    which = np.repeat(np.arange(len(count)), count)
    along = (np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + 0.5)[:, None]
    start, end = segments[which, 0], segments[which, 1]
    row, column = _bin(start + (end - start) * along / count[which, None])
    found = np.zeros((_BINS, _BINS))
    np.add.at(found, (row, column), (length / count)[which])
    return gaussian_filter(found, _BLUR, mode="nearest") * _BINS**2


def _at(bins: Floats, points: Floats) -> Floats:
    return bins[_bin(points)]


def _bin(points: Floats) -> tuple[Ints, Ints]:
    row, column = np.clip((points * _BINS).astype(np.int64), 0, _BINS - 1).T
    return row, column


def _compound_paths(segments: Floats, size: int = 2000) -> list[Path]:
    """Return segments (K, 2, 2) as a few paths: one object each would be slow for a million."""
    codes = np.tile(np.array([Path.MOVETO, Path.LINETO], dtype=Path.code_type), size)
    return [
        Path(chunk.reshape(-1, 2), codes[: 2 * len(chunk)])
        for chunk in (segments[k : k + size] for k in range(0, len(segments), size))
    ]


def steps(
    partition: Partition, data: Floats | None, label: str | None, ax: Axes, knots: bool
) -> Axes:
    """Draw one value per cell of a segment as a step curve, and the knots as lines."""
    low = partition.points[partition.cell_corners[partition.cell_offsets[:-1]], 0]
    order = np.argsort(low)
    lo, hi = partition.domain.corners[:, 0]
    dense = partition.num_cells > 400
    if knots and not dense:
        unit = partition.facet_unit
        where = partition.points[partition.facet_points[unit >= 0, 0], 0]
        width = min(0.8, 60 / partition.num_cells)
        for s in np.unique(where):
            ax.axvline(s, color="0.75", linewidth=width, zorder=0)
    if data is not None:
        edges = np.append(low[order], hi)
        ax.stairs(data[order], edges, baseline=None, color="#0072B2", linewidth=1.2)
        if label:
            ax.set_ylabel(label)
    else:
        ax.set_yticks([])
    ax.set(xlim=(lo, hi), xlabel="slice coordinate")
    anchors(ax, partition)
    return ax


def loops(partition: Partition, points: Floats) -> list[Floats]:
    """Return the corners of every cell, at these positions of the vertices."""
    return ragged(partition.cell_offsets, points[partition.cell_corners])


def ragged(offsets: Ints, corners: Floats) -> list[Floats]:
    """Cut an array into the ragged pieces that the offsets say."""
    return np.split(corners, offsets[1:-1])


def frame(ax: Axes, partition: Partition) -> None:
    """Fit the axes to the domain; equal scales unless that would make a strip of it."""
    low, high = partition.domain.corners.min(0), partition.domain.corners.max(0)
    ax.set_xlim(low[0], high[0])
    if partition.dim == 1:
        ax.set_xlabel("slice coordinate")
        return
    ax.set_ylim(low[1], high[1])
    width, height = high - low
    ax.set_aspect("equal" if 1 / 3 < width / height < 3 else "auto")
    ax.set(xlabel="$s_0$", ylabel="$s_1$")
