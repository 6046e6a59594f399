"""The k largest singular values, by block Krylov."""

from __future__ import annotations

import math

import torch

from approx.sketches import Operator, block_krylov
from approx.spectra.asked import Asked, probes, zero_below
from approx.spectra.result import Spectrum, pair, psi_nu


def topk(op: Operator, asked: Asked) -> Spectrum:
    """Take the k largest Ritz values of a block Krylov space, and bound what they miss."""
    k = asked.k
    sketch = block_krylov(op, k, block=asked.block, depth=asked.depth, generator=probes(asked))
    values, residuals = sketch.singular_values, sketch.residuals
    assert residuals is not None
    tolerance = zero_below(asked, asked.block * asked.depth, op.dtype)
    psi, nu, rank = psi_nu(values, tolerance)
    # beyond the rank a residual bound is rounding, and its logarithm is not an error of psi
    kept = torch.arange(k) < rank[:, None]
    high = torch.where(kept, values + residuals, values)
    psi_high = torch.where(kept, high, 1).log().sum(dim=1)
    nu_high = psi_nu(torch.where(high.isinf(), values[:, :1], high), tolerance)[1]
    unknown = torch.full_like(psi, math.nan)
    return Spectrum(
        psi=psi,
        nu=nu,
        psi_stderr=unknown,
        nu_stderr=unknown,
        psi_interval=pair(psi, psi_high),
        nu_interval=pair(nu, torch.maximum(nu, nu_high)),
        effective_rank=sketch.effective_rank,
        rank=rank,
        fell_back=torch.zeros_like(rank).bool(),
        products=sketch.products,
        method=asked.method,
        used="topk",
        k=k,
        seed=asked.seed,
        definition=asked.definition,
        subscript=asked.subscript,
        doubtful=torch.zeros_like(rank),
        note="",
        tolerance=tolerance,
        singular_values=values,
    )
