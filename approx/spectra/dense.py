"""All singular values, of the Jacobian written out."""

from __future__ import annotations

import torch

from approx.sketches import singular_values
from approx.spectra import prediction
from approx.spectra.asked import Asked, DenseOperator
from approx.spectra.result import Spectrum, around
from approx.spectra.rounding import weighed


def exact(op: DenseOperator, asked: Asked) -> Spectrum:
    """Take all singular values of the dense Jacobian."""
    values = singular_values(op.dense(asked.max_bytes)).cpu()
    squares = values.square()
    r_eff = prediction.ratio(squares.sum(dim=1).square(), squares.square().sum(dim=1))
    values = values[:, : asked.k]
    w = weighed(values, op, asked)
    return Spectrum(
        psi=w.psi,
        nu=w.nu,
        psi_stderr=w.psi_error,
        nu_stderr=w.nu_error,
        psi_interval=around(w.psi, 2 * w.psi_error),
        nu_interval=around(w.nu, 2 * w.nu_error),
        effective_rank=r_eff,
        rank=w.rank,
        fell_back=torch.zeros_like(w.rank).bool(),
        continued=torch.zeros_like(w.rank).bool(),
        products=min(op.rows, op.columns),
        method=asked.method,
        used="exact",
        k=asked.k,
        seed=None,
        definition=asked.definition,
        subscript=asked.subscript,
        doubtful=w.doubtful,
        note="",
        tolerance=w.tolerance,
        singular_values=values,
    )
