"""The cell that holds a point: found by its pattern, in an R-tree, or by walking."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from cpwl.arrays import Floats, Ints, kernel, magnitude, require_at_least
from cpwl.dual.graph import hash_columns
from cpwl.geometry import half_spaces, levels, measures, normals, polygons
from cpwl.partition import require_partition

if TYPE_CHECKING:
    from cpwl.domain import Domain
    from cpwl.network import Network
    from cpwl.partition import Partition


_BYTES = 64 * 2**20


def locate(partition: Partition, points: ArrayLike, *, tolerance: float = 1e-12) -> Ints:
    """Return the cell that holds each point.

    Parameters
    ----------
    partition : Partition
        Without its network it is searched geometrically.
    points : (n, P) array_like
        Slice coordinates.
    tolerance : float
        Points outside the domain by at most this share of its extent count as on its boundary.

    Returns
    -------
    (n,) int64 ndarray
        -1 outside the domain. A point on a knot gets one of the cells that touch there.

    Raises
    ------
    ValueError
        Points of another shape, or not finite.

    Notes
    -----
    One evaluation of the network gives a point's activation pattern, which is looked up among
    those of the cells; only points that lie on a knot within rounding are searched by position: in
    an R-tree, for P >= 3 by walking from the cell whose centroid is nearest.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.locate(partition, [[0.5, 0.5], [-0.5, 0.5], [3, 3]]).tolist()
    [2, 3, -1]
    """
    require_at_least(0, tolerance, "tolerance", "Leave it out.")
    require_partition(partition)
    if isinstance(points, torch.Tensor):  # of a graph, or of another device
        points = points.detach().cpu().numpy()
    s = np.asarray(points, dtype=np.float64)
    if s.ndim != 2 or s.shape[1] != partition.dim or not np.isfinite(s).all():
        what = f"shape {s.shape}" if s.ndim != 2 or s.shape[1] != partition.dim else "NaN or inf"
        raise ValueError(
            f"Expected finite points of shape (n, {partition.dim}) in slice coordinates, got "
            f"{what}. Use partition.domain.slice.project for latents."
        )
    result = np.full(len(s), -1)
    inside = np.flatnonzero(_inside(partition.domain, s, tolerance))
    if partition.network is not None:
        result[inside] = _by_pattern(partition, partition.network, s[inside])
        inside = inside[result[inside] < 0]
    if len(inside):
        result[inside] = _by_position(partition, s[inside])
    return result


def _inside(domain: Domain, s: Floats, tolerance: float) -> NDArray[np.bool_]:
    """Return which points lie in the domain, its boundary included."""
    corners = domain.corners
    slack = tolerance * float(np.abs(corners).max() + np.ptp(corners, axis=0).max())
    outward, offsets = half_spaces(domain)
    outside = s @ outward.T > offsets + slack
    return ~np.any(outside, axis=1)


def _by_pattern(partition: Partition, network: Network, s: Floats) -> Ints:
    """Return the cell whose pattern each point has, -1 where there is none."""
    keys = hash_columns(partition.patterns)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    result = np.full(len(s), -1)
    bits = len(partition.bit_unit)
    sample = (
        8 * network.num_units
        + 4 * bits
        + max(map(network.bytes_per_sample, range(network.num_stages)), default=0)
    )
    rows = int(max(1, min(1 << 14, _BYTES // (sample + 1))))
    for start in range(0, len(s), rows):
        patterns = _patterns_at(partition, network, s[start : start + rows])
        place = np.minimum(np.searchsorted(keys, hash_columns(patterns)), len(keys) - 1)
        cells = order[place]
        # equal hashes of different patterns are left to the search by position
        found = (partition.patterns[cells] == patterns).all(axis=1)
        result[start : start + rows][found] = cells[found]
    return result


def _patterns_at(partition: Partition, network: Network, s: Floats) -> NDArray[np.uint64]:
    """Return the packed patterns (n, W) at points, in the partition's own bits."""
    z = torch.from_numpy(np.ascontiguousarray(partition.domain.slice.embed(s)))
    bit_unit, base = partition.bit_unit, partition.unit_base
    pieces = network.pieces(z).numpy()
    used = np.flatnonzero(bit_unit >= 0)
    units = bit_unit[used]
    # the bits of a unit are consecutive; bit r is set where more than r breakpoints lie below
    varying, first_bit, inverse = np.unique(units, return_index=True, return_inverse=True)
    steps = pieces[:, varying] - base[varying]
    # a half that lost its tournament has no bits, whatever its units do
    column = np.full(len(base), -1)
    column[varying] = np.arange(len(varying))
    contests = network.contests[column[network.contests[:, 2]] >= 0]
    row, contest = np.nonzero(pieces[:, contests[:, 0]] == contests[:, 1])
    steps[row, column[contests[contest, 2]]] = 0
    bits = np.zeros((len(s), len(bit_unit)), bool)
    bits[:, used] = steps[:, inverse] > np.arange(len(units)) - first_bit[inverse]
    packed = np.packbits(bits, axis=1, bitorder="little")
    return packed.view("<u8").astype(np.uint64, copy=False)


def _by_position(partition: Partition, s: Floats) -> Ints:
    """Return a cell that touches each point (the lowest for P = 2), or the nearest one."""
    if partition.dim > 2:
        return walk(partition, s)
    if partition.dim == 1:
        starts = partition.points[partition.cell_corners[partition.cell_offsets[:-1]], 0]
        order = np.argsort(starts)
        return order[np.maximum(np.searchsorted(starts[order], s[:, 0], side="right") - 1, 0)]
    tree = shapely.STRtree(polygons(partition))
    where = np.array(shapely.points(s))  # an array also for a single point
    result = np.full(len(s), partition.num_cells)
    point, cell = tree.query(where, predicate="intersects")
    np.minimum.at(result, point, cell)
    between = np.flatnonzero(result == partition.num_cells)  # rounding left it in no polygon
    result[between] = tree.nearest(where[between])
    return result


def walk(partition: Partition, s: Floats) -> Ints:
    """Return a cell that touches each of the points (n, P) of the domain, P >= 3.

    From the nearest centroid along the straight line to the point, from cell to cell across the
    facet through which the line leaves. Cost: one measurement of all facets, then about as many
    cells for each point as lie between.
    """
    exponent = magnitude(partition.points)  # so that no volume overflows
    s = np.ldexp(s, -exponent)
    *_, facets, cells = measures(np.ldexp(partition.points, -exponent), levels(partition))
    outward = normals(facets.minors)
    first, second = partition.facet_cells.T
    # from centre to centre: seen from a cell thinner than rounding alone, no side would be certain
    ahead = np.where(second[:, None] < 0, facets.centroid, cells.centroid[second])
    outward[np.einsum("fp,fp->f", outward, ahead - cells.centroid[first]) < 0] *= -1
    _, nearest = KDTree(cells.centroid).query(s)
    found = np.asarray(nearest, np.int64)
    _walk(
        s, cells.centroid, facets.centroid, outward, partition.cell_facet_offsets,
        partition.cell_facets, partition.facet_cells, found,
    )  # fmt: skip
    return found


@kernel
def _walk(s, middle, on_facet, outward, offsets, facets, facet_cells, found):
    """Replace a first guess of every point's cell; normals point away from a facet's first cell."""
    dim = s.shape[1]
    for i in range(len(s)):
        cell = found[i]
        origin = middle[cell]
        furthest = 0.0
        for _ in range(len(middle)):
            leave, across = np.inf, -1
            for j in range(offsets[cell], offsets[cell + 1]):
                facet = facets[j]
                turn = 1.0 if facet_cells[facet, 0] == cell else -1.0
                rate, distance = 0.0, 0.0
                for axis in range(dim):
                    rate += turn * outward[facet, axis] * (s[i, axis] - origin[axis])
                    distance += turn * outward[facet, axis] * (on_facet[facet, axis] - origin[axis])
                if rate > 0 and distance < leave * rate:
                    leave, across = distance / rate, facet
            if leave > furthest:
                furthest, found[i] = leave, cell
            if leave >= 1:
                break
            cell = facet_cells[across, 0] + facet_cells[across, 1] - cell
            if cell < 0:  # out of the domain by rounding
                break
