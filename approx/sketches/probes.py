"""Probes: Gaussian and Haar matrices, orthonormal bases, singular values of tall batches."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class Operator(Protocol):
    """J_b for each latent b of a batch, known through its products."""

    @property
    def batch(self) -> int:
        """Number of latents, B."""
        ...

    @property
    def rows(self) -> int:
        """Size of an output, D."""
        ...

    @property
    def columns(self) -> int:
        """Size of a latent, d."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Working dtype of the products."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the products are."""
        ...

    def matmat(self, X: Tensor) -> Tensor:
        """J_b X (B, D, k) for X (d, k) or (B, d, k)."""
        ...

    def rmatmat(self, Y: Tensor) -> Tensor:
        """J_b^T Y (B, d, k) for Y (D, k) or (B, D, k)."""
        ...


def gaussian(
    rows: int,
    k: int,
    *,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return (rows, k) independent N(0, 1 / rows) entries.

    Drawn column after column in float32 on the CPU, whatever the dtype and the device: the first m
    of k columns are those that a call for m columns gives, and a seed means the same everywhere.
    """
    columns = [torch.randn(rows, generator=generator) for _ in range(k)]
    drawn = torch.stack(columns) if columns else torch.empty(0, rows)
    return drawn.div_(math.sqrt(rows)).to(device=device, dtype=dtype).T


def haar(
    rows: int,
    k: int,
    *,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return (rows, k) orthonormal columns, Haar distributed.

    Parameters
    ----------
    rows, k : int
        Shape; k at most rows.
    generator : torch.Generator
        On the CPU. The first m columns do not depend on k.
    dtype, device
        Of the result. Orthogonalised in float64 whatever the dtype.

    Raises
    ------
    ValueError
        If k is not between 1 and rows.

    Notes
    -----
    Gram-Schmidt of Gaussian columns: G R^-1 with R upper triangular and positive on the diagonal,
    which makes the factorisation unique and its result Haar (Mezzadri 2007, Notices of the AMS 54).
    Cost: 4 rows k^2 flops.
    """
    check_count(k, rows, "rows")
    g = gaussian(rows, k, generator=generator, dtype=torch.float64)
    return orthogonal(g).to(device=device, dtype=dtype)


def orthogonal(G: Tensor) -> Tensor:
    """Return Q (n, k) of G = Q R, R with a positive diagonal, in float64 on the CPU."""
    q, r = torch.linalg.qr(G.to("cpu", torch.float64))
    return q * _signs(r)


def singular_values(Y: Tensor) -> Tensor:
    """Return the singular values (B, min) of a batch of matrices, in float64, descending."""
    tall = Y if Y.shape[-2] >= Y.shape[-1] else Y.mT
    columns = tall.shape[-1]
    # an orthogonal reduction first: values-only SVD of the small triangle, condition not squared;
    # of so many rows at a time that a large batch is not held in float64 as a whole
    rows = max(8 * columns, _WIDENED // (tall.shape[:-2].numel() * columns))
    first, *others = tall.split(rows, dim=-2)
    r = torch.linalg.qr(widened(first), mode="r").R
    for part in others:
        r = torch.linalg.qr(torch.cat([r, widened(part)], dim=-2), mode="r").R
    return torch.linalg.svdvals(r)


def triangle(G: Tensor) -> Tensor:
    """Return the factor R (k, k) of G = Q R, positive diagonal, in float64 on the CPU.

    From the Gram matrix where G is tall: its columns are then nearly orthogonal (condition number
    about 1 + 2 sqrt(k / rows)) and nothing is lost; a Householder QR of (rows, k) costs more than
    the small decoders that it would serve.
    """
    rows, k = G.shape
    if rows < TALL * k:
        r = torch.linalg.qr(G.to("cpu", torch.float64), mode="r").R
        return r * _signs(r)[:, None]
    total = torch.zeros(k, k, dtype=torch.float64)
    for part in G.split(_GRAM_ROWS):
        wide = part if part.device.type == "mps" else part.double()
        total += (wide.T @ wide).to("cpu", torch.float64)
    return torch.linalg.cholesky(total, upper=True)


def orthonormal(Y: Tensor, against: Tensor | None = None) -> Tensor:
    """Return orthonormal columns (B, n, k) that span Y, orthogonal to those of `against`.

    Columns without a direction of their own (a zero Jacobian, a range already exhausted) come out
    as some unit vectors orthogonal to the rest.
    """
    q = _qr(Y)
    if against is None:
        return q
    # twice is enough for a column with a direction of its own, a third for one that QR made up
    for _ in range(3):
        q = _qr(q - against @ (against.mT @ q))
    return q


def check_count(k: int, most: int, what: str) -> None:
    """Refuse a number of probes outside 1..most."""
    if not 1 <= k <= most:
        raise ValueError(
            f"Expected k between 1 and {what} = {most}, got {k}: ask for fewer singular values."
        )


def _probe_dtype(op: Operator) -> torch.dtype:
    return torch.float64 if op.dtype == torch.float64 else torch.float32


def widened(Y: Tensor) -> Tensor:
    """Y in float64, on the CPU where the device has none."""
    return Y.to("cpu", torch.float64) if Y.device.type == "mps" else Y.double()


def corrected(Y: Tensor, R: Tensor) -> Tensor:
    """Y R^-1 in float64: products with G turned into products with the orthonormal G R^-1."""
    y = widened(Y)
    return torch.linalg.solve_triangular(R.to(y.device), y, upper=True, left=False)


def _qr(Y: Tensor) -> Tensor:
    return torch.linalg.qr(Y).Q


def _signs(r: Tensor) -> Tensor:
    """Signs of the diagonal, never 0."""
    return torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(r.dtype)


TALL = 8  # rows of a column from which Gaussian columns are nearly orthogonal
_WIDENED = 1 << 23  # entries of matrices that are widened to float64 at a time
_GRAM_ROWS = 1 << 16  # rows of a probe block that are widened to float64 at a time
