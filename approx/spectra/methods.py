"""psi and nu of a Jacobian: the paper's sketch, its prediction, the largest values, or all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, Protocol, get_args

import torch
from scipy.stats import norm as normal
from scipy.stats import t as student
from torch import Tensor

from approx.sketches import Operator, block_krylov, check_count, projected, singular_values
from approx.spectra import one_draw, prediction
from approx.spectra.result import Spectrum, around, draw_seed, pair, psi_nu

Method = Literal["predict", "paper", "topk", "exact"]

DEFAULT_K = 120
_BREAKS = 0.5  # k / r_eff above which all k products are made

_DEFINITIONS = {
    "predict": "singular values of W J, W ({k}, D) Haar: psi and nu of a draw of W, predicted",
    "paper": "singular values of W J, W ({k}, D) Haar, unscaled",
    "topk": "the {k} largest singular values of J, by block Krylov",
    "exact": "the {k} largest singular values of J, dense float64",
}


class DenseOperator(Operator, Protocol):
    """An operator that can also be written out as a matrix."""

    def dense(self, max_bytes: float = ...) -> Tensor:
        """Matrices (B, D, d)."""
        ...


def spectrum(
    op: DenseOperator,
    *,
    method: Method = "predict",
    k: int | None = None,
    generator: torch.Generator | int | None = None,
    products: int = 16,
    block: int = 16,
    depth: int = 14,
    tolerance: float | None = None,
    max_bytes: float = 1e9,
) -> Spectrum:
    """Return psi and nu of every latent of an operator.

    Parameters
    ----------
    op : JacobianOperator
        Or anything with its products.
    method : {"predict", "paper", "topk", "exact"}
        "paper": the k singular values of W J for a Haar W (k, D), from k products J^T y.
        "predict": the same quantity from fewer products, with an interval; all k products for
        latents with k / r_eff > 0.5, where the expectation is no longer safe to compute, and for
        all where k <= products or k > min(D, d) / 2, which says so beforehand. "topk": the k
        largest singular values of J by block Krylov, from 440 products. "exact": the k largest of
        the dense Jacobian; needs an operator in float64.
    k : int, optional
        Number of singular values, at most min(D, d). By default 120, or min(D, d) where that is
        less; for "exact", all min(D, d).
    generator : torch.Generator or int, optional
        A seed, or a CPU generator from which one is drawn (`draw_seed`: calls with the same
        generator one after the other are independent). By default one from the operating system.
        Probes depend on the seed, D and k alone and are common to the latents of the call: values
        do not depend on batches, and errors of different latents are correlated.
    products : int
        For "predict": Jacobian products per latent, at least 8.
    block, depth : int
        For "topk": see `approx.sketch.block_krylov`.
    tolerance : float, optional
        Singular values at most this times the largest are zero: not part of psi. By default
        max(shape) * eps of the working dtype (float32's for half precision), as
        numpy.linalg.matrix_rank, for the matrix whose singular values were taken.
    max_bytes : float
        For "exact": the largest dense Jacobian.

    Returns
    -------
    Spectrum

    Raises
    ------
    ValueError
        If k is larger than the output or the latent, products < 8, the Jacobian is too large or not
        in float64 for "exact", or the method is unknown.

    Notes
    -----
    Cost: products as said, about one forward pass each; the rest is O(D k^2) once per call and
    O(d k^2) per latent. The error of a prediction falls as 1 / sqrt(products): at 16 it is about
    k / sqrt(20 r_eff) in psi. DESIGN's leading order, psi_W ~ k log(||J||_F / sqrt D) -
    k^2 / (4 r_eff) and nu_W ~ k exp(-k / (8 r_eff)), is what `approx.spectra.prediction` refines. That is
    unbiased up to k / r_eff = 0.5; where k / r_eff is so near 0.5 that its own error decides
    whether to fall back, that choice selects, and means over seeds are then high by up to a few
    tenths of a standard error.
    """
    smaller = min(op.rows, op.columns)
    if method not in get_args(Method):
        raise ValueError(f"Expected method in {', '.join(get_args(Method))}, got {method!r}.")
    if k is None:
        k = smaller if method == "exact" else min(DEFAULT_K, smaller)
    check_count(k, smaller, "min(outputs, latent size)")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ValueError(f"Expected a relative tolerance in [0, 1), got {tolerance}.")
    if method == "exact":
        return _exact(op, k, tolerance, max_bytes)
    seed = draw_seed(generator)
    rng = torch.Generator().manual_seed(seed)
    if method == "topk":
        return _topk(op, k, rng, seed, tolerance, block, depth)
    if method == "paper":
        return _paper(op, k, rng, seed, tolerance)
    if products < 8:
        raise ValueError(
            f"Expected products >= 8 for method='predict', got {products}: a trace and a spectral "
            "measure need as many; 16 is the default."
        )
    return _predicted(op, k, rng, seed, tolerance, products)


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype if dtype.itemsize >= 4 else torch.float32).eps


def _exact(op: DenseOperator, k: int, tolerance: float | None, max_bytes: float) -> Spectrum:
    if op.dtype != torch.float64:
        raise ValueError(
            f"Expected an operator in float64 for method='exact', got {op.dtype}: make it with "
            "JacobianOperator(decoder, z, dtype=torch.float64)."
        )
    values = singular_values(op.dense(max_bytes)).cpu()
    tolerance = max(op.rows, op.columns) * _eps(op.dtype) if tolerance is None else tolerance
    squares = values.square()
    r_eff = prediction.ratio(squares.sum(dim=1).square(), squares.square().sum(dim=1))
    values = values[:, :k]
    psi, nu, rank = psi_nu(values, tolerance)
    zero = torch.zeros_like(psi)
    return Spectrum(
        psi, nu, zero, zero, pair(psi, psi), pair(nu, nu), r_eff, rank, zero.bool(),
        min(op.rows, op.columns), "exact", "exact", k, None, _DEFINITIONS["exact"].format(k=k),
        tolerance, values,
    )  # fmt: skip


def _topk(
    op: Operator,
    k: int,
    rng: torch.Generator,
    seed: int,
    tolerance: float | None,
    block: int,
    depth: int,
) -> Spectrum:
    sketch = block_krylov(op, k, block=block, depth=depth, generator=rng)
    values, residuals = sketch.singular_values, sketch.residuals
    assert residuals is not None
    if tolerance is None:
        tolerance = block * depth * _eps(op.dtype)
    psi, nu, rank = psi_nu(values, tolerance)
    # beyond the rank a residual bound is rounding, and its logarithm is not an error of psi
    kept = torch.arange(k) < rank[:, None]
    high = torch.where(kept, values + residuals, values)
    psi_high = torch.where(kept, high, 1).log().sum(dim=1)
    nu_high = psi_nu(torch.where(high.isinf(), values[:, :1], high), tolerance)[1]
    unknown = torch.full_like(psi, math.nan)
    return Spectrum(
        psi, nu, unknown, unknown, pair(psi, psi_high), pair(nu, torch.maximum(nu, nu_high)),
        sketch.effective_rank, rank, torch.zeros_like(rank).bool(), sketch.products, "topk",
        "topk", k, seed, _DEFINITIONS["topk"].format(k=k), tolerance, values,
    )  # fmt: skip


def _paper(
    op: Operator,
    k: int,
    rng: torch.Generator,
    seed: int,
    tolerance: float | None,
    begun: tuple[Tensor, Tensor] | None = None,
) -> Spectrum:
    y, _ = projected(op, k, rng, begun)
    values = singular_values(y).cpu()
    if tolerance is None:
        tolerance = max(k, op.columns) * _eps(op.dtype)
    psi, nu, rank = psi_nu(values, tolerance)
    gram = (y.mT @ y).cpu()
    r_eff = one_draw.effective_rank(gram, op.rows)
    # this draw and another differ by the spread of both
    spread = one_draw.spread_of_scaling(values, rank, op.rows)
    factor = float(student.ppf(0.975, max(k - 1, 1)))
    # W sees all directions of J: its law is known, not estimated
    known = (rank < k) | (k == op.columns)
    spread = torch.where(known, one_draw.spread_where_all_is_seen(rank, k, op.rows), spread)
    psi_factor = torch.where(known, float(normal.ppf(0.975)), factor)
    psi_stderr, nu_stderr = math.sqrt(2) * spread, math.sqrt(2) * one_draw.spread_of_rank(gram, nu)
    return Spectrum(
        psi, nu, psi_stderr, nu_stderr, around(psi, psi_factor * psi_stderr),
        around(nu, factor * nu_stderr), r_eff, rank, torch.zeros_like(rank).bool(), k, "paper",
        "paper", k, seed, _DEFINITIONS["paper"].format(k=k), tolerance, values,
    )  # fmt: skip


def _predicted(
    op: Operator, k: int, rng: torch.Generator, seed: int, tolerance: float | None, products: int
) -> Spectrum:
    definition = _DEFINITIONS["predict"].format(k=k)
    # the quantity itself costs no more, or r_eff <= min(D, d) says beforehand that it is needed
    if k <= products or k > _BREAKS * min(op.rows, op.columns):
        paper = _paper(op, k, rng, seed, tolerance)
        return _with(paper, torch.ones_like(paper.fell_back), definition, k)
    m, begun = prediction.measure(op, products, rng)
    r_eff = prediction.effective_rank(m)
    fell_back = k > _BREAKS * r_eff
    if fell_back.all():
        paper = _paper(op, k, rng, seed, tolerance, begun)
        spent = k + products - m.rows
        return _with(paper, fell_back, definition, spent)
    # latents that fall back get any well-behaved measure here: their results are replaced below
    safe = prediction.Measure(
        torch.where(fell_back[:, None], 1 / op.rows, m.nodes),
        torch.where(fell_back[:, None], 1 / m.nodes.shape[1], m.masses),
        *m[2:],
    )
    factor = prediction.factor(safe)
    psi, psi_stderr, psi_interval = _estimate(prediction.scaling(safe, k), factor)
    nu, nu_stderr, nu_interval = _estimate(prediction.rank(safe, k), factor)
    result = Spectrum(
        psi, nu, psi_stderr, nu_stderr, psi_interval, nu_interval.clamp(1, k), r_eff,
        torch.full_like(fell_back, k, dtype=torch.int64), fell_back, products, "predict",
        "predict", k, seed, definition,
        max(k, op.columns) * _eps(op.dtype) if tolerance is None else tolerance, None,
    )  # fmt: skip
    if not fell_back.any():
        return result
    paper = _paper(op, k, rng, seed, tolerance, begun)
    return _merged(result, paper, fell_back, k + products - m.rows)


def _estimate(p: prediction.Prediction, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    stderr = (p.variance + p.spread).sqrt()
    return p.value, stderr, around(p.value, factor * stderr)


def _with(paper: Spectrum, fell_back: Tensor, definition: str, products: int) -> Spectrum:
    return replace(
        paper, fell_back=fell_back, method="predict", products=products, definition=definition
    )


def _merged(result: Spectrum, paper: Spectrum, fell_back: Tensor, products: int) -> Spectrum:
    """Take the latents that fell back from `paper`."""

    def pick(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(fell_back if one.ndim == 1 else fell_back[:, None], other, one)

    assert paper.singular_values is not None
    return replace(
        result,
        psi=pick(result.psi, paper.psi),
        nu=pick(result.nu, paper.nu),
        psi_stderr=pick(result.psi_stderr, paper.psi_stderr),
        nu_stderr=pick(result.nu_stderr, paper.nu_stderr),
        psi_interval=pick(result.psi_interval, paper.psi_interval),
        nu_interval=pick(result.nu_interval, paper.nu_interval),
        effective_rank=pick(result.effective_rank, paper.effective_rank),
        rank=pick(result.rank, paper.rank),
        products=products,
        used=f"predict, paper for {int(fell_back.sum())} of {len(fell_back)} latents",
        singular_values=pick(
            torch.full_like(paper.singular_values, math.nan), paper.singular_values
        ),
    )
