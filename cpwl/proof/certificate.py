"""Proofs that a partition is complete and exact, and their files.

A proof shares no code with the engine: it takes nothing from it but the partition's arrays, as
claims, and works in integers throughout. What is proven, and why that suffices, is written in
`cpwl.proof.tiling`; which function the network stands for, in `cpwl.subdivide`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf
from os import PathLike

from cpwl.arrays import denormals
from cpwl.domain import Domain
from cpwl.errors import CertificateError
from cpwl.network import Network
from cpwl.partition import Partition, require_network
from cpwl.proof import file
from cpwl.proof.arrays import require_arrays, require_corners, require_incidence, unpack
from cpwl.proof.cells import Cell, ExactDomain
from cpwl.proof.claims import ROUNDING, Claims
from cpwl.proof.exact_network import ExactNetwork
from cpwl.proof.file import Proof
from cpwl.proof.place import in_words, same, shown
from cpwl.proof.reading import MOST_ENTRIES, read_exactly
from cpwl.proof.tiling import Proven, Sides, prove

__all__ = ["MOST_ENTRIES", "ROUNDING", "Certificate", "CertificateError", "certify", "verify"]


@dataclass(frozen=True)
class Certificate:
    """What a proof found; it exists only where the proof holds.

    Attributes
    ----------
    cells : int
        Cells that were proven, each the whole of its pattern's cell.
    share : float
        Of the domain that they cover. 1.0 says that they tile it, and none is missing; less, that
        time was up before, and that nothing is known of the rest.
    points : int
        Distinct corners of cells, in exact arithmetic.
    units, dim : int
        Units of the network; dimension of the domain.
    signs : int
        Conditions "this unit does not leave its piece", or "inside this side of the domain", that
        were decided at a corner of a cell.
    ties : int
        Those of them that hold with equality; each corner has two at least (1-D: one).
    area : Fraction
        Exact area of the domain in slice coordinates (1-D: length); the sum of the cells' where
        they tile it.
    rounding : float or None
        Largest distance on an axis of a float64 vertex of the partition from the exact one; None
        from `verify`, since a proof's file has no such vertices.
    domain : str
        The domain and its slice in words, rounded; `verify` compares it exactly.
    digest : str
        SHA-256 of the network's coefficients and of the domain.
    seconds : float
        Time that the proof took.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> certificate = cpwl.certify(partition)
    >>> certificate.cells, certificate.points, certificate.area
    (4, 9, Fraction(4, 1))
    """

    cells: int
    share: float
    points: int
    units: int
    dim: int
    signs: int
    ties: int
    area: Fraction
    rounding: float | None
    domain: str
    digest: str
    seconds: float
    _proof: Proof = field(repr=False, compare=False)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the proof as JSON, whole or not at all; `verify` proves it again from that file.

        About 15 bytes a cell and 0.17 more for each unit that changes its piece, 20 for each
        coefficient, or 6 to 11 for those of the convolutions of a large network, and 8 a unit.

        Raises
        ------
        FileNotFoundError
            The folder of `path` does not exist.
        """
        area = f"{self.area.numerator:x}/{self.area.denominator:x}"
        claims = {"cells": self.cells, "points": self.points, "area": area, "digest": self.digest}
        if self.share < 1:
            claims["partial"] = True
        file.write(self._proof, claims, path)

    def __str__(self) -> str:
        kind = "area" if self.dim == 2 else "length"
        place = f"the domain of {kind} {shown(self.area, 10**6)}, {self.domain}"
        said = f"tile {place}"
        if self.share < 1:
            said = f"cover {100 * self.share:.3g} % of {place}, and nothing is proven of the rest"
        return (
            f"proven: {self.cells:,} cells with {self.points:,} corners {said}; "
            f"{self.signs:,} exact signs, {self.seconds:.1f} s; {self.digest[:16]}"
        )


@denormals(all_threads=True)
def certify(partition: Partition, *, seconds: float = inf, progress: bool = True) -> Certificate:
    """Prove that a partition is exactly that of its network, from scratch.

    Parameters
    ----------
    partition : Partition
        In 1-D or 2-D, with its network.
    seconds : float
        Begin no further cell after this time. What was proven until then is certified, as many
        cells as that is, and `Certificate.share` is less than 1.
    progress : bool
        Show a progress bar over the cells on standard error.

    Returns
    -------
    Certificate

    Raises
    ------
    CertificateError
        The partition is not that of its network, or its arrays contradict each other; the message
        names the cell and says what was expected there.
    ValueError
        The partition has no network or more than two dimensions, or the network has more than
        `MOST_ENTRIES` coefficients up to its last units (a convolution's count once), numbers
        beyond float64's range, or a step that proofs do not have: use `cpwl.check`, which works in
        float64. Seconds below 0.

    Notes
    -----
    In exact arithmetic: every corner of every cell is where two of the cell's own knots (or sides
    of the domain) meet; every unit is on the piece that the pattern says at every corner; areas are
    positive; patterns are distinct, apart from units that lost a max-pooling match and so have no
    effect; areas sum to that of the domain. A unit that equals a breakpoint on a whole cell must be
    on the piece below it. Hence the cells tile the domain, and none is missing. Each facet
    separates the two cells that it names, along the whole of it, and lies on a knot of its unit;
    each vertex is within `ROUNDING` times the largest coordinate of the domain of the exact point.

    Takes 0.4 ms a cell for 2-20-20-20-3 and 0.8 ms for 2-64-64-64-3, on one core. A network that is
    too large for rational arithmetic is multiplied by remainders, in float64 without rounding: some
    150 forward passes a cell for 20 layers, less what cells in the order of their patterns share.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> print(cpwl.certify(partition))
    proven: 4 cells with 9 corners tile the domain of area 4, [-1, 1] x [-1, 1]; 96 exact ...
    """
    start = time.perf_counter()
    if not seconds >= 0:
        raise ValueError(
            f"Expected seconds of 0 or more, got {seconds}. Leave it out for all cells."
        )
    captured = require_network(partition)
    network, domain = read_provable(captured, partition.domain)
    if partition.status.stages != captured.num_stages:
        raise CertificateError(
            None,
            f"a partition by all {captured.num_stages} stages of its network",
            f"one by the first {partition.status.stages}",
            "Give subdivide more memory.",
        )
    if len(partition.unit_base) != captured.num_units:
        raise CertificateError(
            None, f"patterns of {captured.num_units} units", f"{len(partition.unit_base)}"
        )
    require_arrays(partition)
    require_incidence(partition, network)
    claims = Claims(partition, network)
    pieces = unpack(partition)
    sides: list[tuple[int, ...]] = [()] * len(pieces)

    def visit(number: int, cell: Cell, found: Sides) -> None:
        sides[number] = tuple(found.chosen)
        claims.visit(number, cell, found)

    with _in_range():
        proven = prove(
            network, domain, pieces, claims.choose, visit, seconds=seconds, progress=progress
        )
    require_corners(partition)
    cells = sorted(proven.cells)
    proof = Proof(network, domain, pieces[cells], tuple(sides[cell] for cell in cells))
    return _certificate(proof, proven, claims.largest, start)


def read_provable(network: Network, domain: Domain) -> tuple[ExactNetwork, ExactDomain]:
    """Return a network and a domain as proofs hold them, or raise ValueError: see `certify`."""
    exact = _read_domain(domain)
    return read_exactly(network, large=True), exact


def _read_domain(domain: Domain) -> ExactDomain:
    """Return a domain as proofs hold it."""
    if domain.dim not in (1, 2):
        raise ValueError(
            f"Expected a domain of one or two dimensions to certify, got {domain.dim}. Use "
            "cpwl.check, which works in float64."
        )
    place = domain.slice
    basis = place.basis.reshape(place.dim, -1)
    return ExactDomain(domain.exact_corners, place.origin.reshape(-1), basis)


@denormals(all_threads=True)
def verify(
    path: str | PathLike[str],
    network: Network | None = None,
    *,
    domain: Domain | None = None,
    progress: bool = True,
) -> Certificate:
    """Prove again what `Certificate.save` wrote.

    Parameters
    ----------
    path : str or path
        The JSON file. It is only read; nothing in it is trusted or run.
    network : Network, optional
        Require the proof to be about this network. Without it the proof holds for the network that
        the file describes, whatever that is.
    domain : Domain, optional
        Require the proof to be about this set of inputs, compared exactly: the coordinates of the
        slice may differ. Without it the proof holds for the domain that the certificate names.
    progress : bool
        Show a progress bar over the cells on standard error.

    Returns
    -------
    Certificate

    Raises
    ------
    CertificateError
        The proof does not hold, or is about another network or another domain.
    FileNotFoundError, ValueError
        There is no such file, or it is not a proof or a damaged one.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "proof.json")
    ...     cpwl.certify(partition).save(path)
    ...     cpwl.verify(path, network, domain=cpwl.box([-1, -1], [1, 1])).cells
    4
    """
    start = time.perf_counter()
    proof, claimed = file.read(path)

    def choose(number: int, cell: Cell) -> Sequence[int]:
        return proof.sides[number]

    def visit(number: int, cell: Cell, found: Sides) -> None:
        """Have nothing else to compare: the file claims no vertices and no facets."""

    if network is not None:
        _require_same(read_exactly(network, large=True), proof)
    if domain is not None and not same(_read_domain(domain), proof.domain):
        raise CertificateError(
            None,
            f"a proof about {in_words(_read_domain(domain))}",
            f"one about {in_words(proof.domain)}",
            "Give the domain that was certified, or certify this one.",
        )
    partial = claimed.pop("partial")
    with _in_range():
        proven = prove(
            proof.network, proof.domain, proof.pieces, choose, visit, partial=partial,
            progress=progress,
        )  # fmt: skip
    certificate = _certificate(proof, proven, None, start)
    for name, value in claimed.items():
        found = getattr(certificate, name)
        if found != value:
            said, got = (shown(x) if isinstance(x, Fraction) else str(x) for x in (value, found))
            raise CertificateError(
                None, f"{name} {said} as the file says", got,
                "The file was changed after it was written; certify again.",
            )  # fmt: skip
    return certificate


@contextmanager
def _in_range() -> Iterator[None]:
    """Say of numbers that float64 cannot tell the size of what they are."""
    try:
        yield
    except OverflowError as error:
        raise ValueError(
            f"Expected coefficients and a domain of which float64 holds the size, got larger ones "
            f"({error}). Scale them down; cpwl.check works in float64."
        ) from error


def _certificate(proof: Proof, proven: Proven, rounding: float | None, start: float) -> Certificate:
    """Put the results together."""
    cells, units = proof.pieces.shape
    return Certificate(
        cells=cells,
        share=proven.share,
        points=proven.points,
        units=units,
        dim=len(proof.domain.basis),
        signs=proven.signs,
        ties=proven.ties,
        area=proven.area,
        rounding=rounding,
        domain=in_words(proof.domain),
        digest=file.digest(proof.network, proof.domain),
        seconds=time.perf_counter() - start,
        _proof=proof,
    )


def _require_same(network: ExactNetwork, proof: Proof) -> None:
    """Raise unless the proof is about this network."""
    wanted, found = (file.digest(one, proof.domain) for one in (network, proof.network))
    if wanted != found:
        raise CertificateError(
            None,
            f"a proof about this network ({network.inputs} inputs, {network.units} units, digest "
            f"{wanted[:16]})",
            f"one about another ({proof.network.inputs} inputs, {proof.network.units} units, "
            f"digest {found[:16]})",
            "Give the model that was certified.",
        )
