"""The exact partition of a bounded domain into the cells of a network."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cpwl.arrays import Floats, Ints, Ragged, pattern_kernels
from cpwl.domain import Domain
from cpwl.errors import PartitionError, require_kind
from cpwl.network import Network

if TYPE_CHECKING:
    pass


class Status(NamedTuple):
    """How far a partition can be trusted.

    Parameters
    ----------
    complete : bool
        Every cell is there. Otherwise `needed` or `broken` says why not.
    exact : bool
        Complete, and every sign was proven: by float64 with a rigorous bound, in rational
        arithmetic, or in about 106 bits with a rigorous bound.
    arbitrated : int
        Signs that float64 left open and exact arithmetic, or a rigorous bound, settled one by one
        or in bulk: zeros modulo enough primes, others in about 106 bits, and what neither settles
        in rational numbers. None where rational arithmetic is out of reach.
    undecided : int
        Signs that are not proven. Where rational arithmetic is out of reach (large convolutions)
        they are taken from float64 although they lie within its rigorous bound; behind a proof in
        about 106 bits (see `refined`) they are those that it leaves open.
    broken : int
        Cells left uncut because signs were inconsistent; 0 unless some are undecided.
    needed : int
        0, or the bytes of memory that a complete answer would have needed. The cells are then
        those of the first `stages` stages of the network.
    stages : int
        Stages of the network that the cells take into account; all of them if complete.
    refined : int
        Signs of units at vertices that were proven in about 106 bits: of all units at all vertices,
        where `subdivide` proves its result in this way.
    """

    complete: bool
    exact: bool
    arbitrated: int
    undecided: int
    broken: int
    needed: int
    stages: int
    refined: int = 0


@dataclass(frozen=True, eq=False)
class Partition:
    """The cells of a network on a bounded domain of dimension 1 to 6, as flat arrays.

    V vertices, C cells, F facets, P = ``dim`` slice coordinates. Where an array is ragged, row i
    is ``items[offsets[i]:offsets[i + 1]]``.

    Parameters
    ----------
    network : Network or None
        The network (None for a partition loaded without one: geometry only).
    domain : Domain
        The domain, with the slice that carries its coordinates into the latent space.
    points : (V, P) float64
        Vertices in slice coordinates.
    cell_offsets : (C + 1,) int64
        Rows of `cell_corners`.
    cell_corners : (N,) int32
        Vertices of the cells: anticlockwise for P = 2, otherwise ascending.
    cell_facet_offsets : (C + 1,) int64
        Rows of `cell_facets`; the same as `cell_offsets` for P <= 2.
    cell_facets : (M,) int32
        Facets of the cells. P = 2: the facet from each corner to the cell's next one. P = 1: the
        facet at that corner. P >= 3: ascending.
    facet_offsets : (F + 1,) int64
        Rows of `facet_corners`.
    facet_corners : (K,) int32
        Vertices of the facets. P = 1: the one point that it is. P = 2: its two ends. P >= 3:
        ascending.
    facet_cells : (F, 2) int32
        P = 2: the cell on the left of the facet, seen along its two ends, and the one on its
        right. P = 1: below, above. P >= 3: the cell in which the facet's unit is on the lower
        piece, and the other; on the boundary the one cell comes first. -1 outside the domain.
    facet_unit : (F,) int32
        The unit whose knot the facet lies on; -1 on the domain's boundary. Of several units that
        switch there it is the first with an effect on both sides (of a max-pooling window: the
        match in which the winners on the two sides meet), whatever domain the cells are part of.
    skeleton : tuple of Ragged
        P >= 3: entry k - 1 has the faces of dimension k = 1..P - 1, each by the numbers of its
        faces of dimension k - 1: the first the edges by their two vertices, the last the facets
        (in the numbering above) by their ridges. Empty for P <= 2.
    patterns : (C, W) uint64
        Packed activation patterns: bit j of a cell is bit ``j % 64`` of word ``j // 64``.
    bit_unit : (64 * W,) int32
        The unit that bit j belongs to, -1 for padding. A unit has one bit for each of its
        breakpoints that lies within its range on the domain, ascending, and none where it never
        switches.
    unit_base : (num_units,) int32
        Piece of each unit where none of its bits is set: the piece of a unit on a cell is its base
        plus the number of its bits that are set there. In an incomplete partition -1 for the units
        of the stages that are missing.
    status : Status
        Whether the partition is complete and proven.

    Notes
    -----
    Cells meet face to face: two of them share one facet or none. Only max-pooling, whose ties are
    no knots where they change nothing, makes an exception in P >= 3: cells that it joined may have
    several facets in one plane, and may share several with a neighbour.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> partition
    Partition(4 cells, 12 facets, 9 vertices in 2-D, complete)
    >>> partition.pieces().tolist()
    [[0, 0], [1, 0], [1, 1], [0, 1]]
    """

    network: Network | None
    domain: Domain
    points: Floats
    cell_offsets: Ints
    cell_corners: NDArray[np.int32]
    cell_facet_offsets: Ints
    cell_facets: NDArray[np.int32]
    facet_offsets: Ints
    facet_corners: NDArray[np.int32]
    facet_cells: NDArray[np.int32]
    facet_unit: NDArray[np.int32]
    skeleton: tuple[Ragged, ...]
    patterns: NDArray[np.uint64]
    bit_unit: NDArray[np.int32]
    unit_base: NDArray[np.int32]
    status: Status

    @property
    def num_cells(self) -> int:
        """The number of cells."""
        return len(self.cell_offsets) - 1

    @property
    def dim(self) -> int:
        """The dimension P of the domain."""
        return self.points.shape[1]

    @property
    def num_facets(self) -> int:
        """The number of facets."""
        return len(self.facet_offsets) - 1

    @property
    def facet_points(self) -> NDArray[np.int32]:
        """The two ends of every facet, or the one point that it is: (F, P) for P <= 2.

        Raises
        ------
        ValueError
            P >= 3, where facets have different numbers of vertices.
        """
        if self.dim > 2:
            raise ValueError(
                f"Expected a partition of dimension 1 or 2 for facet_points, got {self.dim}. Facet "
                "i has the vertices facet_corners[facet_offsets[i]:facet_offsets[i + 1]]."
            )
        return self.facet_corners.reshape(-1, self.dim)

    @property
    def edges(self) -> NDArray[np.int32]:
        """The two vertices of every edge, (E, 2); the cells for P = 1, the facets for P = 2."""
        if self.dim == 1:
            return self.cell_corners.reshape(-1, 2)
        return self.facet_points if self.dim == 2 else self.skeleton[0].items.reshape(-1, 2)

    def pieces(self, cells: Ints | slice | None = None) -> NDArray[np.int32]:
        """Unpack activation patterns.

        Parameters
        ----------
        cells : (n,) index array or slice, optional
            Which cells; all of them if omitted (n * num_units int32 entries).

        Returns
        -------
        (n, num_units) int32
            The piece that every unit is on: the number of its breakpoints below its value.
        """
        rows = self.patterns if cells is None else self.patterns[cells]
        out = np.empty((len(rows), len(self.unit_base)), np.int32)
        pattern_kernels.unpack_pieces(rows, self.bit_unit, self.unit_base, out)
        return out

    def __repr__(self) -> str:
        """Summarise: the arrays themselves are long."""
        state = "complete" if self.status.complete else f"INCOMPLETE: {self.status}"
        if self.network is None:
            state += ", not proven: loaded without its network"
        return (
            f"Partition({self.num_cells:,} cells, {self.num_facets:,} facets, "
            f"{len(self.points):,} vertices in {self.dim}-D, {state})"
        )

    def _repr_html_(self) -> str:
        """Return the numbers as a table, for notebooks."""
        status = self.status
        proven = "every sign proven" if status.exact else f"{status.undecided:,} signs undecided"
        facts = {
            "cells": f"{self.num_cells:,}",
            "facets, vertices": f"{self.num_facets:,}, {len(self.points):,}",
            "domain": repr(self.domain),
            "network": repr(self.network or "loaded without it: not proven"),
            "status": proven if status.complete else repr(status),
        }
        rows = (f"<tr><th>{name}</th><td>{escape(fact)}</td></tr>" for name, fact in facts.items())
        return f"<table>{''.join(rows)}</table>"


def require_partition(partition: Partition) -> None:
    """Raise TypeError for a network, a domain or anything else that is no partition."""
    require_kind(partition, Partition, "Make one with cpwl.subdivide(network, domain).")


def require_complete(partition: Partition) -> None:
    """Raise PartitionError unless every cell of the network is there."""
    require_partition(partition)
    status = partition.status
    if status.complete:
        return
    what = f"one with {status.broken} cells left uncut, because their signs were inconsistent"
    remedy = "Subdivide a domain without them"
    if status.needed:
        what = f"the cells of the first stages only ({status.stages}), because memory ran out"
        remedy = f"Give subdivide {status.needed:,} bytes of `memory`, or a smaller domain"
    raise PartitionError(
        f"Expected a complete partition, got {what}. {remedy}; "
        "volumes, points and facets of these cells can be used as they are."
    )


def cell_indices(partition: Partition, cells: ArrayLike | slice | None) -> Ints:
    """Return `cells` as an array of cell indices in 0..num_cells - 1, or raise."""
    require_partition(partition)
    every = np.arange(partition.num_cells)
    if cells is None:
        return every
    if isinstance(cells, slice):
        return every[cells]
    wanted = np.asarray(cells)
    if wanted.dtype.kind not in "iub" and wanted.size:
        raise ValueError(
            f"Expected cells as indices, a mask or a slice, got dtype {wanted.dtype}. "
            "Give an integer array."
        )
    if wanted.ndim > 1:
        raise ValueError(
            f"Expected cells as a flat list of indices, or a mask, got shape {wanted.shape}. "
            "Flatten it."
        )
    try:
        return np.atleast_1d(every[wanted if wanted.size else wanted.astype(np.int64)])
    except IndexError:
        raise ValueError(
            f"Expected indices below {len(every)}, the number of cells, or a mask of that length, "
            f"got {wanted.dtype} entries from {wanted.min()} to {wanted.max()} in shape "
            f"{wanted.shape}. Give indices of this partition."
        ) from None


def require_network(partition: Partition) -> Network:
    """Return the partition's network, or raise where it was loaded without one."""
    require_partition(partition)
    if partition.network is None:
        raise ValueError(
            "Expected a partition with its network, got one loaded from a file without it. "
            "Pass the network: cpwl.load_partition(path, network=network)."
        )
    return partition.network
