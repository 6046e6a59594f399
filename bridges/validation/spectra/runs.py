"""Estimates of psi and nu over seeds, on the dense Jacobians of a decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from approx import JacobianOperator, Spectrum, spectrum
from approx.spectra import METHODS, DenseOperator
from bridges.validation.spectra.result import Runs
from bridges.validation.subject import Latents, Subject
from cpwl.arrays import Ints

Estimator = Callable[[DenseOperator, int, int], Spectrum]
"""From an operator in float64, k and a seed to psi and nu of its latents."""

_BATCH = 16  # latents whose decoder's graph is kept at a time
_BOUNDED = 4  # seeds of methods whose claim is a bound for each


@dataclass(frozen=True, eq=False)
class Matrices:
    """Jacobians (n, D, E) with the products of a `JacobianOperator`, which they came from.

    A product with a matrix costs a thousandth of a pass through a decoder, so that many seeds can
    be run; what one seed gives on the operator itself is compared with it.
    """

    J: Tensor

    @property
    def batch(self) -> int:
        """Number of latents."""
        return len(self.J)

    @property
    def rows(self) -> int:
        """Size of an output, D."""
        return self.J.shape[1]

    @property
    def columns(self) -> int:
        """Size of a latent, E."""
        return self.J.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return self.J.dtype

    @property
    def device(self) -> torch.device:
        """Of the products."""
        return self.J.device

    def matmat(self, X: Tensor) -> Tensor:
        """J X (n, D, k)."""
        return self.J @ X.to(self.dtype)

    def rmatmat(self, Y: Tensor) -> Tensor:
        """J^T Y (n, E, k)."""
        return self.J.mT @ Y.to(self.dtype)

    def dense(self, max_bytes: float = 2**30) -> Tensor:
        """Return the matrices themselves, which are there whatever `max_bytes` is."""
        return self.J


def exact(op: DenseOperator, k: int, seed: int) -> Spectrum:
    """All singular values, whatever k and the seed are."""
    return spectrum(op, method="exact")


def topk(op: DenseOperator, k: int, seed: int) -> Spectrum:
    """Block Krylov with the default block and depth."""
    return spectrum(op, method="topk", k=k, generator=seed)


def paper(op: DenseOperator, k: int, seed: int) -> Spectrum:
    """One draw of W."""
    return spectrum(op, method="paper", k=k, generator=seed)


def predict(op: DenseOperator, k: int, seed: int, *, products: int = 16) -> Spectrum:
    """psi_W and nu_W from fewer products."""
    return spectrum(op, method="predict", k=k, generator=seed, products=products)


def default_methods(products: int = 16) -> Mapping[str, Estimator]:
    """Return the four methods of `approx.spectrum`; `products` is for "predict".

    "exact" takes all the singular values, the others k.
    """
    predicting = partial(predict, products=products)
    return MappingProxyType({"exact": exact, "topk": topk, "paper": paper, "predict": predicting})


def estimated_jacobians(subject: Subject, at: Latents) -> Matrices:
    """Return the decoder's Jacobians in float64, by the operator's products."""
    parts = []
    for z in at.z.split(_BATCH):
        with JacobianOperator(subject.decoder, z, dtype=torch.float64) as op:
            parts.append(op.dense(max_bytes=float("inf")))
    return Matrices(torch.cat(parts))


def run(estimator: Estimator, op: DenseOperator, k: int, seeds: Ints) -> Runs:
    """Run a method over seeds: once if it is not random, over four at most if it states bounds."""
    first = estimator(op, k, int(seeds[0]))
    if first.seed is None:
        seeds = seeds[:1]
    elif first.method in METHODS and METHODS[first.method].claim == "bound":
        seeds = seeds[:_BOUNDED]
    results = [first, *(estimator(op, k, int(seed)) for seed in seeds[1:])]

    arrays = ("psi", "nu", "psi_stderr", "nu_stderr", "psi_interval", "nu_interval", "fell_back")
    return Runs(
        method=first.method,
        definition=first.definition,
        k=first.k,
        products=max(result.products for result in results),
        **{name: np.stack([getattr(one, name).numpy() for one in results]) for name in arrays},
    )


def matrix_free_gap(
    subject: Subject, at: Latents, estimator: Estimator, k: int, seed: int, on_matrices: Runs
) -> float:
    """Return by how much psi of the first latents moves when a run uses the operator itself."""
    with JacobianOperator(subject.decoder, at.z[:_BATCH], dtype=torch.float64) as op:
        psi = estimator(op, k, seed).psi.numpy()
    return float(np.abs(psi - on_matrices.psi[0, : len(psi)]).max())
