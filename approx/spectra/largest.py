"""The k largest singular values, by block Krylov."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from approx.sketches import Operator, block_krylov
from approx.spectra.asked import Asked, probes
from approx.spectra.result import Spectrum, pair, psi_nu
from approx.spectra.rounding import weighed


def topk(op: Operator, asked: Asked) -> Spectrum:
    """Take the k largest Ritz values of a block Krylov space, and bound what they miss."""
    k = asked.k
    sketch = block_krylov(op, k, block=asked.block, depth=asked.depth, generator=probes(asked))
    values, upper = sketch.singular_values, sketch.upper
    assert upper is not None
    w = weighed(values, op, asked)
    upper = torch.maximum(values, upper)
    # what was found to be zero may be overlooked instead, and is in psi then
    least = w.tolerance * values[:, :1]
    zero = values <= least
    low = torch.where(zero & (upper > least), least.clamp(_TINY, 1), 1).log().sum(dim=1)
    high = torch.where(zero, torch.where(upper > least, upper, 1).clamp_min(1), upper)
    high = high.log().sum(dim=1) + 2 * w.psi_error
    unknown = torch.full_like(w.psi, math.nan)
    # where all values are equal, nu moves by its own rounding alone
    half = (2 * w.nu_error + 8 * torch.finfo(w.nu.dtype).eps * w.nu)[:, None]
    return Spectrum(
        psi=w.psi,
        nu=w.nu,
        psi_stderr=unknown,
        nu_stderr=unknown,
        psi_interval=pair(w.psi + low - 2 * w.psi_error, high),
        nu_interval=rank_between(values, upper) + torch.cat([-half, half], dim=1),
        effective_rank=sketch.effective_rank,
        rank=w.rank,
        fell_back=torch.zeros_like(w.rank).bool(),
        continued=torch.zeros_like(w.rank).bool(),
        products=sketch.products,
        method=asked.method,
        used="topk",
        k=k,
        seed=asked.seed,
        definition=asked.definition,
        subscript=asked.subscript,
        doubtful=w.doubtful,
        note="",
        tolerance=w.tolerance,
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
