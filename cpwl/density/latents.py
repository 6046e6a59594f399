"""Latent distributions on the domain, and what they give to every cell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from cpwl.arrays import Floats, Ints, magnitude, require_at_least
from cpwl.density.quadrature import integrate_gaussian, simplex_volumes
from cpwl.descriptors import volumes
from cpwl.domain import Slice
from cpwl.geometry import triangulate

if TYPE_CHECKING:
    from cpwl.partition import Partition


_FINEST = 1e-15  # relative error of a quadrature in float64
_AT_ONCE = 1024  # cells that are cut into simplices, of which a cell in 6-D has hundreds


@dataclass(frozen=True)
class Uniform:
    """A latent distributed uniformly over the domain.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.cell_masses(partition, cpwl.Uniform()).mass.tolist()
    [0.25, 0.25, 0.25, 0.25]
    """


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A Gaussian latent in slice coordinates, restricted to the domain.

    Parameters
    ----------
    mean : (P,) array_like
    covariance : (P, P) array_like
        Symmetric and positive definite. Both are copied, read-only.

    Raises
    ------
    ValueError
        Shapes that do not fit, or a covariance that is not positive definite.

    Examples
    --------
    >>> import cpwl
    >>> latent = cpwl.Gaussian.standard(cpwl.Slice.through([1, 1], [2, 1]))
    >>> latent.mean.tolist(), latent.covariance.tolist()
    ([-1.0], [[1.0]])
    """

    mean: Floats
    covariance: Floats

    def __post_init__(self) -> None:
        mean = np.array(self.mean, np.float64, ndmin=1)
        covariance = np.array(self.covariance, np.float64, ndmin=2)
        symmetric = covariance.shape == (len(mean), len(mean)) and np.allclose(
            covariance, covariance.T, rtol=1e-10, atol=0
        )
        if mean.ndim != 1 or not symmetric or not np.linalg.eigvalsh(covariance).min() > 0:
            raise ValueError(
                f"Expected a mean (P,) and a symmetric positive definite covariance (P, P), got "
                f"shapes {mean.shape} and {covariance.shape} with entries {covariance.tolist()}. "
                "Use Gaussian.standard(slice) for a standard normal latent."
            )
        for name, values in (("mean", mean), ("covariance", covariance)):
            values.setflags(write=False)
            object.__setattr__(self, name, values)

    @classmethod
    def standard(cls, place: Slice) -> Gaussian:
        """Return a standard normal latent of R^E, conditioned on lying in the slice."""
        flat = place.basis.reshape(place.dim, -1)
        covariance = np.linalg.inv(flat @ flat.T)
        return cls(-covariance @ (flat @ place.origin.ravel()), (covariance + covariance.T) / 2)


@dataclass(frozen=True, eq=False)
class Masses:
    """How the latent's probability and entropy are spread over the cells.

    Parameters
    ----------
    mass : (C,) float64 ndarray
        Probability of each cell; they sum to 1.
    entropy : (C,) float64 ndarray
        Differential entropy of the latent within each cell, in nats of slice coordinates.
    total : float
        Probability of the domain under the unrestricted latent (1 for the uniform).
    error : float
        Bound on the quadrature error of the sum of all masses and of the latent's entropy, by
        comparing two rules on every simplex; 0 for the uniform, where nothing is integrated.
    """

    mass: Floats
    entropy: Floats
    total: float
    error: float


def cell_masses(
    partition: Partition, latent: Uniform | Gaussian | None = None, *, tolerance: float = 1e-10
) -> Masses:
    """Return the latent's probability and entropy on every cell; needs no network.

    Parameters
    ----------
    partition : Partition
    latent : Uniform or Gaussian, optional
        Uniform by default.
    tolerance : float
        Relative error asked of the quadrature on each simplex (Gaussian only).

    Raises
    ------
    ValueError
        A Gaussian of another dimension or of more than two, or one without mass on the domain.

    Notes
    -----
    Cost: for the uniform that of `volumes`; for a Gaussian 85 densities for each triangle, and for
    each of its parts where it is quartered.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> masses = cpwl.cell_masses(partition, cpwl.Gaussian([0, 0], [[1, 0], [0, 1]]))
    >>> masses.mass.round(6).tolist(), round(masses.total, 6)
    ([0.25, 0.25, 0.25, 0.25], 0.466065)
    """
    require_at_least(_FINEST, tolerance, "tolerance", "Leave it out.")
    if not isinstance(latent, Gaussian):
        volume = volumes(partition)
        return Masses(volume / volume.sum(), log_or_minus_inf(volume), 1.0, 0.0)
    require_dimension(partition, latent)
    corners, cells = triangulate(partition, np.arange(partition.num_cells))
    found = integrate_gaussian(_whitened(latent, partition.points[corners]), tolerance)
    sums = np.zeros((partition.num_cells, 3))
    np.add.at(sums, cells, found)
    raw, log_part, error = sums.T
    total = float(raw.sum())
    if not total > 0:
        raise ValueError(
            "Expected a Gaussian with some mass on the domain, got none above float64's smallest "
            "number. Move the mean or the domain, or widen the covariance."
        )
    # log N(s) = log phi(x) - log det root, and within a cell the density is N / raw
    mean_log = (log_part - raw * _log_scale(latent)) / np.where(raw > 0, raw, 1.0)
    return Masses(raw / total, log_or_minus_inf(raw) - mean_log, total, float(error.sum()) / total)


def log_prior(partition: Partition, s: Floats, latent: Uniform | Gaussian | None = None) -> Floats:
    """Return the latent's log density at slice coordinates (n, P) inside the domain, (n,)."""
    if not isinstance(latent, Gaussian):
        return np.full(len(s), -math.log(partition.domain.volume))
    require_dimension(partition, latent)
    corners = partition.domain.corners
    fans = [corners] if partition.dim == 1 else []
    fans += [corners[[0, i, i + 1]] for i in range(1, len(corners) - 1)]
    mass, *_ = integrate_gaussian(_whitened(latent, np.stack(fans)), 1e-12).T
    square = np.square(_whitened(latent, s)).sum(axis=1)
    scale = partition.dim * math.log(2 * math.pi) / 2 + _log_scale(latent) + math.log(mass.sum())
    return -square / 2 - scale


def uniform_in_cells(partition: Partition, cells: Ints, generator: np.random.Generator) -> Floats:
    """Return a uniformly distributed point (n, P) of every cell (n,) in a list."""
    dim, exponent = partition.dim, magnitude(partition.points)
    bary = np.diff(np.sort(generator.random((len(cells), dim)), axis=1), prepend=0, append=1)
    share = generator.random(len(cells))
    points = np.empty((len(cells), dim))
    distinct, row = np.unique(cells, return_inverse=True)
    order = np.argsort(row, kind="stable")
    starts = np.searchsorted(row[order], np.arange(0, len(distinct) + _AT_ONCE, _AT_ONCE))
    for block, (first, last) in enumerate(pairwise(starts.tolist())):
        mine, low = order[first:last], block * _AT_ONCE
        corners, owner = triangulate(partition, distinct[low : low + _AT_ONCE])
        simplices = np.ldexp(partition.points[corners], -exponent)
        cumulated = np.concatenate([[0.0], np.cumsum(simplex_volumes(simplices))])
        # the range of cumulated volumes that belongs to each cell
        ends = cumulated[np.searchsorted(owner, np.arange(owner[-1] + 2))]
        below, above = ends[row[mine] - low], ends[row[mine] - low + 1]
        drawn = np.searchsorted(cumulated, below + share[mine] * (above - below), side="right") - 1
        # rounding may reach the next cell's first simplex
        drawn = np.minimum(drawn, np.searchsorted(owner, row[mine] - low, side="right") - 1)
        points[mine] = np.einsum("nk,nkp->np", bary[mine], simplices[drawn])
    return np.ldexp(points, exponent)


def require_dimension(partition: Partition, latent: Gaussian) -> None:
    """Raise unless the Gaussian lives in the partition's slice, which has one or two axes."""
    if len(latent.mean) != partition.dim:
        raise ValueError(
            f"Expected a Gaussian in {partition.dim} slice coordinates, got {len(latent.mean)}. "
            "Use Gaussian.standard(partition.domain.slice) for a standard normal latent."
        )
    if partition.dim > 2:
        raise ValueError(
            "Expected a domain of dimension 1 or 2 for a Gaussian latent, whose mass on the cells "
            f"is integrated numerically, got {partition.dim}. Use a uniform latent, or a slice."
        )


def _whitened(latent: Gaussian, s: Floats) -> Floats:
    """Return coordinates (..., P) in which the Gaussian is standard normal."""
    return (s - latent.mean) @ np.linalg.inv(np.linalg.cholesky(latent.covariance)).T


def _log_scale(latent: Gaussian) -> float:
    """Return half the log determinant of the covariance."""
    return float(np.log(np.diagonal(np.linalg.cholesky(latent.covariance))).sum())


def log_or_minus_inf(values: Floats) -> Floats:
    """Return the logarithm, -inf at 0 without a warning."""
    return np.log(values, out=np.full(len(values), -np.inf), where=values > 0)
