"""Opaque solids in matplotlib's 3-D axes, painted in an exact order."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.path import Path
from mpl_toolkits.mplot3d import proj3d
from numpy.typing import NDArray

from cpwl.arrays import Floats, Ints, next_corner, prefix
from cpwl.geometry import Polygons

if TYPE_CHECKING:
    from mpl_toolkits.mplot3d.axes3d import Axes3D


DARKER = np.array([0.45, 0.45, 0.45, 1.0])  # a cell's edges, by its own colour
_EDGE, _OUTLINE, _SEAM = 0.35, 0.9, 0.3  # points
_CLEAR = np.zeros(4)
_INK = np.array([0.1, 0.1, 0.1, 1.0])


class Painting(PolyCollection):
    """Faces of cells, and outlines without a filling, that know which of them hide which.

    Parameters
    ----------
    polygons : Polygons
        Those turned away from the viewer are left out.
    colours : (K, 4) float64
        With alpha 0 a polygon is outlined and not filled.
    between, pairs : Polygons and (n, 2) int64, optional
        For pairs of cells a polygon on a plane that parts them, seen from outside the first: the
        second hides the first or the other way round, by the side that the viewer is on. Without
        them the cells are those of one convex solid, of which only the surface is given.
    """

    def __init__(
        self,
        polygons: Polygons,
        colours: Floats,
        between: Polygons | None = None,
        pairs: Ints | None = None,
    ) -> None:
        super().__init__([], closed=True)
        self.polygons, self.colours = polygons, colours
        self._between, self._pairs = between, pairs
        self.painted = np.zeros(0, np.int64)

    def do_3d_projection(self) -> float:
        """Project and sort for the current view (the axes ask for it before they draw)."""
        polygons = self.polygons
        points = self._project(polygons.corners)
        rank = np.zeros(1 + polygons.cell.max(initial=0), np.int64)
        if self._between is not None and self._pairs is not None:
            first, second = self._pairs.T
            # the viewer sees the plane from outside the first cell: the second is in front of it
            towards = _areas(self._between.offsets, self._project(self._between.corners)) > 0
            pair = np.where(towards, first, second), np.where(towards, second, first)
            rank = back_to_front(*pair, max(len(rank), 1 + int(self._pairs.max(initial=0))))
        facing = _areas(polygons.offsets, points) > 0
        seen = np.flatnonzero(facing)
        wall, outline = polygons.facet < 0, self.colours[:, 3] == 0
        # what is left may reach in front of a wall but not behind it; it does not where all walls
        # are seen, and then their outlines come last
        above = bool(facing[wall].all())
        layer = np.where(outline, np.where(wall & ~above, 1, 3), np.where(wall, 0, 2))[seen]
        self.painted = seen[np.lexsort((layer, rank[polygons.cell[seen]]))]
        self._set_paths(points)
        return float(points[:, 2].min(initial=np.inf))

    def _project(self, corners: Floats) -> Floats:
        """Return positions on the canvas, and depths."""
        axes = cast("Axes3D", self.axes)
        x, y, z = corners.T
        return np.stack(proj3d.proj_transform(x, y, z, axes.M), axis=1)

    def _set_paths(self, points: Floats) -> None:
        """Lay out the polygons that are seen, in order."""
        offsets, stroked = self.polygons.offsets, self.polygons.stroked
        paths, codes, fills, lines, widths = [], [], [], [], []
        for k in self.painted.tolist():
            start, stop = offsets[k], offsets[k + 1]
            paths.append(np.concatenate([points[start:stop, :2], points[start : start + 1, :2]]))
            own, whole = self.colours[k], bool(stroked[start:stop].all())
            line, width = (own * DARKER, _EDGE) if own[3] else (_INK, _OUTLINE)
            codes.append(_loop(stroked[start:stop], closed=whole or own[3] > 0))
            fills.append(own)
            # a hair-line of its own colour hides the seam to the next piece of the same face
            lines.append(line if whole or not own[3] else own)
            widths.append(width if whole or not own[3] else _SEAM)
            if own[3] and not whole:  # and the sides that are edges are drawn by themselves
                paths.append(paths[-1])
                codes.append(_loop(stroked[start:stop], closed=False))
                fills.append(_CLEAR)
                lines.append(line)
                widths.append(width)
        self.set_verts_and_codes(paths, codes)
        self.set(facecolor=fills, edgecolor=lines, linewidth=widths)


def _loop(stroked: NDArray[np.bool_], closed: bool) -> NDArray[np.uint8]:
    """Return the path codes of a loop: all around, or only the sides that are stroked."""
    codes = np.full(len(stroked) + 1, Path.LINETO, Path.code_type)
    codes[0] = Path.MOVETO
    if closed:
        codes[-1] = Path.CLOSEPOLY
    else:
        codes[1:][~stroked] = Path.MOVETO
    return codes


def _areas(offsets: Ints, points: Floats) -> Floats:
    """Return twice the signed areas of projected polygons: positive if anticlockwise."""
    x, y = (points[:, :2] - np.repeat(points[offsets[:-1], :2], np.diff(offsets), axis=0)).T
    following = next_corner(offsets)
    return np.add.reduceat(x * y[following] - x[following] * y, offsets[:-1])


def back_to_front(behind: Ints, front: Ints, count: int) -> Ints:
    """Rank cells so that each comes after all that it may hide.

    Parameters
    ----------
    behind, front : (n,) int64
        Pairs of neighbours, the second on the viewer's side of their common facet.
    count : int
        The number of cells.

    Returns
    -------
    (count,) int64
        The cells of one rank hide nothing of each other.

    Notes
    -----
    A ray to the viewer passes through cells that are neighbours one by one, so pairs of neighbours
    suffice. They do not run in a circle, since the cells come from cutting one solid again and
    again; where rounding makes a tiny facet say otherwise, the circle is broken somewhere.
    """
    rank = np.full(count, -1)
    order = np.argsort(behind, kind="stable")
    starts = np.searchsorted(behind[order], np.arange(count + 1))
    waiting = np.bincount(front, minlength=count)
    level = 0
    while (rank < 0).any():
        left = np.flatnonzero(rank < 0)
        ready = left[waiting[left] <= 0]
        if len(ready) == 0:
            ready = left[[np.argmin(waiting[left])]]
        rank[ready] = level
        level += 1
        sizes = starts[ready + 1] - starts[ready]
        shift = np.repeat(starts[ready] - prefix(sizes)[:-1], sizes)
        waiting -= np.bincount(front[order[np.arange(sizes.sum()) + shift]], minlength=count)
    return rank
