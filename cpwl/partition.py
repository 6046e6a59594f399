"""The exact partition of a bounded domain into the cells of a network."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cpwl.arrays.parallel import available_cores
from cpwl.arrays.ragged import Ragged
from cpwl.domain.domain import Domain
from cpwl.engine.plane import cutting_kernels
from cpwl.engine.plane.cutting import TooLargeError
from cpwl.engine.plane.refinement import Work, coarse, refine
from cpwl.engine.plane.strips import Refined
from cpwl.engine.rational.arbiter import Arbiter
from cpwl.engine.space.flattening import straightened
from cpwl.engine.space.lattice import corners as lattice_corners
from cpwl.engine.space.refinement import RefinedLattice, refine_lattice
from cpwl.network.network import Network

if TYPE_CHECKING:
    from pathlib import Path


class Status(NamedTuple):
    """How far a partition can be trusted.

    Parameters
    ----------
    complete : bool
        Every cell is there. Otherwise `needed` or `broken` says why not.
    exact : bool
        Complete, and every sign was proven: by float64 with a rigorous bound, or in rational
        arithmetic.
    arbitrated : int
        Signs that went to rational arithmetic.
    undecided : int
        Signs taken from float64 although they lie within its rigorous bound (large convolutions,
        where rational arithmetic is out of reach).
    broken : int
        Cells left uncut because signs were inconsistent; 0 unless some are undecided.
    needed : int
        0, or the bytes of memory that a complete answer would have needed. The cells are then
        those of the first `stages` stages of the network.
    stages : int
        Stages of the network that the cells take into account; all of them if complete.
    """

    complete: bool
    exact: bool
    arbitrated: int
    undecided: int
    broken: int
    needed: int
    stages: int


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
        The unit whose knot the facet lies on; -1 on the domain's boundary. Where several units
        have the same knot it is the lowest of the first stage that has one (for a max-pooling
        window: the match in which the winners on the two sides meet).
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
        of stages that were not worked off.
    status : Status
        Whether the partition is complete and proven.

    Notes
    -----
    Cells meet face to face: two of them share one facet or none. Only max-pooling, whose ties are
    no knots where they change nothing, makes an exception in P >= 3: cells that it joined may have
    several facets in one plane, and may share several with a neighbour.
    """

    network: Network | None
    domain: Domain
    points: NDArray[np.float64]
    cell_offsets: NDArray[np.int64]
    cell_corners: NDArray[np.int32]
    cell_facet_offsets: NDArray[np.int64]
    cell_facets: NDArray[np.int32]
    facet_offsets: NDArray[np.int64]
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
        cutting_kernels.unpack_pieces(rows, self.bit_unit, self.unit_base, out)
        return out

    def save(self, path: str | Path) -> None:
        """Write the partition to one .npz file; see :func:`cpwl.storage.save`."""
        from cpwl.storage import save  # storage builds Partitions, so it cannot be imported above

        save(self, path)

    def __repr__(self) -> str:
        """Summarise: the arrays themselves are long."""
        state = "complete" if self.status.complete else f"INCOMPLETE: {self.status}"
        return (
            f"Partition({self.num_cells:,} cells, {self.num_facets:,} facets, "
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
        A domain of dimension 1 to 6 whose slice embeds into the network's input.
    memory : int, default 2 GiB
        Bytes that the work may take beyond the partition that is returned. Vertices are evaluated
        in blocks that fit; a 1-D or 2-D domain whose refinement does not fit is worked off in
        strips, which are glued without a trace: no vertex is doubled and no cell is cut. Gluing
        takes about as much again as the partition.
    progress : bool
        Show a progress bar over the network's stages on standard error.

    Returns
    -------
    Partition
        ``status.exact`` tells whether it is proven to be the network's partition, cell for cell.
        If the memory does not suffice, ``status.complete`` is False, the cells are those of the
        first ``status.stages`` stages, and ``status.needed`` says what the next one would take.

    Raises
    ------
    ValueError
        The slice's latent shape is not the network's input shape.
    FloatingPointError
        The network overflows float64 on the domain.

    Notes
    -----
    *What is exact.* The network is a composition of affine operations and CPWL units. An affine
    operation stands for the affine function with the float64 coefficients that it gives for unit
    vectors: weights and biases, for a batch-norm its scale and shift, for a mean and for bilinear
    interpolation their factors, each rounded to float64 once; a unit has float64 breakpoints and
    slopes; the slice maps s to z0 + U s with float64 z0 and U. The cells of that function, in real
    arithmetic, are what is returned, and every sign that decides about them is proven: float64
    values carry a rigorous bound on their error (for rounding, in whatever order torch sums, and
    for the place of the vertex), and where the bound leaves a sign open it is computed in rational
    arithmetic from the definition of the vertex (``status.arbitrated`` counts these). Coordinates
    are float64, those of ill-conditioned vertices correctly rounded.

    Networks with more than 8,192 units, or whose affine operations have more than a million
    coefficients, are out of reach of rational arithmetic (large convolutions, above all). Their
    signs are those of float64; a value then counts as zero if it lies within 16
    times the rounding error of its last layer, and ``status.undecided`` counts the values within
    the rigorous bound, which are not proven (`Network.rounding_error` gives that bound).

    *How.* Stage by stage: a stage is affine on every cell of the stages before it, so its signs at
    the vertices decide everything. Each edge is cut once, at the places that linear interpolation
    between its ends gives; each cell is then cut on its own by the chords of the units that have
    corners on both sides. Where chords cross is decided combinatorially, from the order of their
    ends on the cell's boundary. Vertices are evaluated afresh at every stage, from their
    coordinates, so that errors do not build up along edges. The cost is one forward pass at the
    vertices of the last stage but one, and about a microsecond a cell; all cores are used.

    From three dimensions on, the faces of all dimensions are kept by their incidences, and cut unit
    after unit: edges where the signs at their ends differ, and a face of dimension k along the new
    face of dimension k - 1 that the cuts of its boundary enclose. A cell comes with about 2**P
    faces, which take a fraction of a microsecond and about 70 bytes of work each. At the end the
    vertices of facets that are not flat up to rounding are computed exactly.
    """
    latent_shape = domain.slice.latent_shape
    if latent_shape != network.input_shape:
        raise ValueError(
            f"Expected a domain in latents of shape {network.input_shape}, got {latent_shape}. "
            "Build the slice from latents of the network's input shape, without a batch axis."
        )

    arbiter = Arbiter(network, domain)
    corners = arbiter.corners()

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

        work = Work(network, arbiter, domain.slice, embed, memory, pool, report)
        if domain.dim > 2:
            return _finish_lattice(work, domain, refine_lattice(work, domain))
        try:
            made = refine(work, corners)
        except TooLargeError:
            made = coarse(work, corners)
    return _finish(network, domain, made, arbiter)


def _finish(network: Network, domain: Domain, made: Refined, arbiter: Arbiter) -> Partition:
    """Name the complex's arrays as a partition does."""
    c = made.complex
    made.base[network.stage_offsets[made.stages] :] = -1  # not worked off
    complete = made.stages == network.num_stages and c.broken == 0
    status = Status(
        complete=complete, exact=complete and made.undecided == 0, arbitrated=arbiter.decided,
        undecided=made.undecided, broken=c.broken, needed=made.needed, stages=made.stages,
    )  # fmt: skip
    meaning = ((), c.patterns, made.bit_unit, made.base, status)
    if domain.dim == 2:
        return Partition(
            network, domain, c.points, c.cell_offsets, c.cell_corners, c.cell_offsets,
            c.cell_edges, 2 * np.arange(len(c.edge_points) + 1), c.edge_points.reshape(-1),
            c.edge_cells, np.maximum(c.edge_unit, np.int32(-1)), *meaning,
        )  # fmt: skip
    n = len(c.patterns)
    below = np.arange(-1, n, dtype=np.int32)
    above = np.append(below[1:], np.int32(-1))
    ends, offsets = c.edge_points.reshape(-1), 2 * np.arange(n + 1)
    return Partition(
        network, domain, c.points, offsets, ends, offsets, ends.copy(), np.arange(n + 2),
        np.arange(n + 1, dtype=np.int32), np.stack([below, above], axis=1), c.point_unit, *meaning,
    )  # fmt: skip


def _finish_lattice(work: Work, domain: Domain, made: RefinedLattice) -> Partition:
    """Name a lattice's arrays as a partition does."""
    network, lattice = work.network, made.lattice
    found = lattice_corners(lattice, work.pool)
    cells, cell_facets, facets, sides = found
    merged = len(network.contests) > 0
    points = straightened(lattice, found, work.arbiter, merged=merged)
    made.base[network.stage_offsets[made.stages] :] = -1  # not worked off
    complete = made.stages == network.num_stages and made.broken == 0
    status = Status(
        complete=complete, exact=complete and made.undecided == 0, arbitrated=work.arbiter.decided,
        undecided=made.undecided, broken=made.broken, needed=made.needed, stages=made.stages,
    )  # fmt: skip
    unit = np.full(len(lattice.facet_bit), -1, np.int32)
    inner = lattice.facet_bit >= 0
    unit[inner] = made.bit_unit[lattice.facet_bit[inner]]
    return Partition(
        network, domain, points, *cells, *cell_facets, *facets, sides, unit,
        lattice.faces[:-1], lattice.patterns, made.bit_unit, made.base, status,
    )  # fmt: skip
