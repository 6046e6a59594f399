r"""Measurement of local complexity: knots counted by `approx`, against enumerated ones.

V_z = {z + sum_p c_p b_p : sum_p |c_p| < r} for P orthonormal directions b_p. Let h_j be what enters
unit j, and t its breakpoint. The criterion of `approx.knots` ("jvp") says that the knot h_j = t
meets V_z if |h_j(z) - t| < r max_p |dh_j/db_p|, derivatives taken at z; "hull" compares pieces at
the 2 P vertices of V_z.

**Theorem.** Let m_j be the largest of max_p |dh_j/db_p| over all cells in V_z. If for every unit j

1. no knot of an earlier stage meets V_z, or
2. \|h_j(z) - t\| > r m_j, or h_j is constant on V_z,

then jvp and hull count exactly the knots that meet V_z.

*Proof.* 1. h_j is affine on V_z. An affine function's range on V_z is the open interval of half
length r max_p |dh_j/db_p| around h_j(z), and the ends are its values at two vertices: both criteria
are true if and only if t is in it. 2. |h_j(x) - h_j(z)| <= r m_j on V_z, so t is not met; jvp
says so since its derivatives are among those in m_j, and hull since no vertex is beyond t.
For a window of a max-pooling the same holds of the differences of its candidates (only 1 is looked
at). In particular units of the first stage are counted exactly at any radius, and a network with
one layer of units has no other.

Both hypotheses are checked on the exact side alone: they fail from the radius on where a knot and a
deeper one, which bends at it, come to lie in one V_z.

**Cells.** If no knot folds in V_z (each lies in one hyperplane), n knots are n hyperplanes, or
parts of them, and V_z has at most sum_{i <= P} C(n, i) cells (T. Zaslavsky, "Facing up to
arrangements", 1975). With folds it may have more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

import approx
import cpwl
from bridges.validation.complexity.neighbourhoods import (
    NOT_ENUMERATED,
    Neighbourhood,
    neighbourhood,
    structure,
    zaslavsky,
)
from bridges.validation.complexity.planting import float32_values, near_knots
from bridges.validation.complexity.result import Complexity
from bridges.validation.complexity.rows import rows_of
from bridges.validation.subject import Subject, uniform
from cpwl.arrays import Floats

METHODS: Mapping[str, tuple[Literal["jvp", "hull"], torch.dtype]] = {
    "jvp float64": ("jvp", torch.float64),
    "hull float64": ("hull", torch.float64),
    "jvp float32": ("jvp", torch.float32),
    "hull float32": ("hull", torch.float32),
}

_MEMORY = 2**30  # bytes that the enumeration of one neighbourhood may take
_SMALLEST = 1e-6  # radius
_UNITS = 500  # of a network that `most_cells` is affordable with
_FEWEST = 100  # cells that always are


def measure(
    subject: Subject,
    *,
    radius: float = 1e-5,
    directions: Sequence[int] = (1, 2, 4),
    radii: Sequence[float] | None = None,
    latents: int = 24,
    most_cells: int = 20_000,
    seed: int = 0,
) -> Complexity:
    """Count knots with `approx`, and knots and cells exactly, over radii and dimensions.

    Parameters
    ----------
    subject : Subject
        With a network and its partition.
    radius : float
        The radius that knots are meant to be counted at: agreement is claimed there.
    directions : sequence of int
        P, up to 6; those larger than the latent are left out, and a row says so. The directions are
        drawn once for each P, uniformly (Haar), and shared by all latents.
    radii : sequence of float, optional
        Radii swept besides `radius`; by default from 1e-6 to half the diameter of the domain, one
        in a decade, and two in the last three.
    latents : int
        At each radius: half of them uniform over the domain, half near a knot.
    most_cells : int
        Neighbourhoods with more cells are not enumerated, judged beforehand by Zaslavsky's bound
        for the knots that jvp or hull counts. As work grows with the units, networks of u > 500 are
        given 500 / u of it; so is, in P > 2, where it takes rational arithmetic, a tenth.
    seed : int
        Of latents and directions.

    Returns
    -------
    Complexity

    Raises
    ------
    ValueError
        A subject without a partition, a radius that is not positive, fewer than two latents, or
        directions below 1 or above 6.

    Notes
    -----
    Claimed at `radius`, for each P: jvp and hull in float64 count the exact knots at every latent
    (the theorem above says where they must; where its hypotheses fail, the radius is too large
    for the proxy); their Zaslavsky bound is one; float32's miscounts are within the undecided
    units that it reports itself, at 99 % of latents, up to three standard errors. Over all P and
    radii: equality wherever the theorem holds, and Zaslavsky's bound wherever nothing folds.

    Cost: `latents` enumerations for each P and radius, of some 15 ms for a small network with few
    cells in V_z.
    """
    _check(subject, radius, directions, radii, latents)
    network = subject.network
    assert network is not None
    used = tuple(P for P in directions if subject.latent_size >= P and network.num_units)
    if used:
        rng = np.random.default_rng(seed)
        swept = _radii(subject, radius, radii)
        result = _counted(subject, used, radius, swept, latents, most_cells, rng)
    else:
        result = _nothing(subject, radius, network.num_units)
    left_out = tuple(P for P in directions if subject.latent_size < P)
    result = replace(result, left_out=left_out)
    return replace(result, rows=rows_of(result))


def _counted(
    subject: Subject,
    directions: tuple[int, ...],
    radius: float,
    radii: list[float],
    latents: int,
    most_cells: int,
    rng: np.random.Generator,
) -> Complexity:
    """Count at latents drawn anew for every P and radius, but for the uniform ones."""
    network = subject.network
    assert network is not None
    bases = [_basis(subject, P, rng) for P in directions]
    fixed = float32_values(uniform(subject, latents - latents // 2, rng).z.numpy())
    units = structure(network)

    shape = (len(directions), len(radii), latents)
    z = np.empty((*shape, *subject.latent_shape))
    counts = {name: np.empty(shape, np.int64) for name in METHODS}
    undecided = np.empty(shape, np.int64)
    found: list[Neighbourhood] = []
    for q, r in np.ndindex(shape[:2]):
        z[q, r] = _latents(subject, fixed, bases[q], radii[r], latents, rng)
        for name in METHODS:
            estimate = _estimate(subject, z[q, r], bases[q], radii[r], name)
            counts[name][q, r] = estimate.count.numpy()
            if name == "jvp float32":
                undecided[q, r] = estimate.undecided.numpy()
        most = np.maximum(counts["jvp float64"][q, r], counts["hull float64"][q, r])
        for one, knots in zip(z[q, r], most.tolist(), strict=True):
            expected = zaslavsky(knots, directions[q])
            if expected > _affordable(most_cells, network.num_units, directions[q]):
                found.append(NOT_ENUMERATED)
            else:
                found.append(neighbourhood(network, units, one, radii[r], bases[q], _MEMORY))
    cells, knots, folds, first, proven = (
        np.array(column).reshape(shape) for column in zip(*found, strict=True)
    )
    return Complexity(
        radius=radius,
        radii=np.array(radii),
        directions=directions,
        planted=np.arange(latents) >= len(fixed),
        z=z,
        cells=cells,
        knots=knots,
        folds=folds,
        proven=proven,
        fold_radius=np.fmin.reduce(first[:, :, : len(fixed)], axis=1),
        counts=counts,
        undecided=undecided,
        units=network.num_units,
    )


def _nothing(subject: Subject, radius: float, units: int) -> Complexity:
    """Return the result for a network without knots, or latents with too few coordinates."""
    none = np.zeros((0, 0, 0), np.int64)
    return Complexity(
        radius=radius,
        radii=np.zeros(0),
        directions=(),
        planted=np.zeros(0, bool),
        z=np.zeros((0, 0, 0, *subject.latent_shape)),
        cells=none,
        knots=none,
        folds=none,
        proven=none > 0,
        fold_radius=np.zeros((0, 0)),
        counts=dict.fromkeys(METHODS, none),
        undecided=none,
        units=units,
    )


def _check(
    subject: Subject,
    radius: float,
    directions: Sequence[int],
    radii: Sequence[float] | None,
    latents: int,
) -> None:
    """Refuse arguments that nothing can be measured with."""
    if subject.network is None or subject.partition is None:
        raise ValueError(
            "Expected a subject with a network and its partition, got one without: the exact knots "
            "of a network that is not piecewise linear are not known. Leave this section out."
        )
    for value in (radius, *(() if radii is None else radii)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(
                f"Expected positive radii, got {value}: give lengths in units of the latents."
            )
    if not directions or not all(1 <= P <= cpwl.domain.MAX_DIM for P in directions):
        raise ValueError(
            f"Expected directions between 1 and {cpwl.domain.MAX_DIM}, got {tuple(directions)}: "
            "neighbourhoods of more dimensions are not enumerated."
        )
    if latents < 2:
        raise ValueError(
            f"Expected at least 2 latents, got {latents}: half of them are near knots."
        )


def _radii(subject: Subject, radius: float, radii: Sequence[float] | None) -> list[float]:
    """List the radii swept, ascending, with the one that agreement is claimed at among them."""
    if radii is None:
        corners = subject.domain.slice.embed(subject.domain.corners).reshape(
            len(subject.domain.corners), -1
        )
        size = float(np.linalg.norm(corners[:, None] - corners, axis=-1).max()) / 2
        steps = np.arange(math.ceil(2 * math.log10(size / _SMALLEST)) - 1)
        swept = _SMALLEST * 10.0 ** (steps / 2)
        radii = [*swept[(steps % 2 == 0) | (swept > 1e-3 * size)].tolist(), size]
    # a radius that is the declared one up to rounding is that one
    return sorted([radius, *(float(r) for r in radii if not math.isclose(r, radius))])


def _basis(subject: Subject, P: int, rng: np.random.Generator) -> Floats:
    """Draw P orthonormal directions (P, *latent)."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    drawn = approx.neighbourhood(subject.latent_shape, P, generator)
    return drawn.numpy().reshape(P, *subject.latent_shape)


def _latents(
    subject: Subject, fixed: Floats, basis: Floats, radius: float, n: int, rng: np.random.Generator
) -> Floats:
    """Put latents near knots beside the fixed ones; uniform ones where there are no knots."""
    assert subject.partition is not None
    if bool((subject.partition.facet_unit < 0).all()):
        others = float32_values(uniform(subject, n - len(fixed), rng).z.numpy())
    else:
        others = near_knots(subject, basis, radius, n - len(fixed), rng)
    return np.concatenate([fixed, others])


def _estimate(subject: Subject, z: Floats, basis: Floats, radius: float, name: str) -> approx.Knots:
    """Count with one method in one precision."""
    method, dtype = METHODS[name]
    return approx.knots(
        subject.decoder, torch.from_numpy(z).to(dtype), radius=radius,
        directions=torch.from_numpy(basis), method=method, dtype=dtype,
    )  # fmt: skip


def _affordable(most_cells: int, units: int, P: int) -> int:
    """Return how many cells may be enumerated in one neighbourhood."""
    share = min(1.0, _UNITS / units) * (1.0 if P <= 2 else 0.1)
    return max(_FEWEST, int(most_cells * share))
