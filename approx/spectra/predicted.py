"""psi_W and nu_W of a draw of W, predicted from few products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from approx.sketches import Operator
from approx.spectra import one_draw, prediction
from approx.spectra.asked import Asked, kept_probes, tolerance_of
from approx.spectra.drawn import draw
from approx.spectra.result import NORMAL, Spectrum, around, merged, rows

FALL_BACK_ABOVE = 0.5
"""Share k / r_eff above which "predict" makes all k products."""


def predict(op: Operator, asked: Asked) -> Spectrum:
    """Predict psi_W and nu_W of a draw of W, or make the draw where that is not safe."""
    k, products = asked.k, asked.products
    if products < 8:
        raise ValueError(
            f"Expected products >= 8 for method='predict', got {products}: a trace and a spectral "
            "measure need as many; 16 is the default."
        )
    # the quantity itself costs no more, or r_eff <= min(D, d) says beforehand that it is needed
    if k <= products or k > FALL_BACK_ABOVE * min(op.rows, op.columns):
        drawn = draw(op, asked)
        return replace(drawn, fell_back=torch.ones_like(drawn.fell_back))
    m, other, begun = prediction.measure(op, products, kept_probes(asked))
    r_eff = prediction.effective_rank(m)
    fell_back = k > FALL_BACK_ABOVE * r_eff
    spent = one_draw.rows_for(k, op.rows) + products - m.rows
    if fell_back.all():
        drawn = draw(op, asked, begun)
        return replace(drawn, fell_back=fell_back, products=spent)
    # latents that fall back get any well-behaved measure here: their results are replaced below
    m, other = (_replaced(measure, fell_back) for measure in (m, other))
    psi, psi_stderr, psi_interval = _estimate(prediction.scaling, m, other, k)
    nu, nu_stderr, nu_interval = _estimate(prediction.rank, m, other, k)
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
    return _merged(result, draw(op, asked, begun), spent)


def _replaced(m: prediction.Measure, where: Tensor) -> prediction.Measure:
    """Put a flat measure where latents fall back."""
    return m._replace(
        nodes=torch.where(where[:, None], 1 / m.outputs, m.nodes),
        masses=torch.where(where[:, None], 1 / m.nodes.shape[1], m.masses),
    )


def _estimate(
    of: Callable[[prediction.Measure, int], prediction.Prediction],
    m: prediction.Measure,
    other: prediction.Measure,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return value, standard error and 95 % interval.

    Normal and not Student's: few probes that saw a dominating direction overstate the variance, and
    those that missed it have `other`, which is no less.
    """
    p, q = of(m, k), of(other, k)
    variance = torch.maximum(p.variance + p.spread, q.variance + q.spread)
    stderr = (variance + (p.value - q.value).square()).sqrt()
    return p.value, stderr, around(p.value, NORMAL * stderr)


def _merged(result: Spectrum, drawn: Spectrum, products: int) -> Spectrum:
    """Take the latents that fell back from the draw."""
    fell_back, values = result.fell_back, drawn.singular_values
    assert values is not None
    unknown = replace(result, singular_values=torch.full_like(values, math.nan))
    where = fell_back.nonzero()[:, 0]
    return replace(
        merged(unknown, where, rows(replace(drawn, fell_back=fell_back), where)),
        products=products,
        used=f"predict, paper for {int(fell_back.sum())} of {len(fell_back)} latents",
    )
