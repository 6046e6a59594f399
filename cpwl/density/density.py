"""Densities, entropies and exact samples of the output for a uniform or Gaussian latent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cpwl.affine import evaluate
from cpwl.arrays import Floats, Ints
from cpwl.density.latents import (
    Gaussian,
    Uniform,
    cell_masses,
    log_or_minus_inf,
    log_prior,
    uniform_in_cells,
)
from cpwl.density.overlaps import Overlap, overlap
from cpwl.descriptors import Spectrum, image_volumes, local_scaling, spectrum, volumes
from cpwl.dual import locate

if TYPE_CHECKING:
    from cpwl.partition import Partition


@dataclass(frozen=True, eq=False)
class Entropy:
    """Differential entropy of the output G(z), in nats, per P-dimensional volume of the image.

    Parameters
    ----------
    value : float
        h(z) + sum of mass * psi. The entropy where cells' images do not overlap, an upper bound
        on it where they do; -inf where a cell of positive mass is squeezed (rank below P).
    regular : float
        The same, given that the latent lies in a cell of rank P; equal to `value` where none is
        squeezed, -inf where all are.
    error : float
        Bound on the error of quadrature.
    latent : float
        h(z), the latent's own entropy on the domain.
    conditional : (C,) float64 ndarray
        Entropy of the output within each cell.
    mass : (C,) float64 ndarray
        Probability of each cell.
    squeezed : float
        Probability of the cells of rank below P.
    overlap : Overlap
        Whether cells' images overlap, as far as that can be decided.
    """

    value: float
    regular: float
    error: float
    latent: float
    conditional: Floats
    mass: Floats
    squeezed: float
    overlap: Overlap


@dataclass(frozen=True)
class ImageVolume:
    """Total P-dimensional volume of the image, counted once per preimage.

    Parameters
    ----------
    value : float
        Sum of the cells' image volumes; the volume of the image itself where they do not overlap.
    overlap : Overlap
        Whether cells' images overlap, as far as that can be decided, and how many cells are
        squeezed to rank below P and add no volume.
    """

    value: float
    overlap: Overlap


@dataclass(frozen=True, eq=False)
class ImageSample:
    """Independent samples on the learned manifold.

    Parameters
    ----------
    points : (n, P) float64 ndarray
        Slice coordinates.
    cells : (n,) int64 ndarray
        Cell of each.
    outputs : (n, D) float64 ndarray
        G there, flattened.
    rho : float
        The exponent of exp(psi) in the cells' weights.
    excluded : float
        Share of the domain's volume in cells that were left out for their rank below P.
    """

    points: Floats
    cells: Ints
    outputs: Floats
    rho: float
    excluded: float


def log_density(
    partition: Partition,
    points: ArrayLike | None = None,
    latent: Uniform | Gaussian | None = None,
    *,
    source: Spectrum | None = None,
) -> Floats:
    """Return the log density of the output on the cells' images, or at the images of points.

    Parameters
    ----------
    partition : Partition
        With its network.
    points : (n, P) array_like, optional
        Slice coordinates s; the density is that at G(s). Without points, one entry per cell: for
        a uniform latent the density is constant on a cell's image.
    latent : Uniform or Gaussian, optional
        Uniform by default.
    source : Spectrum, optional
        `spectrum(partition)`, where it is at hand.

    Returns
    -------
    (C,) or (n,) float64 ndarray
        log p(s) - psi, per P-dimensional volume of the image. +inf on a squeezed cell, whose mass
        lies on a set of volume zero; -inf outside the domain. Where images of cells overlap this
        is the share of the one preimage s; the full density is the sum over all of them.

    Raises
    ------
    ValueError
        A Gaussian latent without points, or points of the wrong shape.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.log_density(partition).round(4).tolist()
    [0.0, -0.6931, -1.3863, -0.6931]
    >>> cpwl.log_density(partition, [[0.5, 0.5], [5, 5]]).round(4).tolist()
    [-1.3863, -inf]
    """
    given = spectrum(partition) if source is None else source
    loss = np.where(given.rank < partition.dim, -np.inf, local_scaling(given))
    if points is None:
        if isinstance(latent, Gaussian):
            raise ValueError(
                "Expected points for a Gaussian latent, whose density varies within a cell, got "
                "none. Give slice coordinates (n, P), or use a uniform latent."
            )
        return -loss - math.log(partition.domain.volume)
    cells = locate(partition, points)
    prior = log_prior(partition, np.asarray(points, np.float64), latent)
    return np.where(cells < 0, -np.inf, prior - loss[cells])


def entropy_difference(source: Partition | Spectrum, first: ArrayLike, second: ArrayLike) -> Floats:
    """Return psi[first] - psi[second]: by how much the output is more spread out on one cell.

    The difference of minus the log density, and of the conditional entropies of two sets of equal
    latent volume within the cells; `entropy(...).conditional` compares whole cells.

    Parameters
    ----------
    source : Partition or Spectrum
        With its network, or `spectrum(partition)`.
    first, second : (n,) array_like of int
        Cells, pair by pair.

    Returns
    -------
    (n,) float64 ndarray
        In nats.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.entropy_difference(partition, [2, 1], [0, 3]).round(4).tolist()
    [1.3863, 0.0]
    """
    psi = local_scaling(source)
    return psi[np.asarray(first)] - psi[np.asarray(second)]


def entropy(
    partition: Partition,
    latent: Uniform | Gaussian | None = None,
    *,
    source: Spectrum | None = None,
    tolerance: float = 1e-10,
) -> Entropy:
    """Return the differential entropy of the output, h(z) + sum of mass * psi, in nats.

    Parameters
    ----------
    partition : Partition
        With its network.
    latent : Uniform or Gaussian, optional
        Uniform by default; h(z) is then the log volume of the domain.
    source : Spectrum, optional
        `spectrum(partition)`, where it is at hand.
    tolerance : float
        Of the quadrature, see `cell_masses`.

    Raises
    ------
    ValueError, PartitionError
        As for `cell_masses` and `affine_maps`.

    Notes
    -----
    The change of variables within a cell and the chain rule over the cells. Cost: one pass over
    the maps for psi, and another one for `overlap`.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> found = cpwl.entropy(partition)  # log 4, and the mean of psi is -log 2
    >>> round(found.value, 4), round(found.latent, 4), found.overlap.injective
    (0.6931, 1.3863, 'yes')
    """
    given = spectrum(partition) if source is None else source
    masses = cell_masses(partition, latent, tolerance=tolerance)
    lost = given.rank < partition.dim
    psi = np.where(lost, -np.inf, local_scaling(given))
    held = masses.mass > 0
    # chain rule: h(z) = H(cell) + sum of mass * h(z | cell)
    spread = np.where(held, masses.entropy - log_or_minus_inf(masses.mass), 0.0)
    own = float(masses.mass @ spread)
    squeezed = float(masses.mass[lost].sum())
    share = np.where(lost, 0.0, masses.mass)
    rest = float(share.sum())
    regular = -math.inf
    if rest > 0:
        # p / rest is the density given that the cell is regular
        regular = float(share @ (spread + np.where(lost, 0.0, psi))) / rest + math.log(rest)
    error = masses.error * (1 + float(np.abs(psi[held & ~lost]).max(initial=0.0)))
    return Entropy(
        value=-math.inf if squeezed > 0 else regular,
        regular=regular,
        error=error,
        latent=own,
        conditional=masses.entropy + psi,
        mass=masses.mass,
        squeezed=squeezed,
        overlap=overlap(partition),
    )


def total_image_volume(partition: Partition, *, source: Spectrum | None = None) -> ImageVolume:
    """Return the exact total volume of the image and whether parts of it are counted twice.

    Parameters
    ----------
    partition : Partition
        With its network.
    source : Spectrum, optional
        `spectrum(partition)`, where it is at hand.

    Raises
    ------
    ValueError, PartitionError
        As for `image_volumes` and `affine_maps`.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.total_image_volume(partition).value  # the square from -1/2 to 1
    2.25
    """
    given = spectrum(partition) if source is None else source
    total = float(image_volumes(partition, given).sum())
    return ImageVolume(total, overlap(partition))


def sample_image(
    partition: Partition,
    n: int,
    generator: np.random.Generator,
    *,
    rho: float = 1.0,
    source: Spectrum | None = None,
) -> ImageSample:
    """Draw exact samples on the learned manifold.

    Parameters
    ----------
    partition : Partition
        With its network.
    n : int
        How many.
    generator : numpy.random.Generator
        The only source of randomness: numpy.random.default_rng(seed).
    rho : float
        A cell has probability proportional to volume * exp(rho psi), a point is uniform in its
        cell. 1: uniform on the image (each point counted once per preimage). 0: uniform latents.
        Above 1 prefers stretched parts of the image, below 0 contracted ones.
    source : Spectrum, optional
        `spectrum(partition)`, where it is at hand.

    Returns
    -------
    ImageSample
        Cells of rank below P have no image volume: for rho != 0 they are left out, and `excluded`
        says how much of the domain that is.

    Raises
    ------
    ValueError
        A generator of another kind, a negative n, or no cell left to draw from.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> import numpy
    >>> sample = cpwl.sample_image(partition, 3, numpy.random.default_rng(0))
    >>> sample.cells.tolist(), sample.outputs.shape
    ([2, 1, 0], (3, 2))
    """
    if not isinstance(generator, np.random.Generator) or n < 0 or not math.isfinite(rho):
        raise ValueError(
            "Expected n >= 0, a numpy.random.Generator and a finite rho, got "
            f"{n}, {type(generator).__name__}, {rho}. Pass numpy.random.default_rng(seed)."
        )
    given = spectrum(partition) if source is None else source
    volume = volumes(partition)
    lost = (given.rank < partition.dim) & (rho != 0)
    excluded = float(volume[lost].sum() / volume.sum())
    if lost.all():
        raise ValueError(
            f"Expected cells of rank {partition.dim} to draw from, got none among "
            f"{partition.num_cells}: the image has no volume. Use rho=0 for uniform latents."
        )
    psi = rho * local_scaling(given)
    psi -= psi[~lost].max()  # exp of a large sum would overflow
    weight = np.where(lost, 0.0, np.exp(np.minimum(psi, 0.0)))
    cumulated = np.cumsum(weight * volume)
    # side="right" never lands on a cell of weight zero
    cells = np.searchsorted(cumulated, generator.random(n) * cumulated[-1], side="right")
    cells = np.minimum(cells, np.searchsorted(cumulated, cumulated[-1]))
    points = uniform_in_cells(partition, cells, generator)
    return ImageSample(points, cells, evaluate(partition, points), float(rho), excluded)
