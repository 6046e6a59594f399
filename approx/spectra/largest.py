"""The k largest singular values, by block Krylov."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from approx.sketches import Operator, block_krylov
from approx.spectra.asked import Asked, probes, zero_below
from approx.spectra.result import Spectrum, pair, psi_nu


def topk(op: Operator, asked: Asked) -> Spectrum:
    """Take the k largest Ritz values of a block Krylov space, and bound what they miss."""
    k = asked.k
    sketch = block_krylov(op, k, block=asked.block, depth=asked.depth, generator=probes(asked))
    values, upper = sketch.singular_values, sketch.upper
    assert upper is not None
    tolerance = zero_below(asked, asked.block * asked.depth, op.dtype)
    psi, nu, rank = psi_nu(values, tolerance)
    # what counts as zero is in no logarithm, wherever between the bounds it is
    high = torch.where(values > tolerance * values[:, :1], torch.maximum(values, upper), 1)
    unknown = torch.full_like(psi, math.nan)
    return Spectrum(
        psi=psi,
        nu=nu,
        psi_stderr=unknown,
        nu_stderr=unknown,
        psi_interval=pair(psi, high.log().sum(dim=1)),
        nu_interval=rank_between(values, torch.maximum(values, upper)),
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


def rank_between(low: Tensor, high: Tensor) -> Tensor:
    """Return the least and the largest nu (B, 2) for low <= sigma <= high, both (B, k), descending.

    d nu / d sigma_i has the sign of t - sigma_i, log t = sum alpha_j log sigma_j. So nu is least
    where the first j values are as high and the others as low as can be, for some j, and largest
    where every value is as near to one t as can be: a zero of a function that changes sign once,
    as log nu is a concave function of sigma over a linear one.
    """
    first = torch.ones(low.shape[1] + 1, low.shape[1], dtype=torch.bool).tril(-1)
    ends = torch.where(first, high[:, None], low[:, None])
    below, above = low[:, -1:].clamp_min(_TINY), high[:, :1].clamp_min(_TINY)
    for _ in range(60):
        t = below.sqrt() * above.sqrt()
        sigma = t.clamp(low, high)
        excess = _level(sigma) > t
        below, above = torch.where(excess, t, below), torch.where(excess, above, t)
    return pair(_rank(ends).amin(dim=1), _rank(above.clamp(low, high)))


def _level(sigma: Tensor) -> Tensor:
    """Return t (B, 1), log t = sum alpha_i log sigma_i."""
    alpha = sigma / sigma.sum(dim=-1, keepdim=True).clamp_min(_TINY)
    return (alpha * sigma.clamp_min(_TINY).log()).sum(dim=-1, keepdim=True).exp()


def _rank(sigma: Tensor) -> Tensor:
    shape = sigma.shape[:-1]
    return psi_nu(sigma.reshape(-1, sigma.shape[-1]), 0)[1].reshape(shape)


_TINY = torch.finfo(torch.float64).tiny
