"""The published recipe: singular values of W J for one draw of W."""

from __future__ import annotations

import math

import torch
from scipy.stats import norm as normal
from scipy.stats import t as student
from torch import Tensor

from approx.sketches import Operator, projected, singular_values
from approx.spectra import one_draw
from approx.spectra.asked import Asked, probes
from approx.spectra.result import Spectrum, around
from approx.spectra.rounding import weighed


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
    k = asked.k
    y, _ = projected(op, k, rng, begun)
    values = singular_values(y).cpu()
    w = weighed(values, op, asked, sketched=True)
    psi, nu, rank = w.psi, w.nu, w.rank
    gram = (y.mT @ y).cpu()
    # this draw and another differ by the spread of both
    spread = one_draw.spread_of_scaling(values, rank, op.rows)
    factor = float(student.ppf(0.975, max(k - 1, 1)))
    # W sees all directions of J: its law is known, not estimated
    known = (rank < k) | (k == op.columns)
    spread = torch.where(known, one_draw.spread_where_all_is_seen(rank, k, op.rows), spread)
    psi_factor = torch.where(known, float(normal.ppf(0.975)), factor)
    psi_stderr = (math.sqrt(2) * spread).hypot(w.psi_error)
    nu_stderr = (math.sqrt(2) * one_draw.spread_of_rank(gram, nu)).hypot(w.nu_error)
    return Spectrum(
        psi=psi,
        nu=nu,
        psi_stderr=psi_stderr,
        nu_stderr=nu_stderr,
        psi_interval=around(psi, psi_factor * psi_stderr),
        nu_interval=around(nu, factor * nu_stderr),
        effective_rank=one_draw.effective_rank(gram, op.rows),
        rank=rank,
        fell_back=torch.zeros_like(rank).bool(),
        products=k,
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
