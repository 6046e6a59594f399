"""psi_W and nu_W of a draw of W, predicted from few products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from approx.sketches import Operator, projected, triangular
from approx.spectra import prediction
from approx.spectra.asked import Asked, kept_probes, tolerance_of
from approx.spectra.drawn import draw
from approx.spectra.result import NORMAL, Spectrum, around, in_words, merged, psi_nu, rows

NEAR = 0.5
"""Share k / r_eff up to which the first products of "predict" are enough."""
FAR = 0.8
"""Share k / r_eff above which "predict" makes all k products."""
_SURE = 0.3
"""Relative variance of tr M^2 above which it does so beyond `NEAR`.

Few directions then make tr M^2, of which the continued rows may see too little, and think r_eff
larger and their own variance smaller than they are.
"""


def predict(op: Operator, asked: Asked) -> Spectrum:
    """Predict psi_W and nu_W of a draw of W, or make the draw where that is not safe."""
    k, products = asked.k, asked.products
    if products < 8:
        raise ValueError(
            f"Expected products >= 8 for method='predict', got {products}: a trace and a spectral "
            "measure need as many; 16 is the default."
        )
    # the quantity itself costs no more, or r_eff <= min(D, d) says beforehand that it is needed
    if k <= products or k > FAR * min(op.rows, op.columns):
        drawn = draw(op, asked)
        return replace(drawn, fell_back=torch.ones_like(drawn.fell_back))
    seen = prediction.measure(op, products, kept_probes(asked))
    r_eff = prediction.effective_rank(seen.found)
    near = k <= NEAR * r_eff
    # latents that go on get any well-behaved measure here: their results are replaced below
    found = _replaced(seen, ~near)
    psi, nu = (
        [of(m, k) for m in (found.found, found.other)]
        for of in (prediction.scaling, prediction.rank)
    )
    result = _spectrum(asked, psi, nu, r_eff, products)
    if near.all():
        return result
    # every latent of a batch goes on by the same blocks, whatever the others need
    more = max(round(k / 3), products)
    y, begun = projected(op, more, kept_probes(asked), seen.begun)
    spent = products - seen.found.rows
    between = ~near & (k <= FAR * r_eff) & (prediction.uncertainty(seen.found) <= _SURE)
    if between.any():
        seen = prediction.further(op, y, begun, seen.steps)
        spent += 2 * seen.found.continued
        between &= prediction.resolved(seen.found, k) & prediction.resolved(seen.other, k)
        if between.any():
            second = _second(seen, asked, between, more + spent)
            result = _taken(result, replace(second, continued=between), between)
    fell_back = ~(near | between)
    if not fell_back.any():
        return result
    drawn = replace(draw(op, asked, begun), fell_back=fell_back)
    drawn = replace(drawn, products=drawn.products + spent)
    if fell_back.all():
        return drawn
    values = drawn.singular_values
    assert values is not None
    result = replace(result, singular_values=torch.full_like(values, math.nan))
    return _taken(result, drawn, fell_back)


def _second(seen: prediction.Seen, asked: Asked, where: Tensor, products: int) -> Spectrum:
    """Predict from more rows, whose own psi and nu correct the prediction."""
    k = asked.k
    r_eff = prediction.effective_rank(seen.found)
    values = torch.linalg.svdvals(triangular(seen.rows).cpu())
    own_psi, own_nu = psi_nu(values, tolerance_of(asked))
    safe = _replaced(seen, ~where)
    psi, nu = (
        [prediction.controlled(m, of(m, k), of(m, m.rows), own) for m in (safe.found, safe.other)]
        for of, own in ((prediction.scaling, own_psi), (prediction.rank, own_nu))
    )
    return _spectrum(asked, psi, nu, r_eff, products)


def _replaced(seen: prediction.Seen, where: Tensor) -> prediction.Seen:
    """Put a flat measure where latents are not predicted from it."""
    found, other = (
        m._replace(
            nodes=torch.where(where[:, None], 1 / m.outputs, m.nodes),
            masses=torch.where(where[:, None], 1 / m.nodes.shape[1], m.masses),
        )
        for m in (seen.found, seen.other)
    )
    return seen._replace(found=found, other=other)


_Two = Sequence[prediction.Prediction]  # by the measure as it is seen, and by the other


def _spectrum(asked: Asked, psi: _Two, nu: _Two, r_eff: Tensor, products: int) -> Spectrum:
    """Return the spectrum of a batch that is predicted throughout."""
    k = asked.k
    none = torch.zeros_like(r_eff, dtype=torch.int64)
    of_psi, psi_stderr, psi_interval = estimate(*psi)
    of_nu, nu_stderr, nu_interval = estimate(*nu)
    return Spectrum(
        psi=of_psi,
        nu=of_nu.clamp_max(k),
        psi_stderr=psi_stderr,
        nu_stderr=nu_stderr,
        psi_interval=psi_interval,
        nu_interval=nu_interval.clamp(1, k),
        effective_rank=r_eff,
        rank=none + k,
        fell_back=none.bool(),
        continued=none.bool(),
        products=products,
        method=asked.method,
        used="predict",
        k=k,
        seed=asked.seed,
        definition=asked.definition,
        subscript=asked.subscript,
        doubtful=none,
        note="",
        tolerance=tolerance_of(asked),
        singular_values=None,
    )


def estimate(p: prediction.Prediction, q: prediction.Prediction) -> tuple[Tensor, Tensor, Tensor]:
    """Return value, standard error and 95 % interval, by a measure and by another.

    The error is that of the measure as it is seen. The interval is wider where the other one, which
    chance alone makes as often as not, says that a direction was missed: by the larger variance of
    both, and their distance.

    Normal and not Student's: few probes that saw a dominating direction overstate the variance, and
    those that missed it have the other measure, whose is no less.
    """
    variance = p.variance + p.spread
    wide = torch.maximum(variance, q.variance + q.spread) + (p.value - q.value).square()
    return p.value, variance.sqrt(), around(p.value, NORMAL * wide.sqrt())


def _taken(result: Spectrum, other: Spectrum, at: Tensor) -> Spectrum:
    """Take the latents `at` from another spectrum of all of them, and say how all were done."""
    where = at.nonzero()[:, 0]
    found = merged(result, where, rows(other, where))
    counts = (int(found.continued.sum()), int(found.fell_back.sum()))
    return replace(found, products=other.products, used=in_words(len(at), *counts))
