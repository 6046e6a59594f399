"""Running error analysis: bounds on the rounding error of a pass in float64.

For an affine operation y = f(x) = L x + b that sums n products, computed from x with error at most
e and magnitude at most m (entry by entry),

    |computed - exact| <= |L| e + gamma_n (|L| m + |b|),    gamma_n = n u / (1 - n u),

in whatever order and with or without fused multiply-adds the sums are taken (Higham, Accuracy and
Stability of Numerical Algorithms, 2nd ed., section 3.1). |L| is the same torch operation with
absolute parameters, so a bound costs one pass on one sample. Magnitudes are maxima over the rows of
a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cpwl.arrays import UNIT_ROUNDOFF


class Rounding(NamedTuple):
    """How an affine operation rounds.

    Attributes
    ----------
    terms : int
        Number of roundings on the way to one output; 0 for operations that only move entries.
    linear : callable or None
        |L|, called with the operation's own arguments, non-negative data; None: the operation.
    constant : callable or None
        |b| (or None) from the same arguments; not asked for where `terms` is 0.
    """

    terms: int
    linear: Callable[..., Tensor] | None = None
    constant: Callable[..., Tensor | None] | None = None


def gamma(terms: int) -> float:
    """n u / (1 - n u), for two terms more than given: the bound itself is computed in float64."""
    n = (terms + 2) * UNIT_ROUNDOFF
    return n / (1 - n)


def magnitude(x: Tensor, single: tuple[int, ...], leading: bool) -> Tensor:
    """Largest absolute value over the batch, with a batch axis of one."""
    if not leading:
        return x.abs().max().expand(single)
    # Two reductions: torch.aminmax over the first axis takes four times as long as both.
    return torch.maximum(x.amax(0, keepdim=True), -x.amin(0, keepdim=True))


def absolute(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the same operation on absolute values of every floating argument."""

    def apply(*args: Any, **kwargs: Any) -> Tensor:
        return function(*map(_absolute, args), **{k: _absolute(v) for k, v in kwargs.items()})

    return apply


def _absolute(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.abs()
    return abs(value) if isinstance(value, float) else value
