"""psi_W and nu_W of a draw of W, predicted from few products."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from approx.sketches import Operator
from approx.spectra import prediction
from approx.spectra.asked import Asked, probes, tolerance_of
from approx.spectra.drawn import draw
from approx.spectra.result import Spectrum, around

FALL_BACK_ABOVE = 0.5
"""Share k / r_eff above which "predict" makes all k products."""


def predict(op: Operator, asked: Asked) -> Spectrum:
    """Predict psi_W and nu_W of a draw of W, or make the draw where that is not safe."""
    k, products, rng = asked.k, asked.products, probes(asked)
    if products < 8:
        raise ValueError(
            f"Expected products >= 8 for method='predict', got {products}: a trace and a spectral "
            "measure need as many; 16 is the default."
        )
    # the quantity itself costs no more, or r_eff <= min(D, d) says beforehand that it is needed
    if k <= products or k > FALL_BACK_ABOVE * min(op.rows, op.columns):
        drawn = draw(op, asked, rng)
        return replace(drawn, fell_back=torch.ones_like(drawn.fell_back))
    m, begun = prediction.measure(op, products, rng)
    r_eff = prediction.effective_rank(m)
    fell_back = k > FALL_BACK_ABOVE * r_eff
    spent = k + products - m.rows
    if fell_back.all():
        drawn = draw(op, asked, rng, begun)
        return replace(drawn, fell_back=fell_back, products=spent)
    # latents that fall back get any well-behaved measure here: their results are replaced below
    safe = m._replace(
        nodes=torch.where(fell_back[:, None], 1 / op.rows, m.nodes),
        masses=torch.where(fell_back[:, None], 1 / m.nodes.shape[1], m.masses),
    )
    factor = prediction.factor(safe)
    psi, psi_stderr, psi_interval = _estimate(prediction.scaling(safe, k), factor)
    nu, nu_stderr, nu_interval = _estimate(prediction.rank(safe, k), factor)
    result = Spectrum(
        psi=psi,
        nu=nu,
        psi_stderr=psi_stderr,
        nu_stderr=nu_stderr,
        psi_interval=psi_interval,
        nu_interval=nu_interval.clamp(1, k),
        effective_rank=r_eff,
        rank=torch.full_like(fell_back, k, dtype=torch.int64),
        fell_back=fell_back,
        products=products,
        method=asked.method,
        used="predict",
        k=k,
        seed=asked.seed,
        definition=asked.definition,
        subscript=asked.subscript,
        doubtful=torch.zeros_like(fell_back.long()),
        note="",
        tolerance=tolerance_of(asked),
        singular_values=None,
    )
    if not fell_back.any():
        return result
    return _merged(result, draw(op, asked, rng, begun), spent)


def _estimate(p: prediction.Prediction, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return value, standard error and 95 % interval."""
    stderr = (p.variance + p.spread).sqrt()
    return p.value, stderr, around(p.value, factor * stderr)


def _merged(result: Spectrum, drawn: Spectrum, products: int) -> Spectrum:
    """Take the latents that fell back from the draw."""
    fell_back = result.fell_back

    def pick(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(fell_back if one.ndim == 1 else fell_back[:, None], other, one)

    assert drawn.singular_values is not None
    columns = ("psi", "nu", "psi_stderr", "nu_stderr", "psi_interval", "nu_interval")
    columns += ("effective_rank", "rank", "doubtful")
    return replace(
        result,
        **{name: pick(getattr(result, name), getattr(drawn, name)) for name in columns},
        products=products,
        used=f"predict, paper for {int(fell_back.sum())} of {len(fell_back)} latents",
        singular_values=pick(
            torch.full_like(drawn.singular_values, math.nan), drawn.singular_values
        ),
    )
