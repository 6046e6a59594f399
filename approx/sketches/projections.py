"""Random sketches of a Jacobian: singular values of W J, of J V, and on a randomly found range.

Every function works on anything with `matmat`, `rmatmat`, `rows`, `columns` and `batch`; probes are
common to the latents of a batch, so what one latent gets does not depend on who shares its batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from approx.sketches.probes import (
    Operator,
    Probes,
    _probe_dtype,
    check_count,
    corrected,
    gaussian,
    haar,
    orthonormal,
    singular_values,
    triangle,
    widened,
)


@dataclass(frozen=True, eq=False)
class Sketch:
    """Singular values found by projection, and bounds on their distance from those of J.

    `approx.sketches.block_krylov` and `range_finder` make it.

    Attributes
    ----------
    singular_values : (B, k) float64 tensor
        Descending; each is a lower bound of the true one, to rounding.
    error : (B,) float64 tensor
        Estimate of ||J - P||_F from held-out probes, P the projection of J that was found.
    error_stderr : (B,) float64 tensor
        Its standard error over those probes.
    upper : (B, k) float64 tensor or None
        Block Krylov: bounds from above. All k hold at once with 95 % confidence over the probes.
    effective_rank : (B,) float64 tensor
        (tr M)^2 / tr M^2, M = J J^T: the part found, and an estimate of the rest by held-out probes
        (without the products of the two parts in tr M^2, which vanish as the space converges).
    products : int
        Jacobian products (either way) per latent.

    Examples
    --------
    >>> import torch
    >>> from approx import JacobianOperator
    >>> from approx.sketches import block_krylov
    >>> with JacobianOperator(lambda z: z * torch.tensor([3.0, 2.0, 1.0]), torch.ones(1, 3)) as J:
    ...     sketch = block_krylov(J, 2, block=2, depth=2, generator=torch.Generator())
    >>> sketch.singular_values.round(decimals=4).tolist(), sketch.products
    ([[3.0, 2.0]], 14)
    """

    singular_values: Tensor
    error: Tensor
    error_stderr: Tensor
    upper: Tensor | None
    effective_rank: Tensor
    products: int


def output_sketch(op: Operator, k: int, generator: torch.Generator) -> Tensor:
    """Return the singular values (B, k) of W J, W (k, D) Haar with orthonormal rows; the paper's.

    The rows of W are the columns of `haar(D, k)` for the same generator.

    Raises
    ------
    ValueError
        If k is not between 1 and min(D, d).

    Notes
    -----
    W = R^-T G^T for Gaussian G (D, k) with triangular factor R, so J^T G is taken and corrected by
    the k x k factor afterwards: W itself is never formed. That holds whatever the dtype of the
    products is, because R is computed from the probes as they were passed, in float64. Cost: k
    products J^T y.
    """
    check_count(k, min(op.rows, op.columns), "min(outputs, latent size)")
    g = gaussian(op.rows, k, generator=generator, dtype=op.dtype, device=op.device)
    return singular_values(corrected(op.rmatmat(g), triangle(g)))


def input_sketch(op: Operator, k: int, generator: torch.Generator) -> Tensor:
    """Return the singular values (B, k) of J V, V (d, k) Haar with orthonormal columns.

    Raises
    ------
    ValueError
        If k is not between 1 and min(D, d).

    Notes
    -----
    Cost: k products J x; otherwise as `output_sketch`.
    """
    check_count(k, min(op.rows, op.columns), "min(outputs, latent size)")
    g = gaussian(op.columns, k, generator=generator, dtype=op.dtype, device=op.device)
    return singular_values(corrected(op.matmat(g), triangle(g)))


class Begun(NamedTuple):
    """Products J^T G (B, d, n) with successive blocks of `Probes`, and where these end."""

    products: Tensor
    ends: tuple[int, ...]


def projected(
    op: Operator, k: int, probes: Probes, begun: Begun | None = None
) -> tuple[Tensor, Begun]:
    """Return J^T W^T (B, d, k) in float64, and the products from which to go on to more."""
    ends = (k,) if begun is None else (*begun.ends, k)
    g, factor = probes.block(op, *ends)
    y = op.rmatmat(g)
    if begun is not None:
        y = torch.cat([begun.products, y], dim=2)
    return corrected(y, factor), Begun(y, ends)


def range_finder(
    op: Operator,
    k: int,
    *,
    power: int = 2,
    oversample: int = 10,
    held_out: int = 8,
    generator: torch.Generator,
) -> Sketch:
    """Return the k largest singular values of J on a randomly found range.

    Parameters
    ----------
    op : Operator
    k : int
        How many values; at most min(D, d).
    power : int
        Power iterations, each 2 (k + oversample) products.
    oversample : int
        Directions more than k.
    held_out : int
        Probes that did not build the sketch, for its error; at least 2.
    generator : torch.Generator

    Raises
    ------
    ValueError
        If k, power, oversample or held_out is out of range.

    Notes
    -----
    Halko, Martinsson and Tropp 2011 (SIAM Review 53), algorithms 4.4 and 5.1. The error is the root
    of the mean of ||(I - Q Q^T) J w||^2 over held-out Gaussian w, whose expectation is
    ||J - Q Q^T J||_F^2. Cost: 2 (k + oversample) (1 + power) + held_out products.
    """
    smaller = min(op.rows, op.columns)
    check_count(k, smaller, "min(outputs, latent size)")
    for name, value, least in (
        ("power", power, 0),
        ("oversample", oversample, 0),
        ("held_out", held_out, 2),
    ):
        if value < least:
            raise ValueError(f"Expected {name} >= {least}, got {value}.")
    width = min(k + oversample, smaller)
    start = haar(op.columns, width, generator=generator, dtype=_probe_dtype(op), device=op.device)
    q = orthonormal(op.matmat(start))
    back = op.rmatmat(q)
    for _ in range(power):
        q = orthonormal(op.matmat(orthonormal(back)))
        back = op.rmatmat(q)
    # only now: the probes of the sketch are the same whatever held_out is
    w = gaussian(op.columns, held_out, generator=generator, dtype=op.dtype, device=op.device)
    missed = op.matmat(w)
    missed = widened(missed - q @ (q.mT @ missed)) * math.sqrt(op.columns)
    values = singular_values(widened(back)).cpu()
    error, spread, r_eff = rest(missed, values)
    return Sketch(
        singular_values=values[:, :k],
        error=error,
        error_stderr=spread,
        upper=None,
        effective_rank=r_eff,
        products=2 * width * (1 + power) + held_out,
    )


def rest(
    missed: Tensor, found: Tensor, second: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return error, its standard error and r_eff from (J - P) X, X (d, p) held-out N(0, 1).

    ||J - P||_F^2 is the mean of the squared columns, tr ((J - P)^T (J - P))^2 that of the squares
    of the products of two columns, if no better estimate of it is given.
    """
    K = (missed.mT @ missed).cpu()
    p = K.shape[-1]
    diagonal = K.diagonal(dim1=1, dim2=2)
    square = diagonal.mean(dim=1)
    error = square.sqrt()
    spread = diagonal.std(dim=1) / math.sqrt(p)
    if second is None:
        second = (K.square().sum(dim=(1, 2)) - diagonal.square().sum(dim=1)) / (p * (p - 1))
    trace = found.square().sum(dim=1) + square
    second = found.pow(4).sum(dim=1) + second
    some = second > 0
    return (
        error,
        torch.where(error > 0, spread / (2 * torch.where(error > 0, error, 1)), 0),
        torch.where(some, trace.square() / torch.where(some, second, 1), 0),
    )
