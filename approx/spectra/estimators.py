"""Four estimators of psi and nu: a draw of W, its prediction, the k largest values, all values.

Each takes an operator and an `Asked`, and returns a `Spectrum`. `methods.py` holds their table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from scipy.stats import norm as normal
from scipy.stats import t as student
from torch import Tensor

from approx.sketches import Operator, block_krylov, projected, singular_values
from approx.spectra import one_draw, prediction
from approx.spectra.result import Spectrum, around, pair, psi_nu

FALL_BACK_ABOVE = 0.5
"""Share k / r_eff above which "predict" makes all k products."""


class DenseOperator(Operator, Protocol):
    """An operator that can also be written out as a matrix."""

    def dense(self, max_bytes: float = ...) -> Tensor:
        """Matrices (B, D, d)."""
        ...


@dataclass(frozen=True)
class Asked:
    """One call of `spectrum`, its arguments checked.

    `definition` says what psi and nu are of; `seed` is None for a method without probes.
    """

    method: str
    definition: str
    k: int
    seed: int | None
    tolerance: float | None
    products: int
    block: int
    depth: int
    max_bytes: float


def _probes(asked: Asked) -> torch.Generator:
    assert asked.seed is not None
    return torch.Generator().manual_seed(asked.seed)


def _zero_below(asked: Asked, size: int, dtype: torch.dtype) -> float:
    """Return the relative tolerance for matrices whose longer side is `size`."""
    if asked.tolerance is not None:
        return asked.tolerance
    return size * torch.finfo(dtype if dtype.itemsize >= 4 else torch.float32).eps


def exact(op: DenseOperator, asked: Asked) -> Spectrum:
    """Take all singular values of the dense Jacobian."""
    if op.dtype != torch.float64:
        raise ValueError(
            f"Expected an operator in float64 for method='exact', got {op.dtype}: make it with "
            "JacobianOperator(decoder, z, dtype=torch.float64)."
        )
    values = singular_values(op.dense(asked.max_bytes)).cpu()
    tolerance = _zero_below(asked, max(op.rows, op.columns), op.dtype)
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
        tolerance=tolerance,
        singular_values=values,
    )


def topk(op: Operator, asked: Asked) -> Spectrum:
    """Take the k largest Ritz values of a block Krylov space, and bound what they miss."""
    k = asked.k
    sketch = block_krylov(op, k, block=asked.block, depth=asked.depth, generator=_probes(asked))
    values, residuals = sketch.singular_values, sketch.residuals
    assert residuals is not None
    tolerance = _zero_below(asked, asked.block * asked.depth, op.dtype)
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
        tolerance=tolerance,
        singular_values=values,
    )


def paper(op: Operator, asked: Asked) -> Spectrum:
    """Take the k singular values of W J for one draw of W."""
    return _one_draw(op, asked, _probes(asked))


def _one_draw(
    op: Operator,
    asked: Asked,
    rng: torch.Generator,
    begun: tuple[Tensor, Tensor] | None = None,
) -> Spectrum:
    """Draw W, going on from the probes and products of a prediction where it has begun."""
    k = asked.k
    y, _ = projected(op, k, rng, begun)
    values = singular_values(y).cpu()
    tolerance = _zero_below(asked, max(k, op.columns), op.dtype)
    psi, nu, rank = psi_nu(values, tolerance)
    gram = (y.mT @ y).cpu()
    # this draw and another differ by the spread of both
    spread = one_draw.spread_of_scaling(values, rank, op.rows)
    factor = float(student.ppf(0.975, max(k - 1, 1)))
    # W sees all directions of J: its law is known, not estimated
    known = (rank < k) | (k == op.columns)
    spread = torch.where(known, one_draw.spread_where_all_is_seen(rank, k, op.rows), spread)
    psi_factor = torch.where(known, float(normal.ppf(0.975)), factor)
    psi_stderr, nu_stderr = math.sqrt(2) * spread, math.sqrt(2) * one_draw.spread_of_rank(gram, nu)
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
        tolerance=tolerance,
        singular_values=values,
    )


def predict(op: Operator, asked: Asked) -> Spectrum:
    """Predict psi_W and nu_W of a draw of W, or make the draw where that is not safe."""
    k, products, rng = asked.k, asked.products, _probes(asked)
    if products < 8:
        raise ValueError(
            f"Expected products >= 8 for method='predict', got {products}: a trace and a spectral "
            "measure need as many; 16 is the default."
        )
    # the quantity itself costs no more, or r_eff <= min(D, d) says beforehand that it is needed
    if k <= products or k > FALL_BACK_ABOVE * min(op.rows, op.columns):
        drawn = _one_draw(op, asked, rng)
        return replace(drawn, fell_back=torch.ones_like(drawn.fell_back))
    m, begun = prediction.measure(op, products, rng)
    r_eff = prediction.effective_rank(m)
    fell_back = k > FALL_BACK_ABOVE * r_eff
    spent = k + products - m.rows
    if fell_back.all():
        drawn = _one_draw(op, asked, rng, begun)
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
        tolerance=_zero_below(asked, max(k, op.columns), op.dtype),
        singular_values=None,
    )
    if not fell_back.any():
        return result
    return _merged(result, _one_draw(op, asked, rng, begun), spent)


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
    columns += ("effective_rank", "rank")
    return replace(
        result,
        **{name: pick(getattr(result, name), getattr(drawn, name)) for name in columns},
        products=products,
        used=f"predict, paper for {int(fell_back.sum())} of {len(fell_back)} latents",
        singular_values=pick(
            torch.full_like(drawn.singular_values, math.nan), drawn.singular_values
        ),
    )
