"""Singular values of the cells' maps; psi, nu, rank and condition number from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cpwl.affine import num_outputs, over_maps
from cpwl.arrays import EPS, Floats, Ints, require_at_least
from cpwl.descriptors.small_matrices import norms, two_singular_values
from cpwl.partition import require_network

if TYPE_CHECKING:
    from cpwl.partition import Partition


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of the cells' maps, with the decision which of them are zero.

    Parameters
    ----------
    singular_values : (C, k) float64 ndarray
        Descending, as computed (those decided to be zero included); k = min(D, P) or min(D, E).
    rank : (C,) int64 ndarray
        How many of them are not zero: sigma > tolerance * sigma_1.
    tolerance : float
        Relative to sigma_1 of the same cell.
    wrt : {"slice", "latent"}
        Coordinates that the maps start from.
    directions : int
        The number of those coordinates, P or E.
    """

    singular_values: Floats
    rank: Ints
    tolerance: float
    wrt: str
    directions: int

    def __repr__(self) -> str:
        """Summarise: there is a row for each cell."""
        cells, count = self.singular_values.shape
        return f"Spectrum({cells:,} cells, {count} singular values each, wrt={self.wrt!r})"

    @property
    def dropped(self) -> Ints:
        """How many singular values of each cell were decided to be zero, (C,)."""
        return self.singular_values.shape[1] - self.rank


def spectrum(
    partition: Partition,
    cells: ArrayLike | slice | None = None,
    *,
    wrt: str = "slice",
    tolerance: float | None = None,
) -> Spectrum:
    """Return the singular values of every cell's affine map; one pass serves all descriptors.

    Parameters
    ----------
    partition : Partition
        With its network.
    cells : (n,) index array, mask or slice, optional
        All cells by default.
    wrt : {"slice", "latent"}
        Coordinates that the maps start from.
    tolerance : float, optional
        A singular value at most this times the cell's largest counts as zero. By default
        n * eps, as in numpy.linalg.matrix_rank, where n is the longest axis of any factor of A:
        the largest of the numbers of outputs, latents and units in one stage.

    Raises
    ------
    ValueError, PartitionError
        As for `affine_maps`.

    Notes
    -----
    matrix_rank takes n = max(A.shape), the rounding error of a matrix that was rounded once. A is
    a product: of 4000 maps 2-256-256-256-3 that pass through a single live unit, of rank 1 in
    exact arithmetic, that rule calls 153 rank 2 (sigma_2 / sigma_1 up to 3.4e-15, against
    3 eps = 6.7e-16), and their psi is then the logarithm of rounding noise. 256 eps = 5.7e-14
    calls none.

    Cost: `affine_maps` plus O(D) per cell for P <= 2. The condition number is not squared: A is
    reduced by an orthogonal factorisation to a small triangle, whose singular values are taken.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> found = cpwl.spectrum(partition)
    >>> found.singular_values.tolist()
    [[0.5, 0.5], [1.0, 0.5], [1.0, 1.0], [1.0, 0.5]]
    >>> found.rank.tolist(), found.dropped.tolist()
    ([2, 2, 2, 2], [0, 0, 0, 0])
    """
    if tolerance is not None:
        require_at_least(0, tolerance, "tolerance", "Leave it out.")
    (values,) = over_maps(partition, singular_values, cells=cells, wrt=wrt)
    return spectrum_of(partition, values, wrt=wrt, tolerance=tolerance)


def spectrum_of(
    partition: Partition, values: Floats, *, wrt: str = "slice", tolerance: float | None = None
) -> Spectrum:
    """Decide which of the cells' singular values (C, k) are zero."""
    latents = partition.domain.slice.origin.size
    directions = partition.dim if wrt == "slice" else latents
    if tolerance is None:
        stages = np.diff(np.asarray(require_network(partition).stage_offsets))
        longest = max(num_outputs(partition), latents, int(stages.max(initial=0)))
        tolerance = longest * EPS
    rank = (values > tolerance * values[:, :1]).sum(axis=1)
    return Spectrum(values, rank, float(tolerance), wrt, directions)


def rank(
    source: Partition | Spectrum, *, wrt: str = "slice", tolerance: float | None = None
) -> Ints:
    """Return the rank of each cell's map, (C,) int64, as `spectrum` decides it."""
    return _spectrum(source, wrt, tolerance).rank


def local_scaling(
    source: Partition | Spectrum, *, wrt: str = "slice", tolerance: float | None = None
) -> Floats:
    """Return psi = sum of log sigma_i over the non-zero singular values, (C,).

    Parameters
    ----------
    source : Partition or Spectrum
        A `spectrum` saves the pass over the maps when several descriptors are wanted.
    wrt, tolerance
        As for `spectrum`; not used where a Spectrum is given.

    Notes
    -----
    log sqrt det(A^T A) at full column rank; 0, the empty sum, for a constant map. How many
    singular values were dropped is in `spectrum(...).dropped`.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.local_scaling(partition).round(4).tolist()
    [-1.3863, -0.6931, 0.0, -0.6931]
    """
    given = _spectrum(source, wrt, tolerance)
    return np.log(_kept(given, fill=1.0)).sum(axis=1)


def local_rank(
    source: Partition | Spectrum, *, wrt: str = "slice", tolerance: float | None = None
) -> Floats:
    """Return nu = exp(-sum alpha_i log alpha_i), alpha_i = sigma_i / sum sigma + 1e-30, (C,).

    The effective rank of Roy and Vetterli (2007). Between 1 and the rank; 0 for a constant map,
    where the alpha_i do not exist. Arguments as for `local_scaling`.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.local_rank(partition).round(4).tolist()
    [2.0, 1.8899, 2.0, 1.8899]
    """
    given = _spectrum(source, wrt, tolerance)
    values = _kept(given, fill=0.0)
    total = values.sum(axis=1, keepdims=True)
    alpha = values / np.where(total > 0, total, 1.0) + 1e-30
    return np.where(given.rank > 0, np.exp(-(alpha * np.log(alpha)).sum(axis=1)), 0.0)


def condition_number(
    source: Partition | Spectrum, *, wrt: str = "slice", tolerance: float | None = None
) -> Floats:
    """Return sigma_1 / sigma_k, (C,); inf where a singular value is zero.

    Arguments as for `local_scaling`. A map with fewer outputs than coordinates is measured by its
    k = D singular values.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.condition_number(partition).tolist()
    [1.0, 2.0, 1.0, 2.0]
    """
    given = _spectrum(source, wrt, tolerance)
    values = given.singular_values
    full = given.rank == values.shape[1]
    ratio = values[:, 0] / np.where(full, values[:, -1], 1.0)
    return np.where(full, ratio, np.inf)


def singular_values(_: Floats, columns: Floats) -> Floats:
    """Return the singular values (n, k), descending, of maps given by columns (p, n, D)."""
    if len(columns) == 1:
        return norms(columns[0])[:, None]
    if len(columns) == 2 and columns.shape[2] >= 2:
        return two_singular_values(columns[0], columns[1])
    return np.linalg.svd(columns.transpose(1, 2, 0), compute_uv=False).astype(np.float64)


def _kept(given: Spectrum, fill: float) -> Floats:
    """Return the singular values with `fill` in the place of those decided to be zero."""
    order = np.arange(given.singular_values.shape[1])
    return np.where(order < given.rank[:, None], given.singular_values, fill)


def _spectrum(source: Partition | Spectrum, wrt: str, tolerance: float | None) -> Spectrum:
    """Return the spectrum given, or that of the partition given."""
    if isinstance(source, Spectrum):
        return source
    return spectrum(source, wrt=wrt, tolerance=tolerance)


def require_slice(partition: Partition, given: Spectrum) -> None:
    """Raise unless the spectrum is that of this partition's cells in slice coordinates."""
    if given.wrt != "slice" or len(given.rank) != partition.num_cells:
        raise ValueError(
            f"Expected spectrum(partition), one row for each of its {partition.num_cells} cells "
            f'with wrt="slice", got {len(given.rank)} rows with wrt="{given.wrt}". '
            "Volumes are measured in the slice."
        )
