"""Derivatives of a decoder by torch's own autograd, which `approx`'s products must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import cpwl
from approx.decoder import Prepared, prepare, session
from bridges.validation.subject import Latents, Subject
from cpwl.arrays import Floats

SWITCHED = 1e-4  # relative error of a float32 Jacobian above which it is another cell's

_STEP = 2.0**-10  # of a difference quotient: h^4 and eps / h are then both below 1e-11
_NOISE = 64 * torch.finfo(torch.float64).eps  # rounding of one evaluation, of its norm, at most


class Quotients(NamedTuple):
    """Central difference quotients and how far they may be from the derivative.

    Attributes
    ----------
    value : (n, D, k) tensor
        Extrapolated from two steps.
    error : (n,) tensor
        In the Frobenius norm.
    """

    value: Tensor
    error: Tensor


@contextmanager
def decoding(decoder: Callable[[Tensor], Any], z: Tensor) -> Iterator[Prepared]:
    """Let the decoder run in the latents' dtype, flat; a copy of it where it has another one."""
    prepared = prepare(decoder, z, dtype=z.dtype)
    with session(prepared):
        yield prepared


def decode(decoder: Callable[[Tensor], Any], z: Tensor) -> Tensor:
    """Return the outputs (n, D) in the latents' dtype."""
    with decoding(decoder, z) as run, torch.no_grad():
        return run(z.clone()).flatten(1)


def pulled_back(decoder: Callable[[Tensor], Any], z: Tensor, Y: Tensor) -> Tensor:
    """Return Y^T J (n, k, E) for Y (D, k), one reverse pass for each column, nothing batched."""
    with decoding(decoder, z) as run, torch.enable_grad():
        leaf = z.clone().requires_grad_()
        y = run(leaf.clone()).flatten(1)
        rows = [
            torch.autograd.grad((y * column).sum(), leaf, retain_graph=True)[0].flatten(1)
            for column in Y.T.to(z.dtype)
        ]
    return torch.stack(rows, dim=1)


def pushed_forward(decoder: Callable[[Tensor], Any], z: Tensor, X: Tensor) -> Tensor:
    """Return J X (n, D, k) for X (E, k), one forward-mode pass for each column."""
    with decoding(decoder, z) as run, torch.no_grad():

        def one(x: Tensor) -> Tensor:
            tangent = x.to(z.dtype).reshape(z.shape[1:]).expand_as(z).contiguous()
            return torch.func.jvp(lambda u: run(u.clone()).flatten(1), (z,), (tangent,))[1]

        return torch.stack([one(x) for x in X.T], dim=2)


def dense(decoder: Callable[[Tensor], Any], z: Tensor, outputs: int) -> Tensor:
    """Return the Jacobians (n, D, E) in the latents' dtype, by the mode with fewer passes."""
    size = z[0].numel()
    if size < outputs:
        return pushed_forward(decoder, z, torch.eye(size))
    return pulled_back(decoder, z, torch.eye(outputs))


def central_differences(decoder: Callable[[Tensor], Any], z: Tensor, X: Tensor) -> Quotients:
    """Return J X by difference quotients with two steps, and their own error estimate.

    Richardson: Q(h) has the error c h^2 + O(h^4), so (4 Q(h/2) - Q(h)) / 3 has O(h^4), and its
    distance from Q(h/2), which is the term in h^2, bounds that wherever h is small enough for the
    series to mean anything. The rounding of two evaluations over h is added.
    """
    step = _STEP * z.flatten(1).abs().amax(dim=1).clamp_min(1.0)  # (n,)
    columns, errors = [], []
    with decoding(decoder, z) as run, torch.no_grad():

        def quotient(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            away = h.reshape(-1, *[1] * (z.ndim - 1)) * x.reshape(z.shape[1:])
            above, below = run(z + away).flatten(1), run(z - away).flatten(1)
            size = torch.maximum(above.norm(dim=1), below.norm(dim=1))
            return (above - below) / (2 * h[:, None]), _NOISE * size / h

        for x in X.T:
            wide, _ = quotient(x, step)
            narrow, noise = quotient(x, step / 2)
            value = (4 * narrow - wide) / 3
            columns.append(value)
            errors.append((value - narrow).norm(dim=1) + 2 * noise)
    return Quotients(torch.stack(columns, dim=2), torch.stack(errors, dim=1).norm(dim=1))


def true_jacobians(subject: Subject, latents: Latents) -> Floats:
    """Return the Jacobians (n, D, E): A_w of the latents' cells, or autograd's without cells."""
    if subject.partition is None:
        return dense(subject.decoder, latents.z, subject.outputs).numpy()
    maps = [A for A, _ in cpwl.affine_maps(subject.partition, latents.cells, wrt="latent")]
    return np.concatenate(maps)
