"""Partition of a bounded domain into the cells of a network: `subdivide`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from tqdm import tqdm

from cpwl.arrays import (
    TorchThreads,
    available_cores,
    denormals,
    on_compilation,
    require_at_least,
)
from cpwl.domain import Domain, in_shape
from cpwl.engine.columns import units_of
from cpwl.engine.plane import Complex, Proof, Refined, coarse, prove, refine
from cpwl.engine.precise import Evaluator, OutOfReachError
from cpwl.engine.rational import Arbiter
from cpwl.engine.space import RefinedLattice, refine_lattice, straightened
from cpwl.engine.space import corners as lattice_corners
from cpwl.engine.work import TooLargeError, TooManyError, Work
from cpwl.errors import require_kind
from cpwl.network import Network, require_captured
from cpwl.partition import Partition, Status

# Without being asked to, a result of at most so many signs (units at vertices) is proven in about
# 106 bits: some minutes for a denoiser of 20 layers.
_SIGNS_AT_MOST = 2**30
HowProven = Literal["auto", "float64", "full"]
_LABELS = ("subdivide", "compiling kernels, once")  # of the bar, the second while that is done


def subdivide(
    network: Network,
    domain: Domain,
    *,
    memory: int = 2 * 2**30,
    proof: HowProven = "auto",
    progress: bool = True,
) -> Partition:
    """Enumerate every cell of a network on a bounded domain.

    Parameters
    ----------
    network : Network
        The captured network.
    domain : Domain
        A domain of dimension 1 to 6 whose slice embeds into the network's input. Its latents may
        be flat where the input is not, or the other way round; those of the result have the
        network's input shape.
    memory : int, default 2 GiB
        Bytes that the work may take beyond the partition that is returned. Vertices are evaluated
        in blocks that fit; a 1-D or 2-D domain whose refinement does not fit is refined in strips,
        which are glued without a trace: no vertex is doubled and no cell is cut. Gluing takes about
        as much again as the partition.
    proof : {"auto", "float64", "full"}
        What to do where a network is too large for rational arithmetic, on a domain of dimension 1
        or 2; others are not affected. "float64" leaves the signs within its bound undecided. "full"
        proves the result in about 106 bits, at some 15 to 25 forward passes a vertex more. "auto"
        does so where the network allows for it and there are at most 2^30 signs, units times
        vertices.
    progress : bool
        Show a progress bar over the network's stages on standard error, and one over the cells that
        a proof in 106 bits evaluates.

    Returns
    -------
    Partition
        ``status.exact`` tells whether it is proven to be the network's partition, cell for cell.
        If the memory does not suffice, ``status.complete`` is False, the cells are those of the
        first ``status.stages`` stages, and ``status.needed`` says what the next one would take.

    Raises
    ------
    ValueError
        The slice's latents do not fit the network's input, `memory` is below 1, or `proof` is
        "full" where that is not possible.
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
    for the place of the vertex), and where the bound leaves a sign open it is settled from the
    definition of the vertex (``status.arbitrated`` counts these): a zero modulo enough primes,
    another sign in about 106 bits with a bound, many at a time, and the rest in rational
    arithmetic. Coordinates are float64, those of ill-conditioned vertices correctly rounded.

    Networks with more than 8,192 units, or whose affine operations have more than a million
    coefficients, are out of reach of rational arithmetic (large convolutions, above all). There a
    value counts as zero if float64 has it within 16 times the rounding error of its last layer. In
    one and two dimensions the result is then proven as a whole, see `proof`: every unit is computed
    in about 106 bits on a cell at each vertex, with a rigorous bound, and found to be on its piece
    (``status.refined`` counts these signs). Otherwise, ``status.undecided`` counts the values
    within float64's bound, which are not proven (`Network.rounding_error` gives that bound).

    *How.* Stage by stage: a stage is affine on every cell of the stages before it, so its signs at
    the vertices decide everything. Each edge is cut once, at the places that linear interpolation
    between its ends gives; each cell is then cut on its own by the chords of the units that have
    corners on both sides. Where chords cross is decided combinatorially, from the order of their
    ends on the cell's boundary. Every vertex is evaluated from its coordinates, so that errors do
    not build up along edges, and every step of the network runs once at it: the tensors that later
    stages read are kept, in at most half of `memory` (where they do not fit, a deep network's
    domain is refined in strips). The cost is one forward pass at the vertices of the last stage
    but one, and about a microsecond a cell; all cores are used. Bounds on vertices of networks
    within reach of rational arithmetic may take half as much again.

    From three dimensions on, the faces of all dimensions are kept by their incidences, and cut unit
    after unit: edges where the signs at their ends differ, and a face of dimension k along the new
    face of dimension k - 1 that the cuts of its boundary enclose. A cell comes with about 2**P
    faces, which take a fraction of a microsecond and about 70 bytes of work each. At the end the
    vertices of facets that are not flat up to rounding are computed exactly.

    Examples
    --------
    >>> import cpwl, torch
    >>> module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     _ = module[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    ...     _ = module[0].bias.zero_()
    >>> network = cpwl.Network.from_torch(module, input_shape=(2,))
    >>> cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]), progress=False)
    Partition(6 cells, 14 facets, 9 vertices in 2-D, complete)
    """
    require_captured(network)
    require_kind(
        domain,
        Domain,
        "Make one with cpwl.box(lo, hi) or cpwl.polygon(corners), or of a slice with "
        "slice.around() or slice.box(lo, hi).",
    )
    domain = in_shape(domain, network.input_shape)
    require_at_least(1, memory, "memory", "Give it in bytes, for example memory=2**30.")
    require_proof(proof)
    return _enumerated(network, domain, int(memory), proof, progress=progress)


def attempt(
    network: Network, domain: Domain, most: Sequence[float], *, memory: int, proof: HowProven
) -> Partition | None:
    """Enumerate a domain, or return None where it has more than so many cells after a stage.

    The other arguments are those of `subdivide`, as it has checked them.
    """
    try:
        found = _enumerated(network, domain, memory, proof, progress=False, most=most)
    except TooManyError:
        return None
    # of a domain refined in strips, each has counted its own cells alone
    return None if found.num_cells > most[-1] else found


def _enumerated(
    network: Network,
    domain: Domain,
    memory: int,
    proof: HowProven,
    *,
    progress: bool,
    most: Sequence[float] | None = None,
) -> Partition:
    """Enumerate every cell, or raise TooManyError as soon as there are too many."""
    evaluator = _evaluator(network, domain, proof)
    small = network.matrices.complete  # others do nothing but large work
    with (
        denormals(all_threads=not small),
        _torch_threads(alone=small) as threads,
        ThreadPoolExecutor(max(1, available_cores() - 1), initializer=threads.leave) as pool,
        tqdm(
            total=100, desc=_LABELS[False], disable=not progress,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
        ) as bar,
        on_compilation(lambda begun: bar.set_description_str(_LABELS[begun])),
    ):  # fmt: skip

        def report(share: float, cells: int) -> None:
            if bar.disable:
                return
            bar.set_postfix(cells=f"{cells:,}", refresh=False)
            bar.update(min(100 * share, bar.total - bar.n))  # work given up counts as well

        arbiter = Arbiter(network, domain)
        work = Work(
            network=network, arbiter=arbiter, slice=domain.slice, memory=memory, pool=pool,
            report=report, evaluator=evaluator, threads=threads, most=most,
        )  # fmt: skip
        if domain.dim > 2:
            lattice = refine_lattice(work, domain)
            return _finish(work, domain, lattice, lattice.broken, None, _of_lattice(work, lattice))
        corners = arbiter.corners()
        try:
            made = refine(work, corners)
        except TooLargeError:
            made = coarse(work, corners)
        complex_ = made.complex
        proven = _proven(work, made, proof, progress=progress)
        if proven is not None:
            complex_ = replace(complex_, points=proven.points)
        geometry = _of_polygons(complex_) if domain.dim == 2 else _of_intervals(complex_)
        return _finish(work, domain, made, complex_.broken, proven, geometry)


@contextmanager
def _torch_threads(*, alone: bool) -> Iterator[TorchThreads]:
    threads = TorchThreads()
    with threads.alone() if alone else nullcontext():
        yield threads


def require_proof(proof: object) -> None:
    """Refuse what is none of the ways to prove."""
    ways = get_args(HowProven)
    if proof not in ways:
        raise ValueError(
            f"Expected proof to be one of {', '.join(map(repr, ways))}, got {proof!r}: leave it "
            "out if in doubt."
        )


def _evaluator(network: Network, domain: Domain, proof: str) -> Evaluator | None:
    """Prepare a proof in about 106 bits; None where none is needed, wanted or possible."""
    if network.matrices.complete or proof == "float64" or network.num_units == 0:
        return None
    reason = f"the domain has {domain.dim} dimensions, more than 2"
    if domain.dim <= 2:
        try:
            return Evaluator(network, domain.slice)
        except OutOfReachError as error:
            reason = str(error)
    if proof == "auto":
        return None
    raise ValueError(
        f"Expected a network and a domain that can be proven in about 106 bits, but {reason}: "
        "use proof='auto'."
    )


def _proven(work: Work, made: Refined, proof: str, *, progress: bool) -> Proof | None:
    """Prove a result in about 106 bits, where that is to be done."""
    signs = len(made.complex.points) * work.network.num_units
    complete = made.stages == work.network.num_stages and made.complex.broken == 0
    if work.evaluator is None or not complete or (proof == "auto" and signs > _SIGNS_AT_MOST):
        return None
    with tqdm(desc="prove in 106 bits", unit=" cells", disable=not progress) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            return prove(work, made, advance)
        except OutOfReachError:  # a convolution that fails its self-test
            return None


def _finish(
    work: Work,
    domain: Domain,
    made: Refined | RefinedLattice,
    broken: int,
    proof: Proof | None,
    geometry: dict[str, Any],
) -> Partition:
    """Make a partition of the meaning of the bits, how far they go, and the other arrays."""
    network = work.network
    complete = made.stages == network.num_stages and broken == 0
    # Without rational arithmetic a vertex is taken to be as far off as is likely: no proof, unless
    # there are no units to be proven.
    settled = work.arbiter.exact or network.num_units == 0
    proven = complete and made.undecided == 0 and settled
    undecided, refined = made.undecided, 0
    if proof is not None:
        undecided, refined = proof.undecided, proof.decided
        proven = complete and undecided == 0
    status = Status(
        complete=complete, exact=proven, arbitrated=work.arbiter.decided,
        undecided=undecided, broken=broken, needed=made.needed, stages=made.stages,
        refined=refined,
    )  # fmt: skip
    base = made.base.copy()
    base[network.stage_offsets[made.stages] :] = -1  # of stages that were not reached
    return Partition(
        network=network, domain=domain, bit_unit=made.bit_unit, unit_base=base, status=status,
        **geometry,
    )  # fmt: skip


def _of_polygons(c: Complex) -> dict[str, Any]:
    """Name the arrays of a complex as a partition does, P = 2."""
    return {
        "points": c.points,
        "cell_offsets": c.cell_offsets,
        "cell_corners": c.cell_corners,
        "cell_facet_offsets": c.cell_offsets,
        "cell_facets": c.cell_edges,
        "facet_offsets": 2 * np.arange(len(c.edge_points) + 1),
        "facet_corners": c.edge_points.reshape(-1),
        "facet_cells": c.edge_cells,
        "facet_unit": np.maximum(c.edge_unit, np.int32(-1)),
        "skeleton": (),
        "patterns": c.patterns,
    }


def _of_intervals(c: Complex) -> dict[str, Any]:
    """Name the arrays of a complex as a partition does, P = 1: the points are the facets."""
    n = len(c.patterns)
    below = np.arange(-1, n, dtype=np.int32)
    above = np.append(below[1:], np.int32(-1))
    ends, offsets = c.edge_points.reshape(-1), 2 * np.arange(n + 1)
    return {
        "points": c.points,
        "cell_offsets": offsets,
        "cell_corners": ends,
        "cell_facet_offsets": offsets,
        "cell_facets": ends.copy(),
        "facet_offsets": np.arange(n + 2),
        "facet_corners": np.arange(n + 1, dtype=np.int32),
        "facet_cells": np.stack([below, above], axis=1),
        "facet_unit": c.point_unit,
        "skeleton": (),
        "patterns": c.patterns,
    }


def _of_lattice(work: Work, made: RefinedLattice) -> dict[str, Any]:
    """Name the arrays of a lattice as a partition does, with vertices that fit their facets."""
    lattice = made.lattice
    found = lattice_corners(lattice, work.pool)
    merged = len(work.network.contests) > 0
    unit = units_of(lattice.facet_bit, made.bit_unit)
    return {
        "points": straightened(lattice, found, work.arbiter, merged=merged),
        "cell_offsets": found.cells.offsets,
        "cell_corners": found.cells.items,
        "cell_facet_offsets": found.cell_facets.offsets,
        "cell_facets": found.cell_facets.items,
        "facet_offsets": found.facets.offsets,
        "facet_corners": found.facets.items,
        "facet_cells": found.sides,
        "facet_unit": np.maximum(unit, np.int32(-1)),
        "skeleton": lattice.faces[:-1],
        "patterns": lattice.patterns,
    }
