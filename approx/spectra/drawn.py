"""The published recipe: singular values of W J for one draw of W."""

from __future__ import annotations

import torch
from torch import Tensor

from approx.sketches import Operator, projected
from approx.spectra import one_draw
from approx.spectra.asked import Asked, probes, zero_below
from approx.spectra.result import Spectrum, around, psi_nu, student


def paper(op: Operator, asked: Asked) -> Spectrum:
    """Take the k singular values of W J for one draw of W."""
    return draw(op, asked, probes(asked))


def draw(
    op: Operator,
    asked: Asked,
    rng: torch.Generator,
    begun: tuple[Tensor, Tensor] | None = None,
) -> Spectrum:
    """Draw W, going on from the probes and products of a prediction where it has begun."""
    k, columns = asked.k, op.columns
    rows = one_draw.rows_for(k, op.rows)
    y, _ = projected(op, rows, rng, begun)
    factor = torch.linalg.qr(y, mode="r").R.cpu()
    values = torch.linalg.svdvals(factor[:, :k, :k])
    tolerance = zero_below(asked, max(k, columns), op.dtype)
    psi, nu, rank = psi_nu(values, tolerance)
    gram = factor.mT @ factor
    *_, seen = psi_nu(torch.linalg.svdvals(factor), tolerance)
    # fewer than the rows: these are all
    most = torch.where(seen < rows, seen, min(op.rows, columns))
    of_psi, of_nu = one_draw.spreads(factor, k, op.rows, most, tolerance)
    # this draw and another differ by the spread of both
    psi_stderr = (2 * of_psi.variance).sqrt()
    nu_interval, nu_stderr = one_draw.interval_of_rank(nu, of_nu, most.clamp_max(k))
    return Spectrum(
        psi=psi,
        nu=nu,
        psi_stderr=psi_stderr,
        nu_stderr=nu_stderr,
        psi_interval=around(psi, student(of_psi.freedom) * psi_stderr),
        nu_interval=nu_interval,
        effective_rank=one_draw.effective_rank(gram, op.rows),
        rank=rank,
        fell_back=torch.zeros_like(rank).bool(),
        products=rows,
        method=asked.method,
        used="paper",
        k=k,
        seed=asked.seed,
        definition=asked.definition,
        subscript=asked.subscript,
        doubtful=torch.zeros_like(rank),
        note="",
        tolerance=tolerance,
        singular_values=values,
    )
