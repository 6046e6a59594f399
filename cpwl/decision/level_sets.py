"""Level sets of an output, or of the difference of two: points, segments, triangles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Floats, Ints, Ragged, fans, next_corner, prefix, take_rows
from cpwl.decision.chains import chains
from cpwl.decision.vertex_values import heights
from cpwl.domain import Slice
from cpwl.geometry import solid_loops
from cpwl.partition import require_partition

if TYPE_CHECKING:
    from cpwl.partition import Partition


@dataclass(frozen=True, eq=False)
class Contour:
    """Where a function that is affine on every cell has a value.

    V vertices, K simplices, P = ``dim`` slice coordinates.

    Parameters
    ----------
    slice : Slice
        What carries slice coordinates into the latent space.
    vertices : (V, P) float64
        Slice coordinates. Neighbouring cells share them.
    simplices : (K, P) int64
        Points, segments or triangles, by their vertices. The function is larger on the left of a
        segment, and on the side of a triangle from which its vertices run anticlockwise.
    cells : (K,) int64
        The cell that a simplex cuts. Of a simplex in a facet, the cell where the function is
        larger, if it is larger on either side.
    flat : (n,) int64
        Cells on which the function has the value all over. Their sides towards other cells are
        among the simplices.
    tolerance : float
        A vertex of the partition whose value is closer to the level is on it: that much is
        rounding.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.contour(partition, (0, 1))
    Contour(2 segments, 3 vertices)
    """

    slice: Slice
    vertices: Floats
    simplices: Ints
    cells: Ints
    flat: Ints
    tolerance: float

    @property
    def dim(self) -> int:
        """The dimension P of the partition; that of the level set is P - 1."""
        return self.vertices.shape[1]

    @property
    def latents(self) -> Floats:
        """The vertices in the latent space, (V, *latent_shape)."""
        return self.slice.embed(self.vertices)

    @property
    def sizes(self) -> Floats:
        """Lengths of the segments, areas of the triangles, in slice coordinates; points count 1."""
        arms = np.diff(self.vertices[self.simplices], axis=1)
        if self.dim == 3:
            return np.linalg.norm(np.cross(arms[:, 0], arms[:, 1]), axis=1) / 2
        return np.linalg.norm(arms, axis=(1, 2)) if self.dim == 2 else np.ones(len(arms))

    @property
    def polylines(self) -> list[Ints]:
        """Segments strung together: vertices in order, of a closed one the first again at the end.

        One that is not closed ends on the domain's boundary, where more than two segments meet, or
        where the function has the value on one side only, as max(x, y) - y has the value 0.

        Raises
        ------
        ValueError
            Points or triangles.
        """
        if self.dim != 2:
            raise ValueError(
                f"Expected the contour of a 2-D partition for polylines, got that of a {self.dim}-D"
                " one. Its vertices and simplices are points or a triangle mesh."
            )
        found = chains(self.simplices)
        lines = np.split(found.nodes, found.offsets[1:-1]) if len(found.link) else []
        return [
            np.append(line, line[0]) if closed else line
            for line, closed in zip(lines, found.closed, strict=True)
        ]

    def __repr__(self) -> str:
        """Summarise: the arrays themselves are long."""
        kind = ("points", "segments", "triangles")[self.dim - 1]
        flat = f", {len(self.flat):,} flat cells" if len(self.flat) else ""
        return f"Contour({len(self.simplices):,} {kind}, {len(self.vertices):,} vertices{flat})"


def contour(
    partition: Partition, output: int | tuple[int, int] | None = None, value: float = 0.0
) -> Contour:
    """Return where an output, or the difference of two, has a value.

    The zero set of a signed distance field, the boundary of a classifier with one logit, or the
    boundary between two classes.

    Parameters
    ----------
    partition : Partition
        Of dimension 1 to 3, complete, with its network.
    output : int or (int, int), optional
        Index into the flattened output, or a pair (i, j) for output i less output j. May be left
        out where there is only one output, or for the difference of two.
    value : float
        The level.

    Returns
    -------
    Contour
        Points for P = 1, segments for P = 2, triangles for P = 3. Empty where the value is not
        taken. What is of smaller dimension is left out: a vertex where the function touches the
        level, for P = 3 also an edge.

    Raises
    ------
    ValueError
        A partition of dimension 4 or more or without its network, an output that does not exist,
        an output twice, none of several, or a value that is not finite.
    PartitionError
        An incomplete partition: the outputs are not affine on its cells.

    Notes
    -----
    A vertex of the partition is above the level, below it, or on it to rounding; this is decided
    once. An edge from above to below is cut once, where linear interpolation says. The rest is
    combinatorics: what is made in two neighbouring cells has the same vertices on their facet, so
    that the level set is without gaps, and ends only on the domain's boundary and where the
    function does not change sign. Where the level runs along facets, the facets are taken, each
    once. Cost: one forward pass at the vertices.

    Examples
    --------
    The distance from a square's border, negative inside:

    >>> import cpwl, torch
    >>> class Square(torch.nn.Module):
    ...     def forward(self, z):
    ...         return z.abs().amax(dim=1, keepdim=True) - 0.5
    >>> network = cpwl.Network.from_torch(Square(), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> border = cpwl.contour(partition)
    >>> border.sizes.sum().item(), len(border.polylines)
    (4.0, 1)
    """
    require_partition(partition)
    if partition.dim > 3:
        raise ValueError(
            f"Expected a partition of dimension 1, 2 or 3, got {partition.dim}. Subdivide a slice "
            "of the domain: cpwl.Slice.through(z0, z1, z2)."
        )
    height, tolerance = heights(partition, output, value)
    crossed = _cross(partition, height, tolerance)
    parts = {1: _points, 2: _segments, 3: _triangles}[partition.dim](partition, crossed)
    simplices = np.concatenate([part.simplices for part in parts])
    used, index = np.unique(simplices, return_inverse=True)
    return Contour(
        partition.domain.slice,
        np.concatenate([partition.points, crossed.points])[used],
        index.reshape(-1, partition.dim).astype(np.int64),
        np.concatenate([part.cells for part in parts]).astype(np.int64),
        np.flatnonzero(crossed.flat),
        tolerance,
    )


class _Part(NamedTuple):
    """Simplices, by numbers of nodes, and their cells."""

    simplices: Ints
    cells: Ints


class _Polygons(NamedTuple):
    """Polygons by their nodes, as ragged rows, and their cells."""

    offsets: Ints
    nodes: Ints
    cells: Ints


class _Crossed(NamedTuple):
    """A partition with its vertices above the level, on it or below.

    Nodes are the vertices of the partition, then the points where edges cross the level.
    """

    height: Floats  # (V,) 0 on the level
    points: Floats  # (n, P) where edges cross the level
    node: Ints  # (E,) of an edge from above the level to below it or on it; -1 of others
    mixed: NDArray[np.bool_]  # (C,) cells with vertices above and below
    flat: NDArray[np.bool_]  # (C,) cells on the level
    facets: Ints  # (m,) facets on the level, beside a cell that is not
    beside: Ints  # (m,) a cell beside each
    above: NDArray[np.bool_]  # (m,) whether that cell is above


def _cross(partition: Partition, height: Floats, tolerance: float) -> _Crossed:
    """Decide where vertices are, and cut the edges from above to below."""
    height = np.where(np.abs(height) <= tolerance, 0.0, height)
    ends = partition.edges.astype(np.int64)
    above = height > 0
    low = np.where(above[ends[:, 0]], ends[:, 1], ends[:, 0])
    node = np.where(above[ends[:, 0]] != above[ends[:, 1]], low, -1)
    cut = np.flatnonzero((node >= 0) & (height[low] < 0))
    node[cut] = len(height) + np.arange(len(cut))
    a, b = ends[cut].T
    t = (height[a] / (height[a] - height[b]))[:, None]
    points = (1 - t) * partition.points[a] + t * partition.points[b]

    sign = np.sign(height)
    corners, starts = sign[partition.cell_corners], partition.cell_offsets[:-1]
    # one row more, for what is outside of the domain: facet_cells has -1 there
    high = np.append(np.maximum.reduceat(corners, starts), 1)
    low = np.append(np.minimum.reduceat(corners, starts), 1)
    mixed, flat = (high > 0) & (low < 0), (high == 0) & (low == 0)
    on_level = sign[partition.facet_corners] == 0
    facets = np.flatnonzero(np.logical_and.reduceat(on_level, partition.facet_offsets[:-1]))
    beside = partition.facet_cells[facets].astype(np.int64)
    upper, lower = (high > 0) & (low == 0), (high == 0) & (low < 0)
    # beside a mixed cell, which ends at its vertices on the level, as the cells above do
    taken = upper[beside].any(axis=1) | (lower[beside].any(axis=1) & ~mixed[beside].any(axis=1))
    facets, beside = facets[taken], beside[taken]
    is_above = upper[beside].any(axis=1)
    first = np.where(is_above, upper[beside[:, 0]], lower[beside[:, 0]])
    return _Crossed(
        height, points, node, mixed[:-1], flat[:-1], facets,
        np.where(first, beside[:, 0], beside[:, 1]), is_above,
    )  # fmt: skip


def _points(partition: Partition, crossed: _Crossed) -> list[_Part]:
    """Return the points of a level set on an interval."""
    cells = np.flatnonzero(crossed.mixed)
    vertices = partition.facet_corners[crossed.facets].astype(np.int64)
    return [_Part(crossed.node[cells, None], cells), _Part(vertices[:, None], crossed.beside)]


def _segments(partition: Partition, crossed: _Crossed) -> list[_Part]:
    """Return the segments of a level set in the plane."""
    cell = np.repeat(np.arange(partition.num_cells), np.diff(partition.cell_offsets))
    node = crossed.node[partition.cell_facets]
    at = np.flatnonzero(crossed.mixed[cell] & (node >= 0))
    # around a cell the level is crossed downwards and upwards in turns: first a cell's pairs of a
    # way down and the next one up, which for the last way down may be the first of all
    down = crossed.height[partition.cell_corners[at]] > 0
    leaves, enters = at[down], at[~down]
    begins = prefix(np.bincount(cell[leaves], minlength=partition.num_cells))
    rank = np.arange(len(leaves)) - begins[cell[leaves]]
    late = enters[begins[cell[leaves]]] < leaves[begins[cell[leaves]]]
    count = np.diff(begins)[cell[leaves]]
    enters = enters[begins[cell[leaves]] + (rank + late) % np.maximum(count, 1)]
    across = np.stack([node[leaves], node[enters]], axis=1)
    proper = across[:, 0] != across[:, 1]
    along = partition.facet_points[crossed.facets].astype(np.int64)
    on_left = partition.facet_cells[crossed.facets, 0] == crossed.beside
    along = np.where((on_left == crossed.above)[:, None], along, along[:, ::-1])
    return [_Part(across[proper], cell[leaves][proper]), _Part(along, crossed.beside)]


def _triangles(partition: Partition, crossed: _Crossed) -> list[_Part]:
    """Return the triangles of a level set in space."""
    return [_fan(_across(partition, crossed)), _fan(_along(partition, crossed))]


def _across(partition: Partition, crossed: _Crossed) -> _Polygons:
    """Return the polygons in which the level cuts cells."""
    offsets, items = partition.skeleton[1]
    owner = np.repeat(np.arange(partition.num_facets), np.diff(offsets))
    cells = np.append(crossed.mixed, False)[partition.facet_cells]  # (F, 2)
    at = (crossed.node[items] >= 0) & cells[owner].any(axis=1)
    # around a facet the level is crossed an even number of times
    links, facet = items[at].reshape(-1, 2).astype(np.int64), owner[at][::2]
    side, link = np.nonzero(cells[facet].T)
    cell = partition.facet_cells[facet[link], side].astype(np.int64)
    size = len(crossed.node)
    loops = chains(cell[:, None] * size + links[link])
    cell, edge = cell[loops.link], loops.nodes % size
    _orient(loops.offsets, edge, cell, partition, crossed)
    node = crossed.node[edge]
    # several edges from one vertex on the level cross it there
    row = np.repeat(np.arange(len(cell)), np.diff(loops.offsets))
    kept = node != node[next_corner(loops.offsets)]
    sizes = np.bincount(row[kept], minlength=len(cell))
    whole = sizes > 2
    return _Polygons(prefix(sizes[whole]), node[kept & whole[row]], cell[whole])


def _orient(offsets: Ints, edge: Ints, cell: Ints, partition: Partition, crossed: _Crossed) -> None:
    """Turn polygons, given by the edges that they cross, anticlockwise seen from above the level.

    Every level between the highest vertex that is not above and the lowest one that is crosses the
    same edges: the middle one is farthest from being a point.
    """
    row = np.repeat(np.arange(len(cell)), np.diff(offsets))
    a, b = partition.edges[edge].T
    height = crossed.height
    low, high = np.minimum(height[a], height[b]), np.maximum(height[a], height[b])
    top, bottom = np.full(len(cell), np.inf), np.full(len(cell), -np.inf)
    np.minimum.at(top, row, high)
    np.maximum.at(bottom, row, low)
    t = ((top + bottom)[row] / 2 - height[a]) / (height[b] - height[a])
    points, arm = partition.points, partition.points[b] - partition.points[a]
    normal = solid_loops.normals(offsets, points[a] + t[:, None] * arm)
    upwards = np.zeros((len(cell), 3))
    np.add.at(upwards, row, arm * np.sign(height[b] - height[a])[:, None])
    _turn(offsets, edge, np.einsum("fi,fi->f", normal, upwards) < 0)


def _along(partition: Partition, crossed: _Crossed) -> _Polygons:
    """Return the facets on the level."""
    sizes, edges = take_rows(partition.skeleton[1], crossed.facets)
    facet = np.repeat(np.arange(len(sizes)), sizes)
    size = len(crossed.height)
    loops = chains(facet[:, None] * size + partition.edges[edges].astype(np.int64))
    facet, vertex = facet[loops.link], loops.nodes % size
    cell = crossed.beside[facet]
    normal = solid_loops.normals(loops.offsets, partition.points[vertex])
    sizes, corners = take_rows(Ragged(partition.cell_offsets, partition.cell_corners), cell)
    middle = solid_loops.middles(prefix(sizes), partition.points[corners])
    upwards = middle - solid_loops.middles(loops.offsets, partition.points[vertex])
    inwards = np.einsum("fi,fi->f", normal, upwards) > 0
    _turn(loops.offsets, vertex, inwards != crossed.above[facet])
    return _Polygons(loops.offsets, vertex, cell)


def _turn(offsets: Ints, items: Ints, turned: NDArray[np.bool_]) -> None:
    """Reverse some of the rows, in place."""
    row = np.repeat(np.arange(len(turned)), np.diff(offsets))
    step = np.arange(len(items)) - offsets[row]
    mirrored = offsets[row + 1] - 1 - step
    items[:] = items[np.where(turned[row], mirrored, offsets[row] + step)]


def _fan(polygons: _Polygons) -> _Part:
    """Cut polygons into triangles."""
    corners, polygon = fans(polygons.offsets)
    return _Part(polygons.nodes[corners], polygons.cells[polygon])
