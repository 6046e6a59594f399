"""Tensors of numbers hi + lo, each with a bound on its error."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cpwl.arrays import Floats
from cpwl.engine.precise import expansion_kernels as kernels


class Expansion(NamedTuple):
    """Numbers within ``error`` of hi + lo; the first axis is that of the rows."""

    hi: Tensor
    lo: Tensor
    error: Tensor

    @property
    def flat(self) -> tuple[Floats, Floats, Floats]:
        """Rows of numbers, as arrays that share the memory where the tensors are contiguous."""
        parts = (part.reshape(len(part), -1).numpy() for part in self)
        return tuple(map(np.ascontiguousarray, parts))  # type: ignore[return-value]


def empty(rows: int, shape: tuple[int, ...]) -> Expansion:
    """Make room for rows of this shape."""
    return Expansion(*(torch.empty((rows, *shape), dtype=torch.float64) for _ in range(3)))


def moved(x: Expansion, move: Callable[[Tensor], Tensor]) -> Expansion:
    """Apply what only moves entries."""
    return Expansion(*map(move, x))


def added(a: Expansion, b: Expansion, sign: float = 1.0) -> Expansion:
    """Add numbers: a + sign b; shapes broadcast."""
    shape = torch.broadcast_shapes(a.hi.shape, b.hi.shape)
    flat_a = [part.expand(shape).contiguous().reshape(-1).numpy() for part in a]
    flat_b = [part.expand(shape).contiguous().reshape(-1).numpy() for part in b]
    out = empty(shape[0], tuple(shape[1:]))
    kernels.add(*flat_a, *flat_b, sign, *(part.reshape(-1).numpy() for part in out))
    return out


def scaled(x: Expansion, factor: Tensor, offset: Tensor, values: int) -> Expansion:
    """Multiply by factors, and add offsets to the first rows.

    Row r takes row r mod B of both (B, *shape of a row).
    """
    out = empty(len(x.hi), tuple(x.hi.shape[1:]))
    numbers = (part.reshape(len(part), -1).contiguous().numpy() for part in (factor, offset))
    kernels.scale(*x.flat, *numbers, values, *out.flat)
    return out
