"""The dual of a partition: which cells touch, which carry one map, which holds a point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
import shapely
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cpwl.affine import columns_and_offsets, num_outputs
from cpwl.dual.walking import walk
from cpwl.export import polygons
from cpwl.geometry.measure import half_spaces

if TYPE_CHECKING:
    from cpwl.domain.domain import Domain
    from cpwl.network.network import Network
    from cpwl.partition import Partition

Array = NDArray[np.float64]

# With more outputs than this, jumps are measured in as many random projections of the outputs:
# all of them lose a jump by a factor 1e-9 with probability below 1e-70.
_PROJECTIONS = 8
_BYTES = 64 * 2**20


def adjacency(partition: Partition) -> nx.Graph:
    """Return the graph of the cells that share a facet.

    Returns
    -------
    networkx.Graph
        Nodes 0..C-1 are cells. An edge has the attributes `unit`, the unit that switches there,
        and `facet`, the facet's index (the last one, where two cells share several in one plane).
        Needs no network.
    """
    inner = np.flatnonzero((partition.facet_cells >= 0).all(axis=1))
    graph = nx.Graph()
    graph.add_nodes_from(range(partition.num_cells))
    ends = partition.facet_cells[inner].tolist()
    units, facets = partition.facet_unit[inner].tolist(), inner.tolist()
    graph.add_edges_from(
        (a, b, {"unit": unit, "facet": facet})
        for (a, b), unit, facet in zip(ends, units, facets, strict=True)
    )
    return graph


@dataclass(frozen=True, eq=False)
class Regions:
    """Connected sets of cells on which G is one affine map.

    Parameters
    ----------
    index : (C,) int64 ndarray
        Region of each cell, numbered by the lowest cell in them.
    count : int
        The number of regions.
    tolerance : float
        Neighbouring maps that differ by at most this share of the larger one coincide.
    merged, kept : float
        The largest difference that was taken as none, and the smallest that was not (0 and inf
        where there is no such facet). A wide gap between them says that the tolerance did not
        matter.
    """

    index: NDArray[np.int64]
    count: int
    tolerance: float
    merged: float
    kept: float


def regions(partition: Partition, *, tolerance: float = 1e-10) -> Regions:
    """Merge the cells whose neighbours carry the same affine map.

    Parameters
    ----------
    partition : Partition
        With its network.
    tolerance : float
        See `Regions`. Where a unit is switched off downstream the two maps agree to the last bit;
        where several units cancel they agree to rounding, about 1e-15 times the depth.

    Notes
    -----
    G is continuous, so the maps of two neighbours agree on their facet and differ by a rank-one
    jump; comparing A alone suffices. One pass over the maps.
    """
    outputs = num_outputs(partition)
    count = partition.num_cells
    width = min(outputs, _PROJECTIONS)
    project = np.eye(outputs)
    if outputs > width:
        # fixed, so that the same partition always gets the same regions
        project = np.random.default_rng(7).standard_normal((outputs, width)) / np.sqrt(width)
    maps = np.empty((count, width, partition.dim))
    start = 0
    for base, columns in columns_and_offsets(partition):
        stop = start + len(base)
        maps[start:stop] = np.moveaxis(columns @ project, 0, 2)
        start = stop
    inner = (partition.facet_cells >= 0).all(axis=1)
    a, b = partition.facet_cells[inner].T
    size = np.sqrt(np.square(maps).sum(axis=(1, 2)))
    jump = np.sqrt(np.square(maps[a] - maps[b]).sum(axis=(1, 2)))
    larger = np.maximum(size[a], size[b])
    relative = jump / np.where(larger > 0, larger, 1.0)
    same = relative <= tolerance
    links = coo_array((np.ones(int(same.sum()), np.int8), (a[same], b[same])), shape=(count, count))
    found, labels = connected_components(links, directed=False)
    _, first, index = np.unique(labels, return_index=True, return_inverse=True)
    index = np.argsort(np.argsort(first))[index]
    merged, kept = relative[same].max(initial=0.0), relative[~same].min(initial=np.inf)
    return Regions(index, int(found), tolerance, float(merged), float(kept))


def locate(
    partition: Partition, points: ArrayLike, *, tolerance: float = 1e-12
) -> NDArray[np.int64]:
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
    """
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


def _inside(domain: Domain, s: Array, tolerance: float) -> NDArray[np.bool_]:
    """Return which points lie in the domain, its boundary included."""
    corners = domain.corners
    slack = tolerance * float(np.abs(corners).max() + np.ptp(corners, axis=0).max())
    outward, offsets = half_spaces(domain)
    outside = s @ outward.T > offsets + slack
    return ~np.any(outside, axis=1)


def _by_pattern(partition: Partition, network: Network, s: Array) -> NDArray[np.int64]:
    """Return the cell whose pattern each point has, -1 where there is none."""
    keys = _hash(partition.patterns)
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
        place = np.minimum(np.searchsorted(keys, _hash(patterns)), len(keys) - 1)
        cells = order[place]
        # equal hashes of different patterns are left to the search by position
        found = (partition.patterns[cells] == patterns).all(axis=1)
        result[start : start + rows][found] = cells[found]
    return result


def _patterns_at(partition: Partition, network: Network, s: Array) -> NDArray[np.uint64]:
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


def _hash(patterns: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return one 64-bit key per pattern (splitmix64 over the words)."""
    key = np.full(len(patterns), 0x9E3779B97F4A7C15, np.uint64)
    for word in patterns.T:
        key = (key ^ word) + np.uint64(0x9E3779B97F4A7C15)
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key ^= key >> np.uint64(31)
    return key


def _by_position(partition: Partition, s: Array) -> NDArray[np.int64]:
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
