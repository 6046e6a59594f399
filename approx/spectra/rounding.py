"""psi and nu of singular values whose matrix is known up to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from approx.decoder import HALF, DecoderError
from approx.sketches import Operator, widened
from approx.spectra.asked import ROUNDINGS, Asked, DenseOperator, tolerance_of
from approx.spectra.result import Spectrum, entropy, merged, psi_nu

# A singular value of at most so many errors is in doubt, and one of so many is not known
_DOUBT, _LOST = 10, 2
_PROBES = 2  # of the error of half precision
_SAFETY = 4  # of an error measured at one latent


class Weighed(NamedTuple):
    """psi and nu (B,) of singular values, the errors that rounding leaves, and counts."""

    psi: Tensor
    nu: Tensor
    psi_error: Tensor
    nu_error: Tensor
    rank: Tensor
    doubtful: Tensor
    tolerance: float


def precision(op: Operator) -> torch.dtype:
    """Return the dtype in which an operator's products are rounded."""
    return getattr(op, "precision", op.dtype)


def weighed(values: Tensor, op: Operator, asked: Asked, *, sketched: bool = False) -> Weighed:
    """Return psi and nu of singular values (B, k) in descending order, from products of `op`.

    Parameters
    ----------
    values : Tensor
        (B, k) float64 on the CPU.
    op : Operator
        Whose products they are from: its precision tells how far they are known.
    asked : Asked
    sketched : bool
        Whether they are of W J, and not of J.

    Returns
    -------
    Weighed
        psi and its error are NaN where a value is not known. nu hardly depends on small values and
        is kept.

    Notes
    -----
    Values of at most `tolerance` sigma_1 are zero where products are in float64, or where the
    caller chose the tolerance; by default that is the error of float64, ROUNDINGS eps. In lower
    precision nothing but a zero Jacobian has zeros, and a decoder's in float32 may be an underflow.
    Values of at most 10 e, e the error of the matrix, are in doubt, and of at most 2 e not known.
    e is 32 eps sigma_1, or 4 times the error measured at the first latent (`roundings`) where that
    is more. In half precision both is below e, which is then measured for each. By perturbation to
    first order, and with the bias of psi of second order,

        psi_error = (sum (e / sigma_i)^2)^(1/2) + sum (e / sigma_i)^2 / 2,
        nu_error = nu e / S (sum (log alpha_i + log nu)^2)^(1/2), S = sum sigma.

    e bounds the spectral norm of the error: were it of one direction, first order would need the
    sum of e / sigma_i. Errors measured are 100 times smaller than psi_error.
    """
    top = values[:, :1]
    e = _error(op, top, sketched)
    tolerance = tolerance_of(asked)
    final = asked.tolerance is not None or precision(op) == torch.float64
    zero = values <= (tolerance * top if final else 0)
    if not final and precision(op) not in HALF and hasattr(op, "refined"):
        zero[:] = False  # a zero Jacobian may be an underflow of the decoder's
    doubt, lost = (1, 1) if precision(op) in HALF else (_DOUBT, _LOST)
    kept = ~zero & (values > lost * e)
    unknown = torch.where((zero | kept).all(dim=1), 0.0, math.nan)
    psi = torch.where(kept, values, 1).log().sum(dim=1)
    relative = torch.where(kept, e / torch.where(kept, values, 1), 0).square().sum(dim=1)
    nu = psi_nu(values, 0)[1]
    shares, surprisal = entropy(values)
    slope = torch.where(zero, 0, shares + surprisal).square().sum(dim=1).sqrt()
    total = values.sum(dim=1)
    return Weighed(
        psi=psi + unknown,
        nu=nu,
        psi_error=relative.sqrt() + relative / 2 + unknown,
        nu_error=nu * slope * (e[:, 0] / torch.where(total > 0, total, 1)),
        rank=kept.sum(dim=1),
        doubtful=(~zero & (values <= doubt * e)).sum(dim=1),
        tolerance=tolerance,
    )


def _error(op: Operator, top: Tensor, sketched: bool) -> Tensor:
    """Return e (B, 1), the size of the error of J, or of W J, whose largest value is `top`.

    Half precision changes which side of their knots units are on, and with it whole rows: 1 to 60
    eps, so that its error is measured, on a few rows against the operator in float32.
    """
    within = precision(op)
    refined = getattr(op, "refined", None)
    if within in HALF and refined is not None:
        y = torch.randn(op.rows, _PROBES, generator=torch.Generator().manual_seed(0))
        y = (y / math.sqrt(op.rows)).to(op.device)
        error = None
        try:
            with refined(torch.arange(op.batch), torch.float32) as fine:
                if precision(fine) not in HALF:  # as where the decoder casts inside
                    error = widened(fine.rmatmat(y)) - widened(op.rmatmat(y))
        except DecoderError:
            pass  # there is no copy in float32
        if error is not None:
            rows = error.square().sum(dim=(1, 2), keepdim=True)[:, :, 0].cpu() / _PROBES
            # ||E||_F over the root of the smaller side: ||E||_2 if all directions are alike
            share = 1 if sketched else op.rows / min(op.rows, op.columns)
            return (share * rows).sqrt()
    # in eps, since differences of large numbers lose as many digits in float64
    measured = 0 if within in HALF else _SAFETY * getattr(op, "roundings", 0)
    limits = torch.finfo(within)
    return (max(ROUNDINGS, measured) * limits.eps * top).clamp(min=limits.tiny)


def settled(
    op: DenseOperator, asked: Asked, estimate: Callable[[DenseOperator, Asked], Spectrum]
) -> Spectrum:
    """Estimate, and again in float64 the latents that have singular values in doubt.

    Half precision was the caller's choice, and only a dense Jacobian is refined in spite of it.
    Where psi is then not known, `note` says why.
    """
    found = estimate(op, asked)
    products = found.products
    where = found.doubtful.nonzero()[:, 0]
    refined = getattr(op, "refined", None)
    within, reason = precision(op), ""
    if len(where) and within != torch.float64 and (within not in HALF or found.used == "exact"):
        try:
            if refined is None:
                raise DecoderError(f"{type(op).__name__} has no `refined`")
            # in halves: float64 takes twice the memory
            for part in where.split((op.batch + 1) // 2):
                with refined(part) as fine:
                    better = estimate(fine, asked)
                    if precision(fine) != torch.float64:
                        reason = f" (its copy in float64 converts to {precision(fine)} inside)"
                found = merged(found, part, better)
                found = replace(found, products=products + better.products)
            used = f"{found.used}, in float64 for {len(where)} of {op.batch} latents"
            found = replace(found, used=used)
        except DecoderError as error:
            reason = f" ({error})"
    left = int(found.psi.isnan().sum())
    if not left:
        return found
    if reason or within != torch.float64:
        note = f"{within} does not tell from rounding; use float64{reason}"
    else:
        note = "float64 does not tell from zero; say with tolerance= what is zero"
    text = f"{left} of {op.batch} latents have singular values that {note}"
    return replace(found, note=text.replace("torch.", ""))
