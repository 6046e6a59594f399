"""Block Krylov approximation of the largest singular values, bounded from both sides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from approx.sketches.probes import Operator, check_count, gaussian, haar, orthonormal, widened
from approx.sketches.projections import Sketch, rest

STEPS = 12  # of the search for what the space missed, two products each
_SURE = 0.975  # of each of the two bounds on a norm: both hold with 95 %


def block_krylov(
    op: Operator,
    k: int,
    *,
    block: int = 4,
    depth: int = 51,
    held_out: int = 8,
    generator: torch.Generator,
) -> Sketch:
    r"""Return the k largest singular values of J from a block Krylov space.

    Parameters
    ----------
    op : Operator
    k : int
        How many values; at most min(D, d), and the space must hold as many.
    block : int
        Columns of the Haar start V_1 (d, block). A small block finds more at equal products. A
        multiple singular value is found so many times at once. A block of 16 takes a quarter of
        the passes where the operator multiplies 16 columns at once.
    depth : int
        Blocks of the space span{V_1, (J^T J) V_1, ..., (J^T J)^(depth-1) V_1}.
    held_out : int
        Probes that did not build the space, for `error` and `effective_rank`; at least 2.
    generator : torch.Generator

    Returns
    -------
    Sketch
        `singular_values` are Ritz values, so lower bounds. With 95 % confidence over the probes all
        k true values are at most `upper`, whatever the spectrum.

    Raises
    ------
    ValueError
        If k is not between 1 and min(D, d), block * depth is less than k, or held_out < 2.

    Notes
    -----
    Golub-Kahan block bidiagonalisation with full reorthogonalisation on both sides (Golub, Luk and
    Overton 1981; Musco and Musco 2015). Directions that are exhausted are replaced by random ones
    orthogonal to the rest.

    The upper bounds: in orthonormal bases that begin with the left and the right Krylov space

    .. math:: J = \begin{pmatrix} B & X \\ 0 & G \end{pmatrix}

    with B and X known, and X not zero in one block of columns alone. So J^T J is at most
    (B X)^T (B X) + ||G||^2 times the projection on the columns of G, which is known but for
    ||G||. That comes from a second Krylov space, for G, from a start of its own: a random start is
    nearly orthogonal to the first singular vector with a known probability only, and Chebyshev
    polynomials turn this into ||G|| <= cosh(a) times the largest Ritz value (`overlooked`). No
    other value exceeds the like bound on ||J||, from the first space.

    Cost: 2 block depth + 2 * 12 + held_out products, 440 at the defaults. Memory:
    block depth (D + d) numbers per latent, and as much again while the last block is appended.
    """
    smaller = min(op.rows, op.columns)
    check_count(k, smaller, "min(outputs, latent size)")
    if block < 1 or depth < 1 or block * depth < k:
        raise ValueError(
            f"Expected block * depth >= k = {k}, got {block} * {depth}: the Krylov space has to "
            "hold as many directions; increase depth."
        )
    if held_out < 2:
        raise ValueError(f"Expected held_out >= 2, got {held_out}.")
    dtype = torch.float64 if op.dtype == torch.float64 else torch.float32
    start = haar(
        op.columns, min(block, smaller), generator=generator, dtype=dtype, device=op.device
    )
    width, like = start.shape[1], {"dtype": dtype, "device": op.device}
    x = gaussian(op.columns, held_out + 1, generator=generator, **like) * math.sqrt(op.columns)
    noise = gaussian(max(op.rows, op.columns), width + 1, generator=generator, **like)
    space = _expand(op, start.expand(op.batch, -1, -1), depth, noise[:, :width])
    found = torch.linalg.svdvals(space.small)
    norm = found[:, 0] * _growth(space, op.columns, width)
    # what is left, known by the same products from probes that built no part of the space
    left = _Remainder(op, space.left, space.right[:, :, : space.multiplied])
    x = _without(x, left.known)
    apart = widened(left.matmat(x[:, :, 1:]))
    products, missed, second = space.products + held_out, *torch.zeros(2, op.batch).to(found)
    if not space.complete:
        more = _expand(left, orthonormal(x[:, :, :1], left.known), STEPS, noise[:, width:])
        products += more.products
        missed = torch.linalg.svdvals(more.small)[:, 0]
        missed *= _growth(more, op.columns - space.multiplied, 1)
        # |G^T G x|^2, whose mean is tr (G^T G)^2
        second = (more.small.mT @ more.small[:, :, :1]).square().sum(dim=(1, 2))
        second *= widened(x[:, :, 0]).square().sum(dim=1)
    error, spread, r_eff = rest(apart, found.cpu(), second.cpu())
    return Sketch(
        singular_values=found[:, :k].cpu(),
        error=error,
        error_stderr=spread,
        upper=_upper(space, missed, norm)[:, :k].cpu(),
        effective_rank=r_eff,
        products=products,
    )


class _Space(NamedTuple):
    """Krylov spaces of an operator: left^T J = small right^T, and J right[:, :multiplied] in left.

    All are batches; `small` is float64. `complete`: nothing of J lies outside of the spaces.
    """

    left: Tensor
    right: Tensor
    small: Tensor
    multiplied: int
    blocks: int
    products: int
    complete: bool


@dataclass(frozen=True, eq=False)
class _Remainder:
    """(I - U U^T) J (I - V V^T), for orthonormal U (B, D, m) and V (B, d, n)."""

    op: Operator
    found: Tensor
    known: Tensor

    @property
    def batch(self) -> int:
        return self.op.batch

    @property
    def rows(self) -> int:
        return self.op.rows

    @property
    def columns(self) -> int:
        return self.op.columns

    def matmat(self, X: Tensor) -> Tensor:
        y = self.op.matmat(_without(X, self.known)).to(self.found.dtype)
        return _without(y, self.found)

    def rmatmat(self, Y: Tensor) -> Tensor:
        x = self.op.rmatmat(_without(Y, self.found)).to(self.found.dtype)
        return _without(x, self.known)


def _expand(op: Operator | _Remainder, start: Tensor, blocks: int, noise: Tensor) -> _Space:
    """Expand Krylov spaces from orthonormal columns `start` (B, columns, width)."""
    dtype, v, right, left, rows, products, multiplied = start.dtype, start, start, None, [], 0, 0
    for step in range(blocks):
        w = op.matmat(v).to(dtype)
        products, multiplied = products + v.shape[2], multiplied + v.shape[2]
        u = _directions(w, left, noise, step)
        left = u if left is None else torch.cat([left, u], dim=2)
        back = op.rmatmat(u).to(dtype)
        products += u.shape[2]
        v = _directions(back, right, noise, step)
        right = torch.cat([right, v], dim=2)
        rows.append(widened(back).mT @ widened(right))
        if multiplied == op.columns or left.shape[2] == op.rows:
            break
    assert left is not None
    # all of one side: J V is known for every direction, or J^T U is
    complete = multiplied == op.columns or left.shape[2] == op.rows
    small = rows[0].new_zeros(op.batch, left.shape[2], right.shape[2])
    row = 0
    for part in rows:
        small[:, row : row + part.shape[1], : part.shape[2]] = part
        row += part.shape[1]
    return _Space(left, right, small, multiplied, len(rows), products, complete)


def _directions(Y: Tensor, basis: Tensor | None, noise: Tensor, step: int) -> Tensor:
    """Return orthonormal columns that span what Y adds to a basis, or random ones instead.

    The noise is below the rounding of Y, and decides where Y has nothing to add. It is moved by a
    row a step, so that it has something to add itself.
    """
    size = Y.shape[1]
    scale = torch.finfo(Y.dtype).eps * Y.abs().amax(dim=(1, 2), keepdim=True)
    fill = noise[:size, : Y.shape[2]].roll(step, dims=0)
    return orthonormal(Y + torch.where(scale > 0, scale, 1) * fill, basis)[
        :, :, : size - (0 if basis is None else basis.shape[2])
    ]


def _growth(space: _Space, size: int, width: int) -> float:
    return 1.0 if space.complete else overlooked(size, width, 2 * space.blocks)


def overlooked(size: int, width: int, half_steps: int, level: float = _SURE) -> float:
    """Return how many times the largest Ritz value the largest singular value can be.

    Parameters
    ----------
    size : int
        Dimension of the space that the start is drawn from.
    width : int
        Columns of the start, whose span is uniformly distributed.
    half_steps : int
        Products with J and with J^T, for each column of the start.
    level : float
        How probable it is that the bound holds.

    Returns
    -------
    float
        At least 1.

    Notes
    -----
    In the eigenbasis of J^T J some x = X a of the start X (size, width), Gaussian and |a| = 1, has
    x_1^2 distributed as chi^2 with `width` degrees of freedom, and independently x_i^2 as chi^2
    with one. If the largest Ritz value squared is c < lambda_1, then
    sum_i (lambda_i - c) lambda_i p(lambda_i)^2 x_i^2 <= 0 for every polynomial p of degree below
    q = half_steps / 2. With lambda = c cos^2(t / 2) and p = sin(q t) / sin(t), each term on [0, c]
    is at least -c^2 / 4 x_i^2, and the first one is sinh(2 q a)^2 c^2 / 4 x_1^2 for
    lambda_1 = c cosh(a)^2. So sinh(2 q a)^2 x_1^2 <= sum_{i > 1} x_i^2, of which the probability
    is that of a ratio of chi^2. Kuczynski and Wozniakowski 1992 (SIAM J. Matrix Anal. Appl. 13)
    have width 1, by the same polynomials.

    Examples
    --------
    >>> from approx.sketches.krylov import overlooked
    >>> [round(overlooked(16384, 1, steps), 2) for steps in (2, 8, 24)]
    [45.2, 1.7, 1.07]
    """
    from scipy.special import fdtri  # takes a second to import, and "topk" alone needs it

    if size < 2:
        return 1.0
    ratio = float(fdtri(width, size - 1, 1 - level)) * width / (size - 1)
    return math.cosh(math.asinh(1 / math.sqrt(ratio)) / half_steps)


def _upper(space: _Space, missed: Tensor, norm: Tensor) -> Tensor:
    """Return upper bounds (B, m) from ||J|| <= norm and ||G|| <= missed, both (B,)."""
    m, n = space.small.shape[1:]
    beyond = torch.eye(n, dtype=space.small.dtype, device=space.small.device)[space.multiplied :]
    stacked = torch.cat([space.small, missed[:, None, None] * beyond], dim=1)
    values = torch.linalg.svdvals(stacked)[:, :m]
    return torch.minimum(torch.maximum(values, missed[:, None]), norm[:, None])


def _without(Y: Tensor, basis: Tensor) -> Tensor:
    """Y less its part in the span of orthonormal columns."""
    return Y - basis @ (basis.mT @ Y)
