"""Descriptors of the cells: singular values, psi, nu, condition number, volumes, delta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cpwl.affine import cell_indices, columns_and_offsets, num_outputs, require_complete
from cpwl.domain.shapes import cross_polytope
from cpwl.geometry.measure import Measures, levels, magnitude, measures
from cpwl.storage import require_network

if TYPE_CHECKING:
    from cpwl.network.network import Network
    from cpwl.partition import Partition

Array = NDArray[np.float64]


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

    singular_values: Array
    rank: NDArray[np.int64]
    tolerance: float
    wrt: str
    directions: int

    @property
    def dropped(self) -> NDArray[np.int64]:
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

    Notes
    -----
    matrix_rank takes n = max(A.shape), the rounding error of a matrix that was rounded once. A is
    a product: of 4000 maps 2-256-256-256-3 that pass through a single live unit, of rank 1 in
    exact arithmetic, that rule calls 153 rank 2 (sigma_2 / sigma_1 up to 3.4e-15, against
    3 eps = 6.7e-16), and their psi is then the logarithm of rounding noise. 256 eps = 5.7e-14
    calls none.

    Cost: `affine_maps` plus O(D) per cell for P <= 2. The condition number is not squared: A is
    reduced by an orthogonal factorisation to a small triangle, whose singular values are taken.
    """
    index = cell_indices(partition, cells)
    outputs = num_outputs(partition)
    chunks = []
    directions = partition.dim
    for _, columns in columns_and_offsets(partition, index, wrt=wrt):
        directions = len(columns)
        chunks.append(_singular_values(columns))
    width = min(outputs, directions)
    values = np.concatenate(chunks) if chunks else np.empty((0, width))
    if tolerance is None:
        stages = np.diff(np.asarray(require_network(partition).stage_offsets))
        latents = int(np.prod(partition.domain.slice.latent_shape, dtype=np.int64))
        longest = max(outputs, directions, latents, int(stages.max(initial=0)))
        tolerance = longest * float(np.finfo(np.float64).eps)
    rank = (values > tolerance * values[:, :1]).sum(axis=1)
    return Spectrum(values, rank, float(tolerance), wrt, directions)


def rank(
    source: Partition | Spectrum, *, wrt: str = "slice", tolerance: float | None = None
) -> NDArray[np.int64]:
    """Return the rank of each cell's map, (C,) int64, as `spectrum` decides it."""
    return _spectrum(source, wrt, tolerance).rank


def local_scaling(
    source: Partition | Spectrum, *, wrt: str = "slice", tolerance: float | None = None
) -> Array:
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
    """
    given = _spectrum(source, wrt, tolerance)
    return np.log(_kept(given, fill=1.0)).sum(axis=1)


def local_rank(
    source: Partition | Spectrum, *, wrt: str = "slice", tolerance: float | None = None
) -> Array:
    """Return nu = exp(-sum alpha_i log alpha_i), alpha_i = sigma_i / sum sigma + 1e-30, (C,).

    Between 1 and the rank; 0 for a constant map, where the alpha_i do not exist. Arguments as for
    `local_scaling`.
    """
    given = _spectrum(source, wrt, tolerance)
    values = _kept(given, fill=0.0)
    total = values.sum(axis=1, keepdims=True)
    alpha = values / np.where(total > 0, total, 1.0) + 1e-30
    return np.where(given.rank > 0, np.exp(-(alpha * np.log(alpha)).sum(axis=1)), 0.0)


def condition_number(
    source: Partition | Spectrum, *, wrt: str = "slice", tolerance: float | None = None
) -> Array:
    """Return sigma_1 / sigma_k, (C,); inf where a singular value is zero.

    Arguments as for `local_scaling`. A map with fewer outputs than coordinates is measured by its
    k = D singular values.
    """
    given = _spectrum(source, wrt, tolerance)
    values = given.singular_values
    full = given.rank == values.shape[1]
    ratio = values[:, 0] / np.where(full, values[:, -1], 1.0)
    return np.where(full, ratio, np.inf)


def volumes(partition: Partition) -> Array:
    """Return the length, area or volume of every cell in slice coordinates, (C,).

    Summed from terms of one sign whose coordinates are differences from a vertex of the cell
    itself, so that a small cell far from the origin loses nothing to cancellation. Needs no
    network. Cost: every face of any dimension is measured once.
    """
    exponent = magnitude(partition.points)
    minors = _cells(partition, exponent).minors[:, 0]
    with np.errstate(over="ignore", under="ignore"):  # 0 or inf where float64 has no such number
        return np.ldexp(np.abs(minors), partition.dim * exponent)


def centroids(partition: Partition) -> Array:
    """Return the centre of mass of every cell in slice coordinates, (C, P).

    Exact up to rounding, and inside the cell; needs no network. Cost: as for `volumes`.
    """
    exponent = magnitude(partition.points)
    return np.ldexp(_cells(partition, exponent).centroid, exponent)


def _cells(partition: Partition, exponent: int) -> Measures:
    """Return the measures of the cells with coordinates divided by 2^exponent."""
    *_, last = measures(np.ldexp(partition.points, -exponent), levels(partition))
    return last


def image_volumes(
    partition: Partition, source: Spectrum | None = None, *, tolerance: float | None = None
) -> Array:
    """Return the P-dimensional volume of each cell's image, volume * exp(psi), (C,).

    Parameters
    ----------
    partition : Partition
        With its network, unless `source` is given.
    source : Spectrum, optional
        `spectrum(partition)` with respect to the slice.
    tolerance : float, optional
        As for `spectrum`.

    Notes
    -----
    0 where the rank is below P: such a cell is squeezed into fewer dimensions, although its psi,
    a sum over the non-zero singular values, is finite.
    """
    given = spectrum(partition, tolerance=tolerance) if source is None else source
    _require_slice(partition, given)
    scale = np.where(given.rank == partition.dim, np.exp(local_scaling(given)), 0.0)
    return volumes(partition) * scale


def local_complexity(
    network: Network, z: Any, radius: float, basis: Any, *, memory: int = 2 * 2**30
) -> int:
    """Return delta: the exact number of cells that meet V_z = {x : ||B (x - z)||_1 < radius}.

    Parameters
    ----------
    network : Network
        Captured network.
    z : array_like, (*latent,)
        The latent in the middle.
    radius : float
        In units of the latent space; of any size.
    basis : array_like, (P, *latent), P = 1 to 6
        Orthonormal rows B.
    memory : int, default 2 GiB
        Bytes that enumerating the cells may take.

    Raises
    ------
    PartitionError
        `memory` does not suffice for all cells.

    Notes
    -----
    Enumerates the partition of V_z (`cpwl.subdivide`); the cost is that of its cells.
    """
    from cpwl.partition import subdivide

    domain = cross_polytope(z, radius, basis)
    partition = subdivide(network, domain, memory=memory, progress=False)
    require_complete(partition)
    return partition.num_cells


def _singular_values(columns: Array) -> Array:
    """Return the singular values (n, k), descending, of maps given by columns (p, n, D)."""
    if len(columns) == 1:
        return _norms(columns[0])[:, None]
    if len(columns) == 2 and columns.shape[2] >= 2:
        return _two_singular_values(columns[0], columns[1])
    return np.linalg.svd(columns.transpose(1, 2, 0), compute_uv=False).astype(np.float64)


def _two_singular_values(a: Array, b: Array) -> Array:
    """Return the singular values (n, 2) of maps with columns a and b (n, D).

    Those of the triangle (r11, r12; 0, r22) in closed form without squaring its condition:
    sigma_1 + sigma_2 and sigma_1 - sigma_2 are the lengths of (r11 + r22, r12) and
    (r11 - r22, r12), and sigma_1 sigma_2 = r11 r22.
    """
    _, triangle = orthonormal_columns(np.stack([a, b]))
    r11, r12, r22 = triangle[:, 0, 0], triangle[:, 0, 1], triangle[:, 1, 1]
    first = (np.hypot(r11 + r22, r12) + np.hypot(r11 - r22, r12)) / 2
    second = r22 * (r11 / np.where(first > 0, first, 1.0))
    return np.stack([first, second], axis=1)


def frames(columns: Array) -> tuple[Array, Array, Array]:
    """Return orthonormal frames (P, n, D) of maps (P, n, D), their least and largest stretch (n,).

    Up to a factor sqrt(2) for P = 2. The frame is complete where the map has full rank.
    """
    if len(columns) > 2:
        left, values, _ = np.linalg.svd(columns.transpose(1, 2, 0), full_matrices=False)
        return left.transpose(2, 0, 1), values[:, -1], values[:, 0]
    frame, triangle = orthonormal_columns(columns)
    least = np.abs(np.diagonal(triangle, axis1=1, axis2=2)).min(axis=1)
    return frame, least, np.abs(triangle).max(axis=(1, 2))


def orthonormal_columns(columns: Array) -> tuple[Array, Array]:
    """Factor maps with P <= 2 columns (P, n, D) into frames (P, n, D) and triangles (n, P, P).

    Column-pivoted QR by modified Gram-Schmidt, whose triangle is backward stable (Bjorck 1967),
    vectorised over the maps; numpy.linalg.qr and svd spend 5 to 20 microseconds a map on calls.
    The frame of a zero column is zero.
    """
    norms = np.stack([_norms(column) for column in columns])
    triangle = np.zeros((columns.shape[1], len(columns), len(columns)))
    frame = np.zeros_like(columns)
    if len(columns) == 1:
        triangle[:, 0, 0] = norms[0]
        frame[0] = columns[0] / np.where(norms[0] > 0, norms[0], 1.0)[:, None]
        return frame, triangle
    swap = (norms[1] > norms[0])[:, None]
    large, small = np.where(swap, columns[1], columns[0]), np.where(swap, columns[0], columns[1])
    triangle[:, 0, 0] = r11 = norms.max(axis=0)
    frame[0] = large / np.where(r11 > 0, r11, 1.0)[:, None]
    triangle[:, 0, 1] = r12 = np.einsum("nd,nd->n", frame[0], small)
    rest = small - r12[:, None] * frame[0]
    # a second pass keeps the second direction orthogonal where the first one cancels
    rest -= np.einsum("nd,nd->n", frame[0], rest)[:, None] * frame[0]
    triangle[:, 1, 1] = r22 = _norms(rest)
    frame[1] = rest / np.where(r22 > 0, r22, 1.0)[:, None]
    return frame, triangle


def _norms(rows: Array) -> Array:
    """Return the Euclidean lengths of rows (n, D) without overflow or underflow."""
    scale = np.abs(rows).max(axis=1, initial=0.0)
    scale = np.where(scale > 0, scale, 1.0)
    return scale * np.sqrt(np.square(rows / scale[:, None]).sum(axis=1))


def _kept(given: Spectrum, fill: float) -> Array:
    """Return the singular values with `fill` in the place of those decided to be zero."""
    order = np.arange(given.singular_values.shape[1])
    return np.where(order < given.rank[:, None], given.singular_values, fill)


def _spectrum(source: Partition | Spectrum, wrt: str, tolerance: float | None) -> Spectrum:
    """Return the spectrum given, or that of the partition given."""
    if isinstance(source, Spectrum):
        return source
    return spectrum(source, wrt=wrt, tolerance=tolerance)


def _require_slice(partition: Partition, given: Spectrum) -> None:
    """Raise unless the spectrum is that of this partition's cells in slice coordinates."""
    if given.wrt != "slice" or len(given.rank) != partition.num_cells:
        raise ValueError(
            f"Expected spectrum(partition), one row for each of its {partition.num_cells} cells "
            f'with wrt="slice", got {len(given.rank)} rows with wrt="{given.wrt}". '
            "Volumes are measured in the slice."
        )
