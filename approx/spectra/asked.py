"""One call of `spectrum`: what every method is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from approx.sketches import Operator, Probes

ROUNDINGS = 32
"""Bound on ||E||_2 / (eps sigma_1) of a Jacobian J + E from products in a precision eps.

0.5 to 17 on decoders of 2 to 20 layers, convolutions, attention and normalisation among them: it
grows with the number of layers, and hardly with their width.
"""


class DenseOperator(Operator, Protocol):
    """An operator that can also be written out as a matrix."""

    def dense(self, max_bytes: float = ...) -> Tensor:
        """Matrices (B, D, d)."""
        ...


@dataclass(frozen=True)
class Asked:
    """One call of `spectrum`, its arguments checked.

    `definition` says what psi and nu are of; `probes` is None for a method without any.
    """

    method: str
    definition: str
    subscript: str
    k: int
    probes: Probes | None
    tolerance: float | None
    products: int
    block: int
    depth: int
    max_bytes: float

    @property
    def seed(self) -> int | None:
        """Of the probes."""
        return None if self.probes is None else self.probes.seed


def probes(asked: Asked) -> torch.Generator:
    """Return a generator of the call's probes."""
    return torch.Generator().manual_seed(kept_probes(asked).seed)


def kept_probes(asked: Asked) -> Probes:
    """Return the call's probes, of a method that has some."""
    assert asked.probes is not None
    return asked.probes


def tolerance_of(asked: Asked) -> float:
    """Return the caller's relative tolerance, or what float64 leaves of a zero."""
    if asked.tolerance is not None:
        return asked.tolerance
    return ROUNDINGS * torch.finfo(torch.float64).eps
