"""Probes: Gaussian and Haar matrices, orthonormal bases, singular values of tall batches."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from approx.devices import factorisable, widened


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
    drawn = torch.empty(k, rows, dtype=torch.float32, device="cpu")
    for column in drawn:
        torch.randn(rows, generator=generator, out=column)
    return drawn.div_(math.sqrt(rows)).to(device=device, dtype=dtype).T


class Probes:
    """Gaussian columns of one seed, drawn and factored when they are first asked for, and kept.

    One for a job: its batches then share them. They take rows * k entries of the working dtype.

    Attributes
    ----------
    seed : int
        Of a generator on the CPU.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        # by the operators' kind: blocks by where they and those before them end
        self._made: dict[_Kind, dict[tuple[int, ...], _Block]] = {}

    def block(self, op: Operator, *ends: int) -> tuple[Tensor, Tensor]:
        """Return the last of successive blocks of columns, and the factor R of all of them.

        The columns (D, n) are those up to the last end, from the one before it or from 0. The
        blocks before it were asked for earlier.
        """
        made = self._made.setdefault((op.rows, op.dtype, op.device), {})
        if ends not in made:
            generator = torch.Generator().manual_seed(self.seed)
            start, stop = ends[-2] if ends[1:] else 0, ends[-1]
            blocks = [made[ends[:n]] for n in range(1, len(ends))]
            before = [block.columns for block in blocks]
            if blocks:
                generator.set_state(blocks[-1].state)
            g = gaussian(
                op.rows, stop - start, generator=generator, dtype=op.dtype, device=op.device
            )
            if op.rows < TALL * stop:
                # the factor of nearly square probes is ill-conditioned, and would amplify what
                # products in float32 round
                q = orthogonal(torch.cat([*before, g], dim=1))
                g = q[:, start:].to(device=op.device, dtype=op.dtype)
            made[ends] = _Block(g, triangle(*before, g), generator.get_state())
        return made[ends][:2]


class _Block(NamedTuple):
    columns: Tensor
    factor: Tensor
    state: Tensor  # of the generator after them


_Kind = tuple[int, torch.dtype, torch.device]


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
    # an orthogonal reduction first: values-only SVD of the small triangle, condition not squared
    return torch.linalg.svdvals(triangular(Y if Y.shape[-2] >= Y.shape[-1] else Y.mT))


def triangular(Y: Tensor) -> Tensor:
    """Return R (B, min, k) of Y = Q R for matrices Y (B, n, k), in float64."""
    # so many rows at a time that a large batch is not held in float64 as a whole
    columns = Y.shape[-1]
    rows = max(8 * columns, _WIDENED // (Y.shape[:-2].numel() * columns))
    first, *others = Y.split(rows, dim=-2)
    r = torch.linalg.qr(widened(first), mode="r").R
    for part in others:
        r = torch.linalg.qr(torch.cat([r, widened(part)], dim=-2), mode="r").R
    return r


def triangle(*blocks: Tensor) -> Tensor:
    """Return the factor R (k, k) of G = Q R, positive diagonal, in float64 on the CPU.

    `blocks` have the columns of G between them.

    From the Gram matrix where G is tall: its columns are then nearly orthogonal (condition number
    about 1 + 2 sqrt(k / rows)) and nothing is lost; a Householder QR of (rows, k) costs more than
    the small decoders that it would serve.
    """
    rows, k = len(blocks[0]), sum(block.shape[1] for block in blocks)
    if rows < TALL * k:
        r = torch.linalg.qr(torch.cat(blocks, dim=1).to("cpu", torch.float64), mode="r").R
        return r * _signs(r)[:, None]
    total = torch.zeros(k, k, dtype=torch.float64)
    for parts in zip(*(block.split(_GRAM_ROWS) for block in blocks), strict=True):
        part = torch.cat(parts, dim=1)
        wide = widened(part)
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


def corrected(Y: Tensor, R: Tensor) -> Tensor:
    """Y R^-1 in float64: products with G turned into products with the orthonormal G R^-1."""
    y = widened(Y)
    return torch.linalg.solve_triangular(R.to(y.device), y, upper=True, left=False)


def _qr(Y: Tensor) -> Tensor:
    return torch.linalg.qr(factorisable(Y)).Q.to(Y.device)


def _signs(r: Tensor) -> Tensor:
    """Signs of the diagonal, never 0."""
    return torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(r.dtype)


TALL = 8  # rows of a column from which Gaussian columns are nearly orthogonal
_WIDENED = 1 << 23  # entries of matrices that are widened to float64 at a time
_GRAM_ROWS = 1 << 16  # rows of a probe block that are widened to float64 at a time
