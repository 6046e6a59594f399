"""Graph of cells that share facets, and regions of one affine map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cpwl.affine import over_maps
from cpwl.arrays import Floats, Ints, require_at_least
from cpwl.descriptors import DESCRIPTORS, centroids, describe

if TYPE_CHECKING:
    from cpwl.partition import Partition


def adjacency(partition: Partition, attributes: Iterable[str] = ("volume", "centroid")) -> nx.Graph:
    """Return the graph of the cells that share a facet.

    Parameters
    ----------
    partition : Partition
        Its network is needed for attributes other than the default ones.
    attributes : str or iterable of str
        What nodes carry: descriptors as for `describe` (volume, psi, nu, ...), "centroid" (a tuple
        of P numbers) and "region", the cell's `Regions.index`.

    Returns
    -------
    networkx.Graph
        Nodes 0..C-1 are cells. An edge has the attributes `unit`, the unit that switches there,
        and `facet`, the facet's index (the last one, where two cells share several in one plane).

    Raises
    ------
    ValueError
        Another attribute.

    Notes
    -----
    Cost for 18,863 cells of 2-64-64-64-3, which have 2 facets each: 10 microseconds and 950 bytes a
    cell, 240 bytes more for the default attributes. psi, nu and region take one or two passes over
    the maps, 20 microseconds a cell there and far more for images.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> graph = cpwl.adjacency(partition, ["volume", "centroid", "rank", "region"])
    >>> sorted(graph.edges(data="unit"))
    [(0, 1, 0), (0, 3, 1), (1, 2, 1), (2, 3, 0)]
    >>> graph.nodes[2]
    {'volume': 1.0, 'centroid': (0.5, 0.5), 'rank': 2, 'region': 2}
    """
    names = (attributes,) if isinstance(attributes, str) else tuple(attributes)
    known = (*DESCRIPTORS, "centroid", "region")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"Expected attributes among {', '.join(known)}, got {', '.join(unknown)}. Add others "
            "with networkx.set_node_attributes."
        )
    found = describe(partition, [name for name in names if name in DESCRIPTORS])
    columns: dict[str, list[Any]] = {name: column.tolist() for name, column in found.items()}
    if "centroid" in names:
        columns["centroid"] = [tuple(centre) for centre in centroids(partition).tolist()]
    if "region" in names:
        columns["region"] = regions(partition).index.tolist()
    inner = np.flatnonzero((partition.facet_cells >= 0).all(axis=1))
    graph = nx.Graph()
    graph.add_nodes_from(
        (cell, {name: columns[name][cell] for name in names}) for cell in range(partition.num_cells)
    )
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

    index: Ints
    count: int
    tolerance: float
    merged: float
    kept: float

    def __repr__(self) -> str:
        """Summarise: there is an entry for each cell."""
        return f"Regions({self.count:,} of {len(self.index):,} cells, tolerance={self.tolerance:g})"


def regions(partition: Partition, *, tolerance: float = 1e-10) -> Regions:
    """Merge the cells whose neighbours carry the same affine map.

    Parameters
    ----------
    partition : Partition
        With its network.
    tolerance : float
        See `Regions`. Where a unit is switched off downstream the two maps agree to the last bit;
        where several units cancel they agree to rounding, about 1e-15 times the depth.

    Raises
    ------
    ValueError, PartitionError
        As for `affine_maps`.

    Notes
    -----
    G is continuous, so the maps of two neighbours agree on their facet and differ by a rank-one
    jump; comparing A alone suffices. Cost: one pass over the maps, 0.2 to 9 times what `subdivide`
    takes (tests/benchmarks/bench_training.py), so a partition's repr does not count regions.

    Examples
    --------
    >>> import cpwl, torch
    >>> identity = torch.nn.Sequential(torch.nn.LeakyReLU(0.5), torch.nn.LeakyReLU(2.0))
    >>> network = cpwl.Network.from_torch(identity, (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> partition.num_cells, cpwl.regions(partition).count
    (4, 1)
    """
    require_at_least(0, tolerance, "tolerance", "Leave it out.")
    (maps,) = over_maps(partition, projected)
    return regions_of(partition, maps, tolerance)


def projected(_: Floats, columns: Floats) -> Floats:
    """Return (n, k, P) maps onto at most 8 outputs, from columns (P, n, D)."""
    outputs = columns.shape[2]
    width = min(outputs, _PROJECTIONS)
    project = np.eye(outputs)
    if outputs > width:
        # fixed, so that the same partition always gets the same regions
        project = np.random.default_rng(7).standard_normal((outputs, width)) / np.sqrt(width)
    return np.moveaxis(columns @ project, 0, 2)


def regions_of(partition: Partition, maps: Floats, tolerance: float = 1e-10) -> Regions:
    """Merge the neighbours with the same projected map (C, k, P)."""
    count = partition.num_cells
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


def hash_columns(patterns: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return one 64-bit key per pattern (splitmix64 over the words)."""
    key = np.full(len(patterns), 0x9E3779B97F4A7C15, np.uint64)
    for word in patterns.T:
        key = (key ^ word) + np.uint64(0x9E3779B97F4A7C15)
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key ^= key >> np.uint64(31)
    return key


# With more outputs than this, jumps are measured in as many random projections of the outputs:
# all of them lose a jump by a factor 1e-9 with probability below 1e-70.
_PROJECTIONS = 8
