"""The exact partition of a bounded domain into the cells of a network."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cpwl import _kernels
from cpwl._parallel import available_cores
from cpwl._refine import Work, refine
from cpwl._tiles import Refined
from cpwl.domain import Domain
from cpwl.network import Network

if TYPE_CHECKING:
    from pathlib import Path


class Status(NamedTuple):
    """How a partition came about.

    ``complete``: every cell is there. ``zeros``: values that were not zero but within the rounding
    error of it and were taken as zero, that is, knots taken to pass through a vertex that they
    pass within about 1e-12 of; 0 on generic networks. ``broken``: cells left uncut because
    rounding made their signs inconsistent; ``complete`` is False unless it is 0.
    """

    complete: bool
    zeros: int
    broken: int


@dataclass(frozen=True, eq=False)
class Partition:
    """The cells of a network on a bounded 1-D or 2-D domain, as flat arrays.

    V vertices, C cells, F facets, N corners in all, P = ``dim`` slice coordinates.

    Parameters
    ----------
    network : Network or None
        The network (None for a partition loaded without one: geometry only).
    domain : Domain
        The domain, with the slice that carries its coordinates into the latent space.
    points : (V, P) float64
        Vertices in slice coordinates.
    cell_offsets : (C + 1,) int64
        Cell c has the corners ``cell_corners[cell_offsets[c]:cell_offsets[c + 1]]``.
    cell_corners : (N,) int32
        Vertices of the cells, anticlockwise (P = 2) or ascending (P = 1).
    cell_facets : (N,) int32
        P = 2: the facet from each corner to the cell's next one. P = 1: the facet at that corner.
    facet_points : (F, P) int32
        The two ends of a facet, or the one point that it is.
    facet_cells : (F, 2) int32
        The cell on the left of ``facet_points[0] -> facet_points[1]`` and the one on its right
        (P = 1: below, above); -1 outside the domain.
    facet_unit : (F,) int32
        The unit whose knot the facet lies on; -1 on the domain's boundary. Where several units
        have the same knot it is the lowest of the first stage that has one (for a max-pooling
        window: the match in which the winners on the two sides meet).
    patterns : (C, W) uint64
        Packed activation patterns: bit j of a cell is bit ``j % 64`` of word ``j // 64``.
    bit_unit : (64 * W,) int32
        The unit that bit j belongs to, -1 for padding. A unit has one bit for each of its
        breakpoints that lies within its range on the domain, ascending, and none where it never
        switches.
    unit_base : (num_units,) int32
        Piece of each unit where none of its bits is set: the piece of a unit on a cell is its base
        plus the number of its bits that are set there.
    status : Status
        Whether the partition is complete, and what rounding did.
    """

    network: Network | None
    domain: Domain
    points: NDArray[np.float64]
    cell_offsets: NDArray[np.int64]
    cell_corners: NDArray[np.int32]
    cell_facets: NDArray[np.int32]
    facet_points: NDArray[np.int32]
    facet_cells: NDArray[np.int32]
    facet_unit: NDArray[np.int32]
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

    def pieces(self, cells: NDArray[np.int64] | slice | None = None) -> NDArray[np.int32]:
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
        _kernels.unpack_pieces(rows, self.bit_unit, self.unit_base, out)
        return out

    def save(self, path: str | Path) -> None:
        """Write the partition to one .npz file; see :func:`cpwl.storage.save`."""
        from cpwl.storage import save  # storage builds Partitions, so it cannot be imported above

        save(self, path)

    def __repr__(self) -> str:
        """Summarise: the arrays themselves are long."""
        state = "complete" if self.status.complete else f"INCOMPLETE: {self.status}"
        return (
            f"Partition({self.num_cells:,} cells, {len(self.facet_points):,} facets, "
            f"{len(self.points):,} vertices in {self.dim}-D, {state})"
        )


def subdivide(
    network: Network, domain: Domain, *, memory: int = 2 * 2**30, progress: bool = True
) -> Partition:
    """Enumerate every cell of a network on a bounded domain.

    Parameters
    ----------
    network : Network
        The captured network.
    domain : Domain
        A 1-D or 2-D domain whose slice embeds into the network's input.
    memory : int, default 2 GiB
        Bytes that the work may take beyond the partition that is returned. Vertices are evaluated
        in blocks that fit; a domain whose refinement does not fit is worked off in strips, which
        are glued without a trace: no vertex is doubled and no cell is cut. Gluing takes about as
        much again as the partition.
    progress : bool
        Show a progress bar over the network's stages on standard error.

    Returns
    -------
    Partition
        ``status.complete`` tells whether every cell is there.

    Raises
    ------
    ValueError
        The slice's latent shape is not the network's input shape, or the dimension is not 1 or 2.
    FloatingPointError
        The network overflows float64 on the domain.
    MemoryError
        `memory` does not even suffice for a small part of the domain.

    Notes
    -----
    Stage by stage: a stage is affine on every cell of the stages before it, so its signs at the
    vertices decide everything. Each edge is cut once, at the places that linear interpolation
    between its ends gives; each cell is then cut on its own by the chords of the units that have
    corners on both sides. Where chords cross is decided combinatorially, from the order of their
    ends on the cell's boundary. Vertices are evaluated afresh at every stage, from their
    coordinates, so that errors do not build up along edges. The cost is one forward pass at the
    vertices of the last stage but one, and about a microsecond a cell; all cores are used.

    The partition is that of the function as evaluated in float64. A value counts as zero if it lies
    within twice the running bound on its rounding error, or within 16 times the part of that bound
    that its last layer contributes, whichever is less (the bound itself grows with depth far beyond
    the errors that are met).
    """
    if domain.dim not in (1, 2):
        raise ValueError(
            f"Expected a domain of dimension 1 or 2, got {domain.dim}. "
            "Take a slice: cpwl.Slice.through(z0, z1, z2).box(lo, hi)."
        )
    latent_shape = domain.slice.latent_shape
    if latent_shape != network.input_shape:
        raise ValueError(
            f"Expected a domain in latents of shape {network.input_shape}, got {latent_shape}. "
            "Build the slice from latents of the network's input shape, without a batch axis."
        )

    def embed(s: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(domain.slice.embed(s)))

    with (
        ThreadPoolExecutor(available_cores()) as pool,
        tqdm(
            total=100, desc="subdivide", disable=not progress,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
        ) as bar,
    ):  # fmt: skip

        def report(share: float, cells: int) -> None:
            bar.set_postfix(cells=f"{cells:,}", refresh=False)
            bar.update(min(100 * share, bar.total - bar.n))  # work given up counts as well

        made = refine(Work(network, embed, memory, pool, report), domain.corners)
    return _finish(network, domain, made)


def _finish(network: Network, domain: Domain, made: Refined) -> Partition:
    """Name the complex's arrays as a partition does."""
    c = made.complex
    status = Status(complete=c.broken == 0, zeros=made.zeros, broken=c.broken)
    meaning = (c.patterns, made.bit_unit, made.base, status)
    if domain.dim == 2:
        return Partition(
            network, domain, c.points, c.cell_offsets, c.cell_corners, c.cell_edges,
            c.edge_points, c.edge_cells, c.edge_unit, *meaning,
        )  # fmt: skip
    n = len(c.patterns)
    below = np.arange(-1, n, dtype=np.int32)
    above = np.append(below[1:], np.int32(-1))
    ends = c.edge_points.reshape(-1)
    return Partition(
        network, domain, c.points, 2 * np.arange(n + 1), ends, ends.copy(),
        np.arange(n + 1, dtype=np.int32)[:, None], np.stack([below, above], axis=1),
        c.point_unit, *meaning,
    )  # fmt: skip
