"""The published recipe: singular values of W J for one draw of W."""

from __future__ import annotations

import torch

from approx.sketches import Begun, Operator, projected, triangular
from approx.spectra import one_draw
from approx.spectra.asked import Asked, kept_probes
from approx.spectra.result import Spectrum, around
from approx.spectra.rounding import weighed


def paper(op: Operator, asked: Asked) -> Spectrum:
    """Take the k singular values of W J for one draw of W, and their spread from further rows."""
    return draw(op, asked)


def draw(op: Operator, asked: Asked, begun: Begun | None = None) -> Spectrum:
    """Draw W, going on from the products of a prediction where it has begun."""
    k = asked.k
    rows = one_draw.rows_for(k, op.rows)
    y, _ = projected(op, rows, kept_probes(asked), begun)
    factor = triangular(y).cpu()
    values = torch.linalg.svdvals(factor[:, :k, :k])
    w = weighed(values, op, asked, sketched=True)
    if rows == op.rows:  # these are all of J: its law can be drawn from
        psi, nu = one_draw.of_law(w, factor, k)
    else:
        psi, nu = one_draw.of_rows(w, factor, op.rows, min(op.rows, op.columns), k)
    return Spectrum(
        psi=w.psi,
        nu=w.nu,
        psi_stderr=psi.stderr.hypot(w.psi_error),
        nu_stderr=nu.stderr.hypot(w.nu_error),
        psi_interval=psi.interval + around(torch.zeros_like(w.psi), 2 * w.psi_error),
        nu_interval=nu.interval + around(torch.zeros_like(w.nu), 2 * w.nu_error),
        effective_rank=one_draw.effective_rank(factor.mT @ factor, op.rows),
        rank=w.rank,
        fell_back=torch.zeros_like(w.rank).bool(),
        continued=torch.zeros_like(w.rank).bool(),
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
