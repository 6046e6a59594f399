"""The published recipe: singular values of W J for one draw of W."""

from __future__ import annotations

import torch
from torch import Tensor

from approx.sketches import Operator, projected, triangular
from approx.spectra import one_draw
from approx.spectra.asked import Asked, kept_probes
from approx.spectra.result import Spectrum, around, pair, student
from approx.spectra.rounding import weighed


def paper(op: Operator, asked: Asked) -> Spectrum:
    """Take the k singular values of W J for one draw of W, and their spread from further rows."""
    return draw(op, asked)


def draw(op: Operator, asked: Asked, begun: Tensor | None = None) -> Spectrum:
    """Draw W, going on from the products of a prediction where it has begun."""
    k = asked.k
    rows = one_draw.rows_for(k, op.rows)
    y, _ = projected(op, rows, kept_probes(asked), begun)
    factor = triangular(y).cpu()
    u, values, _ = torch.linalg.svd(factor[:, :k, :k])
    w = weighed(values, op, asked, sketched=True)
    psi, nu, tolerance = w.psi, w.nu, w.tolerance
    # what further rows add to the span of the k; where that is less than they are, J has no more
    added = torch.linalg.svdvals(factor[:, k:, k:])
    seen = torch.cat([values, added], dim=1) > tolerance * values[:, :1]
    seen = seen.sum(dim=1)
    most = torch.where(seen < rows, seen, min(op.rows, op.columns))
    of_psi, of_nu = one_draw.spreads(factor, u, values, op.rows, most, tolerance)
    # this draw and another differ by the spread of both
    psi_stderr = (2 * of_psi.variance).sqrt().hypot(w.psi_error)
    nu_interval, nu_stderr = one_draw.interval_of_rank(nu, of_nu, most.clamp_max(k))
    rounding = 2 * w.nu_error[:, None]
    return Spectrum(
        psi=psi,
        nu=nu,
        psi_stderr=psi_stderr,
        nu_stderr=nu_stderr.hypot(w.nu_error),
        psi_interval=around(psi, student(of_psi.freedom) * psi_stderr),
        nu_interval=nu_interval + pair(-rounding, rounding)[:, :, 0],
        effective_rank=one_draw.effective_rank(factor.mT @ factor, op.rows),
        rank=w.rank,
        fell_back=torch.zeros_like(w.rank).bool(),
        products=rows,
        method=asked.method,
        used="paper",
        k=k,
        seed=asked.seed,
        definition=asked.definition,
        subscript=asked.subscript,
        doubtful=w.doubtful,
        note="",
        tolerance=w.tolerance,
        singular_values=values,
    )
