"""The check that a partition tiles its domain by the cells of its network, and its report.

`check` looks at the stored arrays and at the network only; it knows nothing of how they were made.
It works in float64 and finds what is wrong by more than rounding; `certify` proves what is right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from cpwl.arrays import denormals, magnitude, require_at_least
from cpwl.checks import network, plane, space
from cpwl.checks.counts import Arrangement, check_counts
from cpwl.checks.findings import Finding, Limits, Log, Tolerances
from cpwl.domain import Domain
from cpwl.errors import PartitionError
from cpwl.partition import Partition, require_partition

_TOLERANCES = Tolerances()
_LIMITS = Limits()


@dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    Attributes
    ----------
    points, facets, cells : int
    faces : tuple of P + 1 ints
        Faces of dimension 0..P: points, edges, ..., cells.
    euler : int
        Their alternating sum, 1 for a tiling of a convex domain.
    volume_error : float
        |sum of the cells' volumes - the domain's| / the domain's.
    smallest_volume : float
    flat_cells : int
        Cells so thin that rounding the corners can make or undo their volume. A correct partition
        may have some; float64 cannot tell them from cells that should not exist.
    continuity_error : float
        Largest difference of two neighbours' maps on their facet, relative to |A| e + |b|, with e
        the extent of the domain.
    output_error : float
        Largest difference of A z + b from the network at a cell's centre, on the same scale.
    knot_error : float
        Largest pre-activation, less the breakpoint, of a facet's units at its ends, in units of the
        network's bound on its rounding error.
    undecided : int
        Units within rounding error of a breakpoint at a sampled centre, on either piece of which
        the cell may then be.
    sampled_cells, sampled_facets : int
        How many the network was evaluated on.
    arrangement : Arrangement
        The knots of the first stage, and the numbers of cells and faces that Zaslavsky's and Buck's
        formulas give for them, or why they do not apply.
    findings : tuple of Finding
    tolerances : Tolerances
    """

    points: int
    facets: int
    cells: int
    faces: tuple[int, ...]
    euler: int
    volume_error: float
    smallest_volume: float
    flat_cells: int
    continuity_error: float
    output_error: float
    knot_error: float
    undecided: int
    sampled_cells: int
    sampled_facets: int
    arrangement: Arrangement
    findings: tuple[Finding, ...]
    tolerances: Tolerances

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not any(finding.failures for finding in self.findings)

    def require(self) -> CheckReport:
        """Return the report itself if it is `ok`.

        Raises
        ------
        PartitionError
            Naming every check that failed and the first place where it did.
        """
        failed = [finding for finding in self.findings if finding.failures]
        if failed:
            lines = "\n".join(
                f"  {one.name}: {one.failures} of {one.tested} fail, first {one.where}"
                for one in failed
            )
            raise PartitionError(
                f"Expected a partition of {self.cells} cells that passes all "
                f"{len(self.findings)} checks, got {len(failed)} that fail:\n{lines}\n"
                "If it was loaded or edited, see that network and arrays belong together and "
                "subdivide again; if it comes from subdivide, please report network and domain."
            )
        return self

    def __repr__(self) -> str:
        """Summarise: `print` shows the figures."""
        passed = sum(not finding.failures for finding in self.findings)
        return f"CheckReport({self.cells:,} cells, {passed} of {len(self.findings)} checks pass)"

    def __str__(self) -> str:
        figures = (
            ("cells, facets, points", f"{self.cells}, {self.facets}, {self.points}"),
            ("Euler characteristic", f"{self.euler} = {_alternating(self.faces)}"),
            ("volume error (relative)", f"{self.volume_error:.1e}"),
            ("smallest cell", f"{self.smallest_volume:.1e}"),
            ("flat cells", f"{self.flat_cells}"),
            ("continuity error (relative)", f"{self.continuity_error:.1e}"),
            ("output error (relative)", f"{self.output_error:.1e}"),
            ("knot error (rounding bounds)", f"{self.knot_error:.1e}"),
            ("undecided units", f"{self.undecided}"),
            ("sampled cells, facets", f"{self.sampled_cells}, {self.sampled_facets}"),
            ("Zaslavsky's and Buck's formulas", f"{self.arrangement}"),
        )
        width = 2 + max(len(name) for name in [*dict(figures), *(x.name for x in self.findings)])
        rows = [f"{name:<{width}}{value}" for name, value in figures]
        for one in self.findings:
            outcome = f"FAILS: {one.failures} of {one.tested}, first {one.where}"
            rows.append(f"{one.name:<{width}}{outcome if one.failures else 'ok'}")
        return "\n".join(rows)


def _geometry(p: Partition, log: Log, tolerances: Tolerances) -> tuple[float, float, int]:
    """Check the geometry at a size whose volumes float64 can hold."""
    kind = plane if p.dim <= 2 else space
    exponent = magnitude(p.points)
    tolerances = tolerances._replace(geometry=tolerances.geometry * network.coarseness(p.domain))
    if abs(exponent) < 64:
        return kind.check_geometry(p, log, tolerances)
    old, scale = p.domain, Fraction(2) ** -exponent
    exact = tuple(tuple(x * scale for x in point) for point in old.exact_corners)
    domain = Domain(np.ldexp(old.corners, -exponent), old.slice, exact, old.sides)
    scaled = replace(p, points=np.ldexp(p.points, -exponent), domain=domain)
    error, smallest, flat = kind.check_geometry(scaled, log, tolerances)
    with np.errstate(over="ignore", under="ignore"):
        return error, float(np.ldexp(smallest, p.dim * exponent)), flat


def _alternating(faces: tuple[int, ...]) -> str:
    """Write out the sum that the Euler characteristic is."""
    signs = [" - " if k % 2 else " + " for k in range(len(faces))]
    return "".join(f"{sign}{count}" for sign, count in zip(signs, faces, strict=True))[3:]


@denormals(all_threads=True)
def check(
    partition: Partition,
    *,
    samples: int = 512,
    generator: np.random.Generator | None = None,
    tolerances: Tolerances = _TOLERANCES,
    limits: Limits = _LIMITS,
) -> CheckReport:
    """Check a partition's combinatorics, geometry, patterns and maps.

    Parameters
    ----------
    partition : Partition
        Without a network, or if it is incomplete, only its arrays are checked.
    samples : int
        Cells and facets that the network is evaluated on; all of them if there are no more.
        Everything that needs no evaluation is always checked completely.
    generator : numpy.random.Generator, optional
        Chooses the sample; by default one with a fixed seed, so that reports are reproducible.
    tolerances : Tolerances
        How far floating-point figures may be off; kept in the report.
    limits : Limits
        How much is worked on at a time.

    Returns
    -------
    CheckReport
        Never raises for a bad partition; `check(partition).require()` does.

    Notes
    -----
    Convex cells with closed surfaces that are glued in pairs along facets, on opposite sides of
    them, and whose outer facets cover the domain's boundary once, cover every point of it exactly
    once: the number of cells over a point is the winding number of the boundary. The Euler
    characteristic tells that no vertex is doubled. Distinct patterns, right at the centres, then
    make the tiles the cells of the network.

    Measured on 269,845 cells of 2-256-256-256-3: 0.4 s for the arrays and 0.15 s for the sample,
    which is two forward passes a stage and P + 1 for the maps.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> report = cpwl.check(partition)
    >>> report.ok, report.faces, report.euler
    (True, (9, 12, 4), 1)
    """
    require_partition(partition)
    require_at_least(0, samples, "samples", "Leave it out for 512.", whole=True)
    for name, value in tolerances._asdict().items():
        require_at_least(0, value, f"the tolerance of {name}", "Leave it out.")
    for name, value in limits._asdict().items():
        require_at_least(1, value, f"the limit of {name}", "Leave it out.", whole=True)
    p = partition
    log = Log(p, limits)
    none = math.nan
    faces, euler, volumes = (), 0, (none, none, 0)
    arrangement = Arrangement("its arrays do not fit each other")
    knot_error = continuity = output = none
    undecided, facets, cells = 0, np.empty(0, np.int64), np.empty(0, np.int64)
    if plane.indices_fit(p, log):
        kind = plane if p.dim <= 2 else space
        faces = space.face_counts(p)
        euler = kind.check_incidence(p, log)
        volumes = _geometry(p, log, tolerances)
        plane.check_distinct(p, log)
        arrangement = check_counts(p, log)
        others = plane.check_differences(p, log)
        if p.network is not None and p.status.complete:
            random = np.random.default_rng(0) if generator is None else generator
            facets = network.sample_facets(p, others, samples, random)
            cells = network.choose(np.arange(p.num_cells), samples, random)
            knot_error = network.check_knots(p, facets, others, log, tolerances)
            continuity = network.check_continuity(p, facets, log, tolerances)
            output, undecided = network.check_centres(p, cells, log, tolerances)
    error, smallest, flat = volumes
    return CheckReport(
        points=len(p.points),
        facets=p.num_facets,
        cells=p.num_cells,
        faces=faces,
        euler=euler,
        volume_error=error,
        smallest_volume=smallest,
        flat_cells=flat,
        continuity_error=continuity,
        output_error=output,
        knot_error=knot_error,
        undecided=undecided,
        sampled_cells=len(cells),
        sampled_facets=len(facets),
        arrangement=arrangement,
        findings=tuple(log.findings),
        tolerances=tolerances,
    )
