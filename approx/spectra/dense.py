"""All singular values, of the Jacobian written out."""

from __future__ import annotations

import torch

from approx.sketches import singular_values
from approx.spectra import prediction
from approx.spectra.asked import Asked, DenseOperator, zero_below
from approx.spectra.result import Spectrum, pair, psi_nu


def exact(op: DenseOperator, asked: Asked) -> Spectrum:
    """Take all singular values of the dense Jacobian."""
    if op.dtype != torch.float64:
        raise ValueError(
            f"Expected an operator in float64 for method='exact', got {op.dtype}: make it with "
            "JacobianOperator(decoder, z, dtype=torch.float64)."
        )
    values = singular_values(op.dense(asked.max_bytes)).cpu()
    tolerance = zero_below(asked, max(op.rows, op.columns), op.dtype)
    squares = values.square()
    r_eff = prediction.ratio(squares.sum(dim=1).square(), squares.square().sum(dim=1))
    values = values[:, : asked.k]
    psi, nu, rank = psi_nu(values, tolerance)
    zero = torch.zeros_like(psi)
    return Spectrum(
        psi=psi,
        nu=nu,
        psi_stderr=zero,
        nu_stderr=zero,
        psi_interval=pair(psi, psi),
        nu_interval=pair(nu, nu),
        effective_rank=r_eff,
        rank=rank,
        fell_back=zero.bool(),
        products=min(op.rows, op.columns),
        method=asked.method,
        used="exact",
        k=asked.k,
        seed=None,
        definition=asked.definition,
        subscript=asked.subscript,
        doubtful=torch.zeros_like(rank),
        note="",
        tolerance=tolerance,
        singular_values=values,
    )
