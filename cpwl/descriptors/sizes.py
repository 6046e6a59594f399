"""Sizes and centres of cells, and the sizes of their images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cpwl.arrays import Floats, magnitude
from cpwl.descriptors.spectra import Spectrum, local_scaling, require_slice, spectrum
from cpwl.geometry import Measures, levels, measures
from cpwl.partition import require_partition

if TYPE_CHECKING:
    from cpwl.partition import Partition


def volumes(partition: Partition) -> Floats:
    """Return the length, area or volume of every cell in slice coordinates, (C,).

    Summed from terms of one sign whose coordinates are differences from a vertex of the cell
    itself, so that a small cell far from the origin loses nothing to cancellation. Needs no
    network. Cost: one measurement of every face of every dimension.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.volumes(partition).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    require_partition(partition)
    exponent = magnitude(partition.points)
    minors = _cells(partition, exponent).minors[:, 0]
    with np.errstate(over="ignore", under="ignore"):  # 0 or inf where float64 has no such number
        return np.ldexp(np.abs(minors), partition.dim * exponent)


def centroids(partition: Partition) -> Floats:
    """Return the centre of mass of every cell in slice coordinates, (C, P).

    Exact up to rounding, and inside the cell; needs no network. Cost: as for `volumes`.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.centroids(partition).tolist()
    [[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]
    """
    require_partition(partition)
    exponent = magnitude(partition.points)
    return np.ldexp(_cells(partition, exponent).centroid, exponent)


def _cells(partition: Partition, exponent: int) -> Measures:
    """Return the measures of the cells with coordinates divided by 2^exponent."""
    *_, last = measures(np.ldexp(partition.points, -exponent), levels(partition))
    return last


def image_volumes(
    partition: Partition, source: Spectrum | None = None, *, tolerance: float | None = None
) -> Floats:
    """Return the P-dimensional volume of each cell's image, volume * exp(psi), (C,).

    Parameters
    ----------
    partition : Partition
        With its network, unless `source` is given.
    source : Spectrum, optional
        `spectrum(partition)` with respect to the slice.
    tolerance : float, optional
        As for `spectrum`.

    Raises
    ------
    ValueError
        A `source` of other cells or of other coordinates, or neither a network nor a `source`.

    Notes
    -----
    0 where the rank is below P: such a cell is squeezed into fewer dimensions, although its psi,
    a sum over the non-zero singular values, is finite.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.image_volumes(partition).round(12).tolist()
    [0.25, 0.5, 1.0, 0.5]
    """
    given = spectrum(partition, tolerance=tolerance) if source is None else source
    require_slice(partition, given)
    scale = np.where(given.rank == partition.dim, np.exp(local_scaling(given)), 0.0)
    return volumes(partition) * scale
