"""Outputs and stretches of the estimated side in float64, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from approx import JacobianOperator
from approx.decoder import forward, prepare, session
from bridges.validation.subject import Subject
from cpwl.arrays import Floats

# Numbers of a batch: those of its outputs, their derivatives and the units' values, so that a
# batch takes some 100 MB whatever the network.
NUMBERS = 2**22


class Stretches(NamedTuple):
    """What autograd's Jacobian in slice coordinates does to lengths and volumes.

    Attributes
    ----------
    triangles : (n, P, P) float64 ndarray
        R of the factorisation J U = Q R, U the slice's directions: |J U t| = |R t|.
    """

    triangles: Floats

    @property
    def volume(self) -> Floats:
        """sqrt det (J U)^T (J U), (n,): by how much P-dimensional volume is stretched."""
        diagonal = np.diagonal(self.triangles, axis1=1, axis2=2)
        return np.abs(diagonal).prod(axis=1)

    def full(self, tolerance: float) -> NDArray[np.bool_]:
        """Whether the smallest singular value is above `tolerance` times the largest, (n,)."""
        values = np.linalg.svd(self.triangles, compute_uv=False)
        return values[:, -1] > tolerance * values[:, 0]


def decode(subject: Subject, s: Floats, numbers: int = NUMBERS) -> Floats:
    """Return the decoder's outputs (n, D) at slice coordinates (n, P), computed in float64."""
    outputs = np.empty((len(s), subject.outputs))
    if not len(s):
        return outputs
    z = torch.from_numpy(subject.domain.slice.embed(s))
    prepared = prepare(subject.decoder, z[:1], dtype=torch.float64)
    with session(prepared), torch.no_grad():
        for part in _batches(subject, len(s), numbers):
            outputs[part] = forward(prepared, z[part]).flatten(1).cpu().numpy()
    return outputs


def stretches(subject: Subject, s: Floats, numbers: int = NUMBERS) -> Stretches:
    """Return what autograd's Jacobian does to the slice at (n, P), computed in float64."""
    place = subject.domain.slice
    z = torch.from_numpy(place.embed(s))
    directions = torch.from_numpy(place.basis.reshape(place.dim, -1).T.copy())
    triangles = np.empty((len(s), place.dim, place.dim))
    if not len(s):
        return Stretches(triangles)
    # converted once, not by every operator
    decoder = prepare(subject.decoder, z[:1], dtype=torch.float64).call
    for part in _batches(subject, len(s), numbers // (2 + place.dim)):
        with JacobianOperator(decoder, z[part]) as operator:
            columns = operator.matmat(directions).cpu().numpy()
        triangles[part] = np.linalg.qr(columns, mode="r")
    return Stretches(triangles)


def cost(subject: Subject) -> int:
    """Return the numbers that one forward pass makes: those of outputs and of units."""
    units = 0 if subject.network is None else subject.network.num_units
    return subject.outputs + subject.latent_size + units


def _batches(subject: Subject, n: int, numbers: int) -> Iterator[slice]:
    """Cut n rows into batches whose forward pass makes at most so many numbers."""
    rows = max(1, min(4096, numbers // cost(subject)))
    return (slice(start, start + rows) for start in range(0, n, rows))
